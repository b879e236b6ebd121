"""VFM: contrast in both directions with what is sure of the mixture, and masking switched on."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy import collect, make_batches, make_stage, make_state

from udaseg.methods.vfm import VFM


def test_its_terms_and_their_weights() -> None:
    stage = replace(make_stage("vfm"), method=VFM.Config())
    weights = {name: loss.weight for name, loss in collect(make_state(stage), make_batches(stage)).items()}
    assert weights == {
        "source_ce": 1.0,
        "mixed_ce": 1.0,
        "forward_contrast": 0.1,
        "backward_contrast": 0.1,
        "coverage": 0,
        "masked_ce": 1.0,
    }


def test_only_sure_pixels_of_the_target_take_part_in_the_contrast() -> None:
    """Where the teacher is sure of nothing, what it says cannot matter to the contrast, and otherwise it does."""
    for threshold, same in ((1.0, True), (0.0, False)):
        stage = make_stage("vfm")
        stage = replace(stage, method=replace(stage.method, threshold=threshold))
        state, batches = make_state(stage), make_batches(stage)
        values = []
        for _ in range(2):
            found = collect(state, batches)
            values.append([found[name].value.item() for name in ("forward_contrast", "backward_contrast")])
            with torch.no_grad():
                for parameter in state.method.teacher.network.net.head.parameters():
                    parameter.neg_()
        assert (values[0] == values[1]) == same
