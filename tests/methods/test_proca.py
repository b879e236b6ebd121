"""ProCA: whose pixels enter the centres, and what is compared with the threshold."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy import collect_frozen, make_batches, make_stage, make_state

from udaseg.methods.proca import ProCA
from udaseg.types import IGNORE


def test_pixels_of_both_domains_enter_the_centres_before_they_are_contrasted() -> None:
    stage = replace(make_stage("proca"), method=ProCA.Config(temperature=0.5, threshold=0.0))
    state, batches = make_state(stage), make_batches(stage)
    found = collect_frozen(state, batches)
    labelled = int((batches["source"].labels != IGNORE).sum()) / 16  # cells of 4 x 4 pixels
    cells = 2 * 16 * 16
    assert float(state.method.output_classes.count.sum()) == labelled + cells
    assert float(found["coverage"].value) == 1
    target = batches["target"]
    out = state.method.student(target.image, "target", target.index).aux["coarse_logits"].detach()
    for c in out.argmax(1).unique().tolist():
        if not (batches["source"].labels == c).any():
            mean = out.movedim(1, -1)[out.argmax(1) == c].mean(0)
            torch.testing.assert_close(state.method.output_classes.mean[c], mean)
    assert all(loss.value.item() > 0 for name, loss in found.items() if "contrast" in name)


def test_the_released_threshold_is_one_of_logits() -> None:
    batches = make_batches(make_stage("proca"))
    shares = {}
    for confidence in ("probability", "logit"):
        config = ProCA.Config(threshold=0.5, confidence=confidence)
        state = make_state(replace(make_stage("proca"), method=config))
        with torch.no_grad():
            state.method.student.net.head.classify.bias.fill_(9)  # probabilities are as they were
        shares[confidence] = float(collect_frozen(state, batches)["coverage"].value)
    assert shares["logit"] == 1 > shares["probability"]


def test_the_contrast_waits_until_centres_are_filled() -> None:
    stage = replace(make_stage("proca"), method=ProCA.Config(fill_steps=1, feature_weight=3.0, output_weight=3.0))
    state, batches = make_state(stage), make_batches(stage)
    weights = []
    for step in (0, 1):
        found = [loss for losses in state.method.losses(batches, step, 10) for loss in losses]
        weights.append({loss.weight for loss in found if "contrast" in loss.name})
    assert weights == [{0.0}, {3.0}]
