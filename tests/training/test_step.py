"""One step of the loop: clipping, learning rates, dropout, and a state that is read back."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from toy import SEED, make_batches, make_stage, make_state

from udaseg.errors import CheckpointError
from udaseg.training import step as step_module
from udaseg.training.step import queue_step, train_step


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


def test_what_no_loss_reaches_is_left_to_the_optimiser_as_it_is(tmp_path: Path) -> None:
    """No decay, no momentum and no count of steps, as torch does it for parameters without gradient; saved likewise."""
    stage = make_stage("supervised", name="adamw", weight_decay=0.1)
    states = [make_state(stage), make_state(stage)]
    for state in states:
        unused = nn.Parameter(torch.ones(3))
        state.method.register_parameter("unused", unused)
        state.optimizers[0].add_param_group({"params": [unused]})
    train_step(states[0], make_batches(stage), stage, seed=SEED)
    unused = states[0].method.unused
    assert torch.equal(unused, torch.ones(3)) and unused not in states[0].optimizers[0].state
    states[0].save(tmp_path / "state.pt")
    states[1].load(tmp_path / "state.pt")
    logs = [train_step(state, make_batches(stage, 1), stage, seed=SEED) for state in states]
    assert logs[0] == logs[1] and states[1].method.unused not in states[1].optimizers[0].state


def test_a_state_is_laid_out_as_the_network_that_takes_it(tmp_path: Path) -> None:
    """Weights whose channels lie innermost and moments whose do not would be read in different orders."""
    stage = make_stage("supervised", name="adamw", lr=1e-2)
    states = [make_state(stage), make_state(stage)]
    for state, layout in zip(states, (torch.contiguous_format, torch.channels_last), strict=True):
        state.method.to(memory_format=layout)  # type: ignore[call-overload]
    train_step(states[0], make_batches(stage), stage, seed=SEED)
    states[0].save(tmp_path / "state.pt")
    states[1].load(tmp_path / "state.pt")
    before = [kept["exp_avg"] for kept in states[0].optimizers[0].state.values()]
    assert any(moment.stride() != p.stride() for moment, p in zip(before, states[1].optimizers[0].state, strict=True))
    for moment, (parameter, kept) in zip(before, states[1].optimizers[0].state.items(), strict=True):
        assert kept["exp_avg"].stride() == parameter.stride() and torch.equal(kept["exp_avg"], moment)
    train_step(states[1], make_batches(stage, 1), stage, seed=SEED)


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


def test_dropout_differs_from_rank_to_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage("supervised")
    draws = []
    for rank in (0, 1, 0):
        monkeypatch.setattr(step_module, "rank", lambda rank=rank: rank)
        queue_step(make_state(stage), make_batches(stage), stage, seed=SEED)
        draws.append(torch.get_rng_state())
    assert torch.equal(draws[0], draws[2]) and not torch.equal(draws[0], draws[1])


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


@pytest.mark.parametrize("reached", [0.0, -1.0])
def test_no_optimiser_steps_where_one_has_no_gradient_or_ranks_disagree(reached: float) -> None:
    state = make_state(make_stage("supervised", name="adamw"))
    assert state.take_in(["loss"], torch.ones(1), [(torch.tensor(0.0), torch.tensor(reached))]) == 1
    sound = make_state(make_stage("supervised", name="adamw"))
    assert sound.take_in(["loss"], torch.ones(1), [(torch.tensor(0.0), torch.tensor(1.0))]) == 0
