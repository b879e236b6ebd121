"""Ranks that hold their share of the batch each, against one process that holds all of it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toy import METHODS, SEED, adapting_stage, flat, make_batches, make_stage, make_state, warm_up

from udaseg.config import Stage
from udaseg.distributed import world_size
from udaseg.training.step import RunState, train_step
from udaseg.types import Batch

GLOBAL = 4
STEPS = 2
Arrays = dict[str, np.ndarray]
Trained = tuple[Arrays, Arrays, dict[str, float]]
"""A rank's state, last gradients and last logs."""


def share(batches: dict[str, Batch], rank: int | None) -> dict[str, Batch]:
    """The consecutive samples of a rank; all of them for None."""
    if rank is None:
        return batches
    half = slice(rank * GLOBAL // world_size(), (rank + 1) * GLOBAL // world_size())
    return {
        name: Batch(
            image=b.image[half],
            index=b.index[half],
            label=None if b.label is None else b.label[half],
            distribution=None if b.distribution is None else b.distribution[half],
            prior=None if b.prior is None else b.prior[half],
            candidate=None if b.candidate is None else b.candidate[half],
        )
        for name, b in batches.items()
    }


def freeze_batch_norm(method: nn.Module) -> None:
    """Batch norms stay in evaluation mode whatever the loop asks for."""
    original = method.train

    def train(mode: bool = True) -> nn.Module:
        original(mode)
        for module in method.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.eval()
        return method

    method.train = train  # type: ignore[method-assign]


def narrow_stage(name: str) -> Stage:
    """A method's stage, or a recipe's last that adapts, on a network that takes a tenth of the time."""
    stage = make_stage(name) if name in METHODS else replace(adapting_stage(name), optim=make_stage("dacs").optim)
    return replace(stage, model=replace(stage.model, backbone="test_byobnet"))


def train_some(rank: int | None, name: str, frozen: bool = True) -> Trained:
    """What some steps of `narrow_stage` leave."""
    return train_stage(rank, narrow_stage(name), frozen)


def train_stage(rank: int | None, stage: Stage, frozen: bool = True) -> Trained:
    """`train_some` of a stage.

    In double precision: in single, a pixel at the edge of a threshold or a unit at the edge of a ReLU would fall to
    either side by the rounding of a sum.
    """
    state = make_state(stage)
    warm_up(state.method.student)
    torch.manual_seed(SEED)  # layers of the method's own
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED).double())
    state = RunState(state.method, state.method.optimizers(stage.optim))
    if frozen:
        freeze_batch_norm(state.method)
    for step in range(STEPS):
        batches = {
            domain: replace(batch, image=batch.image.double())
            for domain, batch in make_batches(stage, step, size=GLOBAL).items()
        }
        logs = train_step(state, share(batches, rank), stage, seed=SEED)
    gradients = {n: p.grad for n, p in state.method.named_parameters() if p.grad is not None}
    return flat(state.method.state_dict()), flat(gradients), logs


def assert_ranks_equal_one(ranks: list[Trained], one: Trained) -> None:
    """Ranks have one state and one log, to the bit, and both, as the gradients, are those of one process."""
    state, gradients, logs = one
    for theirs, _, their_logs in ranks[1:]:
        for key in theirs:
            assert np.array_equal(theirs[key], ranks[0][0][key]), f"ranks differ in {key}"
        assert their_logs == ranks[0][2]
    assert_close(ranks[0][1], gradients, "gradient")
    assert_close(ranks[-1][0], state, "state")
    assert ranks[0][2] == pytest.approx(logs, rel=1e-5, abs=1e-8)


def assert_close(mine: Arrays, theirs: Arrays, what: str) -> None:
    assert mine.keys() == theirs.keys()
    for name, value in theirs.items():
        scale = max(float(np.abs(value).max()), 1e-3) if value.size else 1.0
        np.testing.assert_allclose(mine[name], value, rtol=1e-5, atol=1e-5 * scale, err_msg=f"{what}: {name}")
