"""RCCR: when regions are contrasted and how much, and what the bank and the teacher's projection hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import SEED, make_batches, make_stage, make_state

from udaseg.components.memory_bank import EMPTY
from udaseg.config import Stage
from udaseg.training.step import train_step
from udaseg.types import IGNORE, Loss


def made(**method: Any) -> Stage:
    stage = make_stage("rccr")
    return replace(stage, method=replace(stage.method, **method))


def terms(stage: Stage, step: int) -> dict[str, Loss]:
    method = make_state(stage).method.train()
    return {loss.name: loss for part in method.losses(make_batches(stage), step, 4) for loss in part}


def test_the_contrast_begins_at_its_step_and_grows_to_its_weight() -> None:
    stage = made(contrast_from=1, contrast_weight=0.5)
    assert terms(stage, 0).keys() == {"source_ce", "mixed_ce", "coverage"}
    late = terms(stage, 1)
    assert late.keys() == {"source_ce", "mixed_ce", "coverage", "region_contrast"}
    assert late["region_contrast"].weight == pytest.approx(0.5 * 2.718281828**-2.5)
    assert stage.method.weight_at(4, 4) == 0.5


def test_only_confident_cells_of_the_rectangle_are_contrasted() -> None:
    assert terms(made(contrast_threshold=0.0), 0)["region_contrast"].value > 0
    assert terms(made(contrast_threshold=1.0), 0)["region_contrast"].value == 0


def test_the_bank_takes_in_both_maps_at_each_step_and_is_bounded() -> None:
    stage = made(bank_length=30)
    state = make_state(stage)
    bank = state.method.bank
    assert (bank.labels == EMPTY).all()
    for step in range(3):  # 2 samples x 2 maps x 3 cells
        train_step(state, make_batches(stage, step), stage, seed=SEED)
        filled = bank.labels != EMPTY
        assert int(filled.sum()) == min(12 * (step + 1), 30) and not filled[: 30 - int(filled.sum())].any()
    assert bank.entries.shape == (30, 8) and not bank.entries.requires_grad
    torch.testing.assert_close(bank.entries.norm(dim=1), torch.ones(30))
    assert set(bank.labels.tolist()) <= {0, 1, 2, 3, IGNORE}


def test_a_fixed_projection_is_in_no_optimiser() -> None:
    stage = made(projection_fixed=True)
    state = make_state(stage)
    before = {name: p.clone() for name, p in state.method.projection.named_parameters()}
    weights = [p for p in before.values() if p.ndim > 1]
    assert weights and all(0.008 < float(w.std()) < 0.012 for w in weights)
    train_step(state, make_batches(stage), stage, seed=SEED)
    after = dict(state.method.projection.named_parameters())
    assert all(torch.equal(before[name], p) for name, p in after.items())
    held = {id(p) for optimizer in state.optimizers for group in optimizer.param_groups for p in group["params"]}
    assert not held & {id(p) for p in after.values()}


def test_the_teacher_s_projection_follows_with_the_teacher() -> None:
    method = make_state(make_stage("rccr")).method
    method.after_step()
    with torch.no_grad():
        for parameter in method.projection.parameters():
            parameter.add_(1)
    before = [p.clone() for p in method.teacher_projection.parameters()]
    method.after_step()  # the second update: half of the way
    for mine, was in zip(method.teacher_projection.parameters(), before, strict=True):
        torch.testing.assert_close(mine, was + 0.5)
        assert not mine.requires_grad


def test_dacs_is_what_is_left_without_the_contrast() -> None:
    ours, theirs = made(contrast_from=100), make_stage("dacs")
    found = {}
    for name, stage in (("rccr", ours), ("dacs", theirs)):
        method = make_state(stage).method.train()
        found[name] = {x.name: x.value.item() for part in method.losses(make_batches(stage), 0, 4) for x in part}
    assert found["rccr"] == found["dacs"]
