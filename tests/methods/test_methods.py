"""Every method on small random batches: what it learns from, what it changes and when, and that it resumes exactly."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from toy import CLASSES, METHODS, SEED, make_batches, make_stage, make_state, warm_up

from udaseg.config import Optim
from udaseg.errors import CheckpointError, TrainingError
from udaseg.methods.bcl import BCL
from udaseg.methods.dacs import DACS
from udaseg.methods.ldbe import LDBE
from udaseg.methods.sdca import SDCA
from udaseg.training.step import RunState, train_step
from udaseg.types import IGNORE, Batch, Loss

LEARNING = [name for name in METHODS if name != "adabn"]
WITH_TEACHER = ["dacs", "bcl_teacher", "bcl_paper"]


def collect(state: RunState, batches: dict[str, Batch]) -> dict[str, Loss]:
    state.method.train()
    found = [loss for losses in state.method.losses(batches, 0, 10) for loss in losses]
    assert len({loss.name for loss in found}) == len(found)
    return {loss.name: loss for loss in found}


def snapshot(module: nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


def freeze(method: nn.Module) -> None:
    """Without dropout, and with batch norms that use their running statistics."""
    method.eval()


def changed(before: dict[str, Tensor], module: nn.Module) -> set[str]:
    return {name for name, tensor in module.state_dict().items() if not torch.equal(tensor, before[name])}


# --- losses and gradients -------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize("name", ["bcl", "bcl_paper"])
@pytest.mark.parametrize("term", ["forward_contrast", "backward_contrast"])
def test_each_contrast_teaches_the_stems_of_both_domains(name: str, term: str) -> None:
    """Prototypes are not detached: either term moves anchors and keys."""
    stage = make_stage(name)
    state = make_state(stage)
    warm_up(state.method.student)
    collect(state, make_batches(stage))[term].value.backward()
    student = state.method.student
    for key, parameter in student.target_parameters.items():
        own, shared = parameter.grad, student.net.get_parameter(key.replace("/", ".")).grad
        assert own is not None and shared is not None
        if key.startswith("backbone/conv1") and parameter.ndim == 4:  # layer1's branch begins as zero
            assert own.abs().max() > 0 and shared.abs().max() > 0


@pytest.mark.parametrize(("term", "domain"), [("source_ce", "source"), ("target_entropy", "target")])
def test_a_term_of_one_domain_leaves_the_other_s_stem_alone(term: str, domain: str) -> None:
    stage = make_stage("bcl")
    state = make_state(stage)
    collect(state, make_batches(stage))[term].value.backward()
    student = state.method.student
    own = [p.grad is not None for p in student.target_parameters.values()]
    shared = [student.net.get_parameter(k.replace("/", ".")).grad is not None for k in student.target_parameters]
    assert (all(own), any(own)) == ((domain == "target"),) * 2
    assert (all(shared), any(shared)) == ((domain == "source"),) * 2


def test_dacs_backpropagates_source_and_mixture_as_two_graphs() -> None:
    stage = make_stage("dacs")
    state = make_state(stage)
    terms = list(state.method.train().losses(make_batches(stage), 0, 10))
    assert [[loss.name for loss in losses] for losses in terms] == [["source_ce"], ["mixed_ce", "coverage"]]
    assert all(p.grad is None for p in state.method.teacher.parameters())


def test_dacs_without_a_confident_pixel_learns_from_the_pasted_source_alone() -> None:
    """q = 0 gives target pixels the weight 0, so what the teacher calls them cannot matter."""
    stage = replace(make_stage("dacs"), method=DACS.Config(threshold=1.0))
    batches = make_batches(stage)
    state = make_state(stage)
    first = collect(state, batches)
    with torch.no_grad():
        for parameter in state.method.teacher.network.net.head.parameters():
            parameter.neg_()
    second = collect(state, batches)
    assert float(first["coverage"].value) == 0
    assert first["mixed_ce"].value.item() == second["mixed_ce"].value.item() > 0


# --- LDBE, DSP, SDCA ------------------------------------------------------------------------------------------------


def test_ldbe_pastes_within_its_group_and_weighs_each_image_by_what_is_sure() -> None:
    """From the box: the student sees image i over image i + 1 of the group, and the loss is of those labels."""
    stage = make_stage("ldbe_enhancement")
    state, batch = make_state(stage), make_batches(stage, size=4)["target"]
    seen: list[Tensor] = []
    state.method.train()
    state.method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (losses,) = state.method.losses({"target": batch}, 0, 10)
    mask = torch.stack([(seen[0][i] == batch.image[i]).all(0) for i in range(4)])
    for i, following in enumerate((1, 0, 3, 2)):
        assert torch.equal(seen[0][i][:, ~mask[i]], batch.image[following][:, ~mask[i]])
        assert 0 < mask[i].float().mean() < 1
    assert 0 < float(losses[1].value) < 1


def test_ldbe_draws_the_place_by_the_step() -> None:
    stage = make_stage("ldbe_denoising")
    state, batches = make_state(stage), make_batches(stage)
    values = []
    for step in (0, 0, *range(1, 8)):
        (losses,) = state.method.losses(batches, step, 10)
        values.append({loss.name: loss.value.item() for loss in losses}["negative"])
    assert values[0] == values[1] and len(set(values)) == 3  # places 1, 2, 3 of four classes


def test_ldbe_needs_a_group_to_paste_in() -> None:
    with pytest.raises(ValueError, match="group_size"):
        make_state(replace(make_stage("ldbe_denoising"), method=LDBE.Config(phase="boundary_enhancement")))


def test_dsp_with_everything_blended_fully_learns_nothing_from_below() -> None:
    stage = make_stage("dsp")
    full = replace(stage, method=replace(stage.method, blend=1.0))
    found = collect(make_state(full), make_batches(full))
    assert found["target_under"].weight == found["source_under"].weight == 0
    assert found["target_mixed"].weight == 1
    with pytest.raises(ValueError, match="long_tail"):
        make_state(replace(stage, method=replace(stage.method, long_tail=(9,))))


def test_dsp_s_first_mask_changes_what_was_pasted_alone() -> None:
    own, first = (replace(make_stage("dsp").method, mmd_mask=whose) for whose in ("own", "first"))
    values = []
    for config in (own, first):
        stage = replace(make_stage("dsp"), method=config)
        values.append({n: loss.value.item() for n, loss in collect(make_state(stage), make_batches(stage)).items()})
    assert {n for n in values[0] if values[0][n] != values[1][n]} == {"mmd_pasted"}


def test_sdca_waits_until_its_distributions_are_filled() -> None:
    stage = replace(make_stage("sdca"), method=SDCA.Config(fill_steps=1))
    state, batches = make_state(stage), make_batches(stage)
    weights = []
    for step in (0, 1):
        found = [loss for losses in state.method.losses(batches, step, 10) for loss in losses]
        weights.append({loss.weight for loss in found if "contrast" in loss.name})
    assert weights == [{0.0}, {1.0}]
    labelled = int((batches["source"].label != IGNORE).sum()) / 64**2 * 16 * 16  # cells at stride 4
    assert float(state.method.output_classes.count.sum()) == pytest.approx(2 * labelled)


# --- BCL's two variants ---------------------------------------------------------------------------------------------


def _sparse(batches: dict[str, Batch]) -> dict[str, Batch]:
    label = batches["target"].label
    assert label is not None
    label = label.clone()
    label[:, :, 24:] = IGNORE
    return batches | {"target": replace(batches["target"], label=label)}


def _values(config: BCL.Config, batches: dict[str, Batch]) -> dict[str, float]:
    stage = replace(make_stage("bcl"), method=config)
    return {name: float(loss.value.detach()) for name, loss in collect(make_state(stage), batches).items()}


def test_paper_differs_from_released_where_transfers_are_confident() -> None:
    stage = make_stage("bcl")
    batches = _sparse(make_batches(stage))
    released = _values(BCL.Config(), batches)
    paper = _values(BCL.Config(variant="paper", transfer_threshold=0.3), batches)
    assert paper["coverage"] > released["coverage"] > 0
    for name in ("forward_contrast", "backward_contrast"):
        assert paper[name] != released[name]
    for name in ("source_ce", "target_ce", "source_entropy", "target_entropy"):
        assert paper[name] == released[name], "static labels are what the cross-entropy reads"
    hybrid = _values(BCL.Config(variant="paper", transfer_threshold=0.3, target_ce="hybrid"), batches)
    assert hybrid["target_ce"] != paper["target_ce"]


def test_paper_is_released_where_no_transfer_is_confident() -> None:
    batches = _sparse(make_batches(make_stage("bcl")))
    assert _values(BCL.Config(variant="paper", transfer_threshold=1.0), batches) == _values(BCL.Config(), batches)


def test_calibration_learns_with_the_paper_s_variant_alone() -> None:
    for name, learns in [("bcl", False), ("bcl_paper", True)]:
        stage = make_stage(name)
        state = make_state(stage)
        train_step(state, make_batches(stage), stage, seed=SEED)
        assert bool(state.method.domain_bias.bias.any()) == learns


def test_calibration_learns_only_classes_that_both_domains_hold() -> None:
    stage = replace(make_stage("bcl"), method=BCL.Config(variant="paper", transfer_threshold=1.0))
    batches = make_batches(stage)
    labels = {domain: torch.full_like(batch.label, 0) for domain, batch in batches.items() if batch.label is not None}
    labels["source"][:, 32:], labels["target"][:, 32:] = 1, 2
    state = make_state(stage)
    collect(state, {domain: replace(batch, label=labels[domain]) for domain, batch in batches.items()})
    assert state.method.domain_bias.bias.any(1).tolist() == [True, False, False, False]


def test_bcl_weighs_its_terms_as_configured() -> None:
    stage = make_stage("bcl")
    weights = {name: loss.weight for name, loss in collect(make_state(stage), make_batches(stage)).items()}
    assert weights == {
        "source_ce": 1.0,
        "target_ce": 0.3,
        "source_entropy": 0.4,
        "target_entropy": pytest.approx(0.12),
        "forward_contrast": 0.2,
        "backward_contrast": 0.2,
        "coverage": 0,
    }


def collect_frozen(state: RunState, batches: dict[str, Batch]) -> dict[str, Loss]:
    freeze(state.method)
    return {loss.name: loss for losses in state.method.losses(batches, 0, 10) for loss in losses}


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


def losses_where_all_is_known(name: str, weight: Tensor | None) -> dict[str, Loss]:
    """Of a target whose every pixel has a label of the round, with that weight."""
    stage = make_stage(name)
    batches = make_batches(stage)
    label = torch.zeros(2, 64, 64, dtype=torch.long)
    return collect_frozen(
        make_state(stage), batches | {"target": replace(batches["target"], label=label, weight=weight)}
    )


def test_soft_labels_of_a_mixed_image_leave_what_is_pasted_at_full_weight() -> None:
    weights = {"plain": None, "sure": torch.ones(2, 64, 64), "unsure": torch.zeros(2, 64, 64)}
    ce = {name: losses_where_all_is_known("bcl_mix", w)["target_ce"].value.item() for name, w in weights.items()}
    assert ce["sure"] == ce["plain"] and 0 < ce["unsure"] < ce["plain"]


def test_soft_labels_decide_how_sure_ldbe_is_of_an_image() -> None:
    half = torch.zeros(2, 64, 64)
    half[:, :32] = 1
    found = [losses_where_all_is_known("ldbe_enhancement", w)["coverage"].value.item() for w in (None, half)]
    assert found == [1.0, 0.5]


# --- the step -------------------------------------------------------------------------------------------------------


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


def test_adabn_changes_the_statistics_and_nothing_else() -> None:
    stage = make_stage("adabn")
    state, batches = make_state(stage), [make_batches(stage, step) for step in range(3)]
    warm_up(state.method.student)
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED))
    before = snapshot(state.method)
    seen = []
    norm = state.method.student.net.backbone.bn1
    hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].mean((0, 2, 3))))
    for batch in batches:
        assert train_step(state, batch, stage, seed=SEED)["grad_norm"] == 0
    hook.remove()
    moved = changed(before, state.method)
    assert moved and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    torch.testing.assert_close(norm.running_mean, torch.stack(seen).mean(0))  # what was before is forgotten


def test_adabn_of_a_network_per_domain_estimates_the_target_s_statistics() -> None:
    stage = make_stage("adabn")
    stage = replace(stage, model=replace(stage.model, per_domain="stem+statistics"))
    state, batch = make_state(stage), make_batches(stage)
    warm_up(state.method.student)
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED))
    seen = []
    state.method.student.net.backbone.bn1.register_forward_pre_hook(lambda _, x: seen.append(x[0].mean((0, 2, 3))))
    train_step(state, batch, stage, seed=SEED)
    own = dict(state.method.student.target_buffers.named_buffers())
    torch.testing.assert_close(own["backbone/bn1/running_mean"], seen[0])


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


def test_clipping_bounds_the_step_but_reports_the_norm() -> None:
    stage = make_stage("supervised", lr=1.0, momentum=0.0, weight_decay=0.0, head_lr_factor=1.0)
    clipped = replace(stage, optim=replace(stage.optim, clip=1e-3))
    state, batches = make_state(clipped), make_batches(clipped)
    before = {n: p.clone() for n, p in state.method.named_parameters()}
    norm = train_step(state, batches, clipped, seed=SEED)["grad_norm"]
    moved = math.sqrt(sum(float((p - before[n]).detach().square().sum()) for n, p in state.method.named_parameters()))
    assert norm > 1e-3 and moved == pytest.approx(1e-3, rel=0.02)


def test_learning_rates_follow_the_step() -> None:
    stage = make_stage("supervised")
    state = make_state(stage)
    state.step = 30
    train_step(state, make_batches(stage), stage, seed=SEED)
    factor = stage.optim.lr_factor(30, 40)
    assert [group["lr"] for group in state.optimizers[0].param_groups] == [5e-3 * factor, 1e-2 * factor]


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


@pytest.mark.parametrize("name", METHODS)
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


# --- resumption -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "optimizer"), [*((name, "adamw") for name in METHODS), ("bcl_paper", "sgd")])
def test_a_resumed_run_is_the_uninterrupted_one(name: str, optimizer: str, tmp_path: Path) -> None:
    stage = make_stage(name, name=optimizer, lr=1e-3)
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


def test_dropout_repeats_after_a_resumption(tmp_path: Path) -> None:
    stage = make_stage("supervised")
    states = [make_state(stage), make_state(stage)]
    for state in states:
        head = state.method.student.net.head
        head.classify = nn.Sequential(nn.Dropout(0.5), head.classify)
    states[0].save(tmp_path / "state.pt")
    states[1].load(tmp_path / "state.pt")
    batches = make_batches(stage)
    first = train_step(states[0], batches, stage, seed=SEED)
    torch.rand(5)
    assert train_step(states[1], batches, stage, seed=SEED) == first
    states[1].load(tmp_path / "state.pt")
    assert train_step(states[1], batches, stage, seed=SEED + 1)["ce"] != first["ce"]
    states[1].load(tmp_path / "state.pt")
    states[1].step = 1
    assert train_step(states[1], batches, stage, seed=SEED)["ce"] != first["ce"], "each step drops other units"


def test_a_state_of_another_method_is_refused(tmp_path: Path) -> None:
    make_state(make_stage("dacs")).save(tmp_path / "state.pt")
    with pytest.raises(CheckpointError, match=r"state\.pt.*not a checkpoint of this stage"):
        make_state(make_stage("supervised")).load(tmp_path / "state.pt")


@pytest.mark.parametrize("content", [b"", b"garbage", None])
def test_a_damaged_state_is_refused(tmp_path: Path, content: bytes | None) -> None:
    state = make_state(make_stage("supervised"))
    file = tmp_path / "state.pt"
    state.save(file)
    file.write_bytes(file.read_bytes()[:5000] if content is None else content)
    with pytest.raises(CheckpointError, match=r"state\.pt"):
        state.load(file)


def test_vectors_and_positions_decay_only_on_request() -> None:
    stage = make_stage("cluda", name="adamw", weight_decay=0.3, decay_vectors=False)
    stage = replace(stage, model=replace(stage.model, backbone="test_vit"))
    method = make_state(stage).method
    decay = {
        id(p): group["weight_decay"]
        for optimizer in method.optimizers(stage.optim)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert decay.keys() == {id(p) for p in learning.values()}
    undecayed = {name for name, p in learning.items() if decay[id(p)] == 0}
    assert undecayed == {name for name, p in learning.items() if p.ndim <= 1 or name.endswith("pos_embed")}
    assert any(name.endswith("pos_embed") for name in undecayed)
    every = method.optimizers(replace(stage.optim, decay_vectors=True))
    assert all(group["weight_decay"] == 0.3 for optimizer in every for group in optimizer.param_groups)


def test_cluda_s_contrast_of_two_resolutions_waits_for_a_detail_crop() -> None:
    found = {name: collect(make_state(make_stage(name)), make_batches(make_stage(name))) for name in ("cluda", "mic")}
    assert {"source_contrast", "mixed_contrast"} <= found["cluda"].keys()
    assert not {"source_contrast", "mixed_contrast"} & found["mic"].keys()
    assert "masked_ce" in found["mic"] and "masked_ce" not in found["cluda"]
    stage = make_stage("cluda")
    state, batches = make_state(stage), make_batches(stage)
    state.method.train()
    value = next(iter(state.method.losses(batches, 0, 10)))[1].value
    with torch.no_grad():
        state.method.attention.classify.bias.add_(3)
    assert torch.equal(next(iter(state.method.losses(batches, 0, 10)))[1].value, value), "one resolution: no attention"
    stage = make_stage("cluda_hrda")
    state = make_state(stage)
    freeze(state.method)
    values = []
    for shift in (0, 3):
        with torch.no_grad():
            state.method.attention.classify.bias.add_(shift)
        values.append(next(iter(state.method.losses(batches, 0, 10)))[1].value.item())
    assert values[0] != values[1]


def test_cluda_leaves_ignored_pixels_out_unless_as_released() -> None:
    for name, same in (("cluda_hrda", True), ("cluda_released_hrda", False)):
        state = make_state(make_stage(name))
        out = state.method.student(torch.rand(2, 3, 64, 64), "source", torch.arange(2))
        label = torch.zeros(2, 64, 64, dtype=torch.int64)
        label[:, :, 32:] = 1
        label[:, :20] = IGNORE
        noise = out.embedding.clone()
        noise[:, :, :2] = torch.rand_like(noise[:, :, :2])  # context cells of 8 pixels, all of them ignored
        values = [state.method._contrast(replace(out, embedding=e), label).item() for e in (out.embedding, noise)]
        assert (values[0] == pytest.approx(values[1], rel=1e-6)) == same


def test_every_optimiser_of_the_configuration_builds() -> None:
    for name, kind in [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]:
        optimizer = make_state(make_stage("supervised", name=name)).optimizers[0]
        assert isinstance(optimizer, kind)
        backbone, head = optimizer.param_groups
        assert head["base_lr"] == 2 * backbone["base_lr"] == 1e-2
        assert Optim(name=name).lr == 2.5e-4  # type: ignore[arg-type]
