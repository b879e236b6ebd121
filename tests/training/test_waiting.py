"""A step never makes the host wait for a GPU, on one that is faked; and what is not finite stops it there."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from fake_gpu import GPU, Waits, fake_gpu, move
from torch import Tensor
from toy import METHODS, SEED, changed, make_batches, make_columns, make_stage, make_state, snapshot

from udaseg.config import Stage
from udaseg.errors import TrainingError
from udaseg.models.teacher import EMATeacher
from udaseg.training.batches import to_batches
from udaseg.training.kernels import checkpoint_networks
from udaseg.training.step import RunState, begin_momentum, queue_step, train_step


@pytest.mark.parametrize("name", [pytest.param(n, marks=() if n == "dacs" else pytest.mark.full) for n in METHODS])
def test_a_step_waits_for_nothing(name: str) -> None:
    """From streamed columns to the teacher, all augmentations on, two steps without a reading."""
    stage = make_stage(name)
    streams = {key: replace(stream, jitter=0.2, blur=0.5) for key, stream in stage.data.streams().items()}
    stage = replace(stage, data=replace(stage.data, rotation=10.0, **streams))
    method = make_state(stage).method
    with fake_gpu():
        move(method)
        state = RunState(method, method.optimizers(stage.optim))
        for step in range(2):
            batches = to_batches(make_columns(step), stage.data, seed=SEED, device=GPU)
            queue_step(state, batches, stage, seed=SEED)
        assert state.step == 2
        with pytest.raises(Waits):
            state.read()


def test_a_step_of_checkpointed_networks_waits_for_nothing() -> None:
    stage = make_stage("dacs")
    stage = replace(stage, model=replace(stage.model, backbone="mit_b0"))
    method = make_state(stage).method
    checkpoint_networks(method)
    with fake_gpu():
        move(method)
        state = RunState(method, method.optimizers(stage.optim))
        queue_step(state, to_batches(make_columns(), stage.data, seed=SEED, device=GPU), stage, seed=SEED)
    assert state.step == 1


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(),
        lambda x: bool(x.any()),
        lambda x: x.tolist(),
        lambda x: x.cpu(),
        lambda x: x.nonzero(),
        lambda x: x[x > 0],
        lambda x: x.masked_select(x > 0),
        lambda x: x.long().bincount(minlength=4),
        lambda x: x.unique(),
        lambda x: x[torch.tensor([0])],
        lambda x: torch.tensor([1.0], device=x.device),
        lambda x: torch.ones(2).to(x.device),
    ],
)
def test_the_gpu_that_is_faked_tells_what_waits(wait: Callable[[Tensor], object]) -> None:
    with fake_gpu(), pytest.raises(Waits):
        wait(torch.ones(3).to(GPU, non_blocking=True))


def poisoned(stage: Stage) -> dict[str, object]:
    return {
        name: replace(batch, image=torch.full_like(batch.image, math.nan))
        for name, batch in make_batches(stage).items()
    }


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_what_is_not_finite_keeps_fused_optimisers_from_stepping_until_it_is_read(
    optimizer: str, tmp_path: Path
) -> None:
    stage = make_stage("dacs", name=optimizer, fused=True)
    state = make_state(stage)
    for step in range(2):
        queue_step(state, make_batches(stage, step), stage, seed=SEED)
    before, moments = snapshot(state.method.student), state.optimizers[0].state_dict()["state"]
    moments = {(n, key): value.clone() for n, values in moments.items() for key, value in values.items()}
    queue_step(state, poisoned(stage), stage, seed=SEED)  # type: ignore[arg-type]
    queue_step(state, make_batches(stage, 3), stage, seed=SEED)
    assert not {n for n in changed(before, state.method.student) if "running" not in n and "num_batches" not in n}
    now = state.optimizers[0].state_dict()["state"]
    assert all(torch.equal(now[n][key], value) for (n, key), value in moments.items()) and moments
    with pytest.raises(TrainingError, match=r"step 2.*not finite.*optim\.lr"):
        state.save(tmp_path / "state.pt")
    assert state.step == 2 and not (tmp_path / "state.pt").exists()


def test_fused_sgd_takes_a_parameter_whose_first_gradient_comes_later() -> None:
    """As those of a loss that joins at some step do: torch's kernel would be given no momentum for it."""
    found = []
    for fused in (True, False):
        first, later = (torch.nn.Parameter(torch.tensor([value])) for value in (1.0, 2.0))
        optimizer = torch.optim.SGD([first, later], lr=0.1, momentum=0.9, weight_decay=0.01, fused=fused)
        for step in range(4):
            optimizer.zero_grad()
            (first.square().sum() + (later.square().sum() if step >= 2 else 0.0)).backward()
            begin_momentum(optimizer)
            optimizer.step()
        found.append([first.item(), later.item()])
    assert found[0] == pytest.approx(found[1], rel=1e-6) and found[0][1] < 2
    stage = make_stage("rccr", name="sgd", fused=True)
    stage = replace(stage, method=replace(stage.method, contrast_from=1))
    state = make_state(stage)
    for step in range(2):
        queue_step(state, make_batches(stage, step), stage, seed=SEED)
    state.read()


def test_a_reading_has_the_values_of_the_last_step() -> None:
    stage = make_stage("dacs", fused=True)
    often, seldom = make_state(stage), make_state(stage)
    for step in range(3):
        batches = make_batches(stage, step)
        values = train_step(often, batches, stage, seed=SEED)
        queue_step(seldom, batches, stage, seed=SEED)
    assert seldom.read() == values == seldom.read()
    assert not changed(snapshot(often.method), seldom.method)


def test_a_state_of_fused_optimisers_goes_on_without_them_and_the_other_way_round(tmp_path: Path) -> None:
    for saved, loaded in ((True, None), (None, True)):
        stage = make_stage("supervised", name="adamw", fused=saved)
        state = make_state(stage)
        train_step(state, make_batches(stage), stage, seed=SEED)
        state.save(tmp_path / "state.pt")
        other = make_state(make_stage("supervised", name="adamw", fused=loaded))
        other.load(tmp_path / "state.pt")
        assert {group["fused"] for group in other.optimizers[0].param_groups} == {loaded}
        values = [train_step(x, make_batches(stage, step), stage, seed=SEED) for step in (1, 2) for x in (state, other)]
        assert values[2] == pytest.approx(values[3], rel=1e-3)


def test_the_count_of_a_teacher_s_updates_stays_on_the_cpu() -> None:
    teacher = EMATeacher(make_state(make_stage("dacs")).method.student, momentum=0.9)
    assert teacher.to("meta").updates.device.type == "cpu" and next(teacher.parameters()).device.type == "meta"
