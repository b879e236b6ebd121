"""Every method on small random batches: what it learns from, what it changes and when, and that it resumes exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import CLASSES, METHODS, SEED, changed, collect, collect_frozen, make_batches, make_stage, make_state, snapshot

from udaseg.errors import TrainingError
from udaseg.training.step import train_step
from udaseg.types import IGNORE

LEARNING = [name for name in METHODS if name != "adabn"]


VARIANTS = (
    "bcl_teacher",
    "bcl_hybrid_ce",
    "cluda_hrda",
    "cluda_released_hrda",
    "dsp_released",
    "ehtdi_edges",
    "i2i_cr",
    "mic_both",
    "oracle",
    "pne",
    "sepico_bank",
    "tada_released",
)
"""Settings of a method that `make test` trains in another way."""
SHORT = [pytest.param(name, marks=pytest.mark.full) if name in VARIANTS else name for name in METHODS]


WITH_TEACHER = ["dacs", "bcl_teacher", "bcl_paper"]


@pytest.mark.parametrize("name", METHODS)
def test_losses_are_finite_scalars(name: str) -> None:
    stage = make_stage(name)
    for loss in collect(make_state(stage), make_batches(stage)).values():
        assert loss.value.shape == () and torch.isfinite(loss.value)
        if not loss.weight:
            assert 0 <= float(loss.value) <= 1, "what is only reported is a share"


@pytest.mark.parametrize("name", LEARNING)
def test_every_trainable_parameter_of_the_student_gets_a_gradient(name: str) -> None:
    """But for the stem of the domain that a method never runs."""
    stage = make_stage(name)
    state, batches = make_state(stage), make_batches(stage)
    state.method.train()
    for losses in state.method.losses(batches, 0, 10):
        torch.stack([loss.weight * loss.value for loss in losses if loss.value.requires_grad]).sum().backward()
    without = {n for n, p in state.method.student.named_parameters() if p.grad is None}
    assert not without
    learnt = {id(p) for o in state.optimizers for group in o.param_groups for p in group["params"]}
    assert learnt == {id(p) for p in state.method.parameters() if p.requires_grad}


@pytest.mark.parametrize(("name", "term"), [("oracle", "ce"), ("bcl", "target_ce"), ("ldbe_denoising", "positive")])
def test_soft_labels_weigh_the_pixels_of_their_term_alone(name: str, term: str) -> None:
    stage = make_stage(name)
    state, batches = make_state(stage), make_batches(stage)
    target = batches["target"]
    assert target.label is not None
    weight = torch.rand(target.label.shape, generator=torch.Generator().manual_seed(0))
    plain = collect_frozen(state, batches)
    soft = collect_frozen(make_state(stage), batches | {"target": replace(target, weight=weight)})
    known = target.label != IGNORE
    logits = state.method.student(target.image, "target", target.index).logits
    pixels = -logits.log_softmax(1).gather(1, target.label.where(known, 0)[:, None])[:, 0]
    torch.testing.assert_close(plain[term].value, pixels[known].sum() / known.sum())
    torch.testing.assert_close(soft[term].value, (weight * pixels)[known].sum() / known.sum())
    assert all(torch.equal(plain[other].value, soft[other].value) for other in plain if other != term)


@pytest.mark.parametrize("name", ["supervised", "dacs", "bcl", "bcl_paper"])
def test_training_on_one_batch_lowers_its_loss(name: str) -> None:
    stage = make_stage(name, name="adamw", lr=2e-3, head_lr_factor=2.0)
    state, batches = make_state(stage), make_batches(stage)
    term = {"supervised": "ce", "dacs": "mixed_ce"}.get(name, "source_ce")
    logs = [train_step(state, batches, stage, seed=SEED) for _ in range(15)]
    assert state.step == 15
    assert logs[-1][term] < 0.7 * logs[0][term]
    assert all(log["grad_norm"] > 0 for log in logs)
    if "bcl" in name:
        assert logs[-1]["forward_contrast"] < logs[0]["forward_contrast"]
        assert logs[-1]["backward_contrast"] < logs[0]["backward_contrast"]


@pytest.mark.parametrize("name", WITH_TEACHER)
def test_the_teacher_follows_in_after_step_alone(name: str) -> None:
    stage = make_stage(name)
    state, batches = make_state(stage), make_batches(stage)
    method = state.method
    for _ in range(2):
        train_step(state, batches, stage, seed=SEED)
    parameters = {n: p.clone() for n, p in method.teacher.network.named_parameters()}
    student = {n: p.clone() for n, p in method.student.named_parameters()}
    for losses in method.losses(batches, 2, 40):
        sum(loss.weight * loss.value for loss in losses).backward()
    for optimizer in state.optimizers:
        optimizer.step()
    assert all(torch.equal(p, parameters[n]) for n, p in method.teacher.network.named_parameters())
    method.after_step()
    momentum = min(1 - 1 / 3, method.teacher.momentum)
    for n, p in method.teacher.network.named_parameters():
        now = dict(method.student.named_parameters())[n]
        torch.testing.assert_close(p, momentum * parameters[n] + (1 - momentum) * now)
    assert any(not torch.equal(p, student[n]) for n, p in method.student.named_parameters())


@pytest.mark.parametrize(
    "name",
    [n if n == "sepico" else pytest.param(n, marks=pytest.mark.full) for n in METHODS if n not in ("clan", "adabn")],
)
def test_a_step_at_two_resolutions(name: str) -> None:
    """HRDA's network goes with every method but CLAN, which is refused for its two heads, and AdaBN."""
    stage = make_stage(name)
    stage = replace(stage, model=replace(stage.model, detail_crop=(32, 32), per_domain="nothing"))
    logs = train_step(make_state(stage), make_batches(stage), stage, seed=SEED)
    assert all(map(math.isfinite, logs.values())) and logs["grad_norm"] > 0


@pytest.mark.parametrize("name", METHODS)
def test_the_predictor_is_the_teacher_where_there_is_one(name: str) -> None:
    method = make_state(make_stage(name)).method
    teacher = getattr(method, "teacher", None)
    assert method.predictor is (method.student if teacher is None else teacher.network)
    assert method.predictor.num_classes == CLASSES


@pytest.mark.parametrize("name", METHODS)
def test_the_state_holds_every_tensor_once(name: str) -> None:
    state = {n: t for n, t in make_state(make_stage(name)).method.state_dict().items() if t.numel()}
    assert len({tensor.data_ptr() for tensor in state.values()}) == len(state)


def test_unknown_pixels_everywhere_train_nothing_and_break_nothing() -> None:
    for name in METHODS:
        stage = make_stage(name)
        batches = {
            domain: replace(batch, label=torch.full_like(batch.label, IGNORE))
            for domain, batch in make_batches(stage).items()
            if batch.label is not None
        }
        logs = train_step(make_state(stage), batches, stage, seed=SEED)
        assert all(map(math.isfinite, logs.values()))


@pytest.mark.parametrize("name", SHORT)
def test_what_is_not_finite_stops_at_its_step(name: str) -> None:
    stage = make_stage(name)
    state, batches = make_state(stage), make_batches(stage)
    state.step = 7
    poisoned = {d: replace(batch, image=torch.full_like(batch.image, math.nan)) for d, batch in batches.items()}
    before = {n: p.clone() for n, p in state.method.named_parameters()}
    with pytest.raises(TrainingError, match=r"step 7.*not finite.*optim\.lr"):
        train_step(state, poisoned, stage, seed=SEED)
    assert state.step == 7
    assert all(torch.equal(p, before[n]) for n, p in state.method.named_parameters())


@pytest.mark.parametrize("name", SHORT)
@pytest.mark.parametrize("optimizer", ["adamw", pytest.param("sgd", marks=pytest.mark.full)])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, optimizer: str, tmp_path: Path) -> None:
    stage = make_stage(name, name=optimizer, lr=1e-3)
    stage = replace(stage, model=replace(stage.model, backbone="test_byobnet"))
    whole = make_state(stage)
    for step in range(2):
        train_step(whole, make_batches(stage, step), stage, seed=SEED)
    whole.save(tmp_path / "state.pt")
    resumed = make_state(stage, seed=99)
    resumed.load(tmp_path / "state.pt")
    assert resumed.step == 2
    torch.rand(3)  # a global generator that stands elsewhere
    for step in range(2, 4):
        batches = make_batches(stage, step)
        resumed.method.seed = getattr(whole.method, "seed", None)
        resumed.method.student.seed = SEED
        assert train_step(whole, batches, stage, seed=SEED) == train_step(resumed, batches, stage, seed=SEED)
    assert not changed(snapshot(whole.method), resumed.method)
    for mine, theirs in zip(whole.optimizers, resumed.optimizers, strict=True):
        a, b = mine.state_dict(), theirs.state_dict()
        assert a["param_groups"] == b["param_groups"]
        for key, values in a["state"].items():
            assert all(torch.equal(torch.as_tensor(v), torch.as_tensor(b["state"][key][n])) for n, v in values.items())
