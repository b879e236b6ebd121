"""DSP: soft paste, and whose mask the mean of features is taken over."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy import collect, make_batches, make_stage, make_state


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
