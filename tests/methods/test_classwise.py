"""Class-wise self-training: which pixels of the target count, and what for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from toy import CLASSES, SEED, collect, make_batches, make_stage, make_state

from udaseg.components.augment import strong
from udaseg.components.class_thresholds import BINS, ClassThresholds
from udaseg.components.colours import recoloured
from udaseg.methods.classwise import Classwise
from udaseg.methods.dacs import DACS
from udaseg.types import IGNORE


def test_the_target_s_loss_is_the_loop_over_reliable_pixels() -> None:
    stage = make_stage("classwise")
    state, batches = make_state(stage), make_batches(stage)
    method, target = state.method.eval(), batches["target"]
    with torch.no_grad():
        probability = method.teacher(target.image).logits.softmax(1).numpy()
        view = strong(target.image, target.index, seed=SEED, purpose="target", jitter=method.config.jitter)
        logits = method.student(view, "target", target.index).logits.double()
    label, confidence = probability.argmax(1), probability.max(1)
    threshold = {}
    for c in np.unique(label):
        ordered = np.sort(confidence[label == c])[::-1]
        reached = ordered[int(np.ceil(method.config.share * len(ordered))) - 1]
        threshold[c] = min(method.config.cap, np.floor(reached * BINS) / BINS)
    total, kept = 0.0, 0
    log_probability = logits.log_softmax(1).numpy()
    for b, i, j in np.ndindex(label.shape):
        if confidence[b, i, j] >= threshold[label[b, i, j]]:
            total -= log_probability[b, label[b, i, j], i, j]
            kept += 1
    assert 0 < kept < label.size
    losses = {loss.name: loss for terms in method.losses(batches, 0, 10) for loss in terms}
    assert losses["coverage"].value.item() == pytest.approx(kept / label.size, abs=0.01)  # a bin's width of ties
    assert losses["target_ce"].value.item() == pytest.approx(total / label.size, rel=0.02)


def test_the_source_s_loss_sees_logits_raised_by_the_frequencies_of_its_labels() -> None:
    stage = make_stage("classwise")
    state, batches = make_state(stage), make_batches(stage)
    method, source = state.method.eval(), batches["source"]
    label = source.labels
    image = recoloured(source.image, batches["target"].image, source.index, seed=SEED, probability=0.5)
    with torch.no_grad():
        logits = method.student(image, "source", source.index).logits.double()
    share = torch.bincount(label[label != IGNORE], minlength=CLASSES) / (label != IGNORE).sum()
    total = 0.0
    for b, i, j in np.ndindex(*label.shape):
        if label[b, i, j] != IGNORE:
            raised = logits[b, :, i, j].exp() * share.double() ** method.config.prior
            total -= float((raised[label[b, i, j]] / raised.sum()).log())
    losses = {loss.name: loss for terms in method.losses(batches, 0, 10) for loss in terms}
    assert losses["source_ce"].value.item() == pytest.approx(total / int((label != IGNORE).sum()), rel=1e-4)


def test_source_and_target_are_two_graphs_and_the_teacher_learns_by_following_alone() -> None:
    stage = make_stage("classwise")
    state = make_state(stage)
    terms = list(state.method.train().losses(make_batches(stage), 0, 10))
    assert [[loss.name for loss in losses] for losses in terms] == [
        ["source_ce", "source_lovasz"],
        ["target_ce", "coverage"],
    ]
    assert all(p.grad is None for p in state.method.teacher.parameters())


def test_no_class_is_silenced_because_the_teacher_is_unsure_of_it() -> None:
    """One quality for all, or one threshold, would leave nothing of a class whose confidence is never high."""
    label = torch.tensor([[[0, 0, 0, 0], [1, 1, 1, 1]]])
    confidence = torch.tensor([[[0.99, 0.98, 0.97, 0.96], [0.5, 0.4, 0.35, 0.3]]])
    running = ClassThresholds(CLASSES)
    running.update(confidence, label)
    assert running.reliable(confidence, label)[0].sum(1).tolist() == [4, 2]


@pytest.mark.parametrize("name", ["dacs", "daformer", "vfm"])
def test_every_method_that_mixes_takes_thresholds_per_class(name: str) -> None:
    stage = make_stage(name)
    method = replace(stage.method, reliability="class", threshold=1.0)
    state = make_state(replace(stage, method=method))
    assert "thresholds.histogram" in state.method.state_dict()
    found = collect(state, make_batches(stage))
    assert 0.2 < float(found["coverage"].value) < 1, (
        "no pixel reaches a confidence of 1, half of each class its threshold"
    )
    assert state.method.thresholds.histogram.sum() == 2 * 64 * 64
    plain = make_state(replace(stage, method=replace(method, reliability="quality")))
    assert not any("thresholds" in key for key in plain.method.state_dict())


def test_the_recommended_recipe_is_this_method() -> None:
    from udaseg.recipes import RECIPES

    for name in ("classwise", "classwise_small"):
        warm, adapt, again = RECIPES[name]().stages
        assert isinstance(adapt.method, Classwise.Config) and not isinstance(adapt.method, DACS.Config)
        assert adapt.init_from == warm.name and again.init_from == adapt.name
        assert again.pseudo_label is not None and again.data.domains() == ["target"]
