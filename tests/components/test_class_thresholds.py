"""Running thresholds per class against sorted lists, over steps, and on two ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from two_ranks import TwoRanks

from udaseg.components.class_thresholds import BINS, ClassThresholds
from udaseg.types import IGNORE


def _pixels(step: int) -> tuple[Tensor, Tensor]:
    """Confidences of four classes, the last but one seldom and never sure, the last never predicted."""
    rng = np.random.default_rng([step, 5])
    label = rng.choice([0, 1, 2, IGNORE], p=[0.5, 0.35, 0.05, 0.1], size=(4, 6, 7))
    confidence = np.where(label == 2, rng.uniform(0.3, 0.6, label.shape), rng.uniform(0.4, 1.0, label.shape))
    return torch.from_numpy(confidence).float(), torch.from_numpy(label)


def test_the_threshold_is_the_most_certain_share_of_each_class() -> None:
    running = ClassThresholds(4, share=0.25, cap=0.9)
    confidence, label = _pixels(0)
    running.update(confidence, label)
    found = running.thresholds()
    for c in range(3):
        ordered = np.sort(confidence[label == c].numpy())[::-1]
        reached = ordered[int(np.ceil(0.25 * len(ordered))) - 1]
        expected = min(0.9, np.floor(reached * BINS) / BINS)
        assert float(found[c]) == pytest.approx(expected, abs=1.5 / BINS)
    assert float(found[2]) < 0.6, "a class that is never sure has a threshold that it reaches"
    assert float(found[3]) == pytest.approx(0.9), "a class that was never predicted has the cap"
    reliable = running.reliable(confidence, label)
    for b, i, j in np.ndindex(4, 6, 7):
        y = int(label[b, i, j])
        assert bool(reliable[b, i, j]) == (y != IGNORE and bool(confidence[b, i, j] >= found[y]))
    assert reliable.any() and not reliable.all()


def test_steps_fade_by_the_momentum() -> None:
    running = ClassThresholds(4, momentum=0.5)
    weighted = np.zeros((4, BINS))
    for step in range(3):
        confidence, label = _pixels(step)
        running.update(confidence, label)
        weighted *= 0.5
        for p, y in zip(confidence.flatten().tolist(), label.flatten().tolist(), strict=True):
            if y != IGNORE:
                weighted[y, min(BINS - 1, int(np.float32(p) * np.float32(BINS)))] += 1
    np.testing.assert_allclose(running.histogram.numpy(), weighted)


def test_before_the_first_step_the_cap_is_every_class_s_threshold() -> None:
    running = ClassThresholds(4, cap=0.8)
    assert running.thresholds().tolist() == pytest.approx([0.8] * 4)


def test_a_momentum_of_one_would_never_forget() -> None:
    with pytest.raises(ValueError, match="momentum"):
        ClassThresholds(4, momentum=1.0)


def _seen(rank: int | None) -> list[np.ndarray]:
    running = ClassThresholds(4)
    for step in range(2):
        confidence, label = _pixels(step)
        part = {None: slice(None), 0: slice(0, 1), 1: slice(1, 4)}[rank]
        running.update(confidence[part], label[part])
    return [running.histogram.numpy(), running.thresholds().numpy()]


def test_two_ranks_equal_one(two_ranks: TwoRanks) -> None:
    one, both = _seen(None), two_ranks.run(_seen)
    for found in both:
        for mine, theirs in zip(one, found, strict=True):
            assert np.array_equal(mine, theirs)


def test_every_pixel_reaches_the_threshold_of_its_own_bin() -> None:
    """Also one unit in the last place below an edge that single precision rounds up."""
    edges = torch.arange(1, 1000).float() / 1000
    for confidence in torch.cat(
        [edges, torch.nextafter(edges, torch.zeros(())), torch.nextafter(edges, torch.ones(()))]
    ):
        thresholds, plane, label = ClassThresholds(2, cap=1.0), confidence.expand(1, 1, 4), torch.zeros(1, 1, 4).long()
        thresholds.update(plane, label)
        assert thresholds.reliable(plane, label).all(), float(confidence)
