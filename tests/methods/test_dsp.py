"""DSP: soft paste, and whose mask the mean of features is taken over."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import SEED, collect, make_batches, make_stage, make_state

from udaseg.training.step import train_step


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


def test_a_fixed_projection_stays_as_it_was_drawn() -> None:
    stage = make_stage("dsp")
    state = make_state(replace(stage, method=replace(stage.method, mmd_fixed=True)))
    before = state.method.reduce.weight.clone()
    assert train_step(state, make_batches(stage), stage, seed=SEED)["mmd_image"] > 0
    assert torch.equal(state.method.reduce.weight, before) and 0.008 < float(before.std()) < 0.012
