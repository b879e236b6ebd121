"""SDCA: distributions are filled before the contrast begins."""

from __future__ import annotations

from dataclasses import replace

import pytest
from toy import make_batches, make_stage, make_state

from udaseg.methods.sdca import SDCA
from udaseg.types import IGNORE


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
