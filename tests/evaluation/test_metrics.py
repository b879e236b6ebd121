from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from udaseg.evaluation.metrics import confusion, gap_closed, iou, mean_iou, pixel_accuracy
from udaseg.evaluation.model_selection import image_sums, scores
from udaseg.types import IGNORE


def _maps(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, 5, (3, 8, 9)).astype(np.uint8)
    label[rng.random(label.shape) < 0.2] = IGNORE
    return label, rng.integers(0, 5, label.shape).astype(np.uint8)


def test_confusion_is_the_loop_over_pixels() -> None:
    label, prediction = _maps()
    counts = np.zeros((5, 5), int)
    for y, p in zip(label.ravel().tolist(), prediction.ravel().tolist(), strict=True):
        if y != IGNORE:
            counts[y, p] += 1
    assert np.array_equal(confusion(label, prediction, 5), counts)


def test_counts_add_up_and_ratios_do_not() -> None:
    label, prediction = _maps()
    parts = [confusion(y, p, 5) for y, p in zip(label, prediction, strict=True)]
    assert np.array_equal(sum(parts), confusion(label, prediction, 5))


def test_iou_is_intersection_over_union() -> None:
    label, prediction = _maps()
    known = label != IGNORE
    for c, value in enumerate(iou(confusion(label, prediction, 5))):
        both = ((label == c) & (prediction == c)).sum()
        either = (((label == c) | (prediction == c)) & known).sum()
        assert value == pytest.approx(both / either)


def test_absent_classes_are_left_out_of_the_mean_and_invented_ones_count() -> None:
    counts = confusion(np.array([0, 0, 1, 1]), np.array([0, 0, 1, 2]), 4)
    values = iou(counts)
    assert values[:3].tolist() == [1.0, 0.5, 0.0] and math.isnan(values[3])
    assert mean_iou(counts) == pytest.approx(0.5)
    assert mean_iou(counts, [0, 1, 3]) == 0.75 and math.isnan(mean_iou(counts, [3]))
    assert pixel_accuracy(counts) == 0.75


def test_without_a_labelled_pixel_there_is_no_score() -> None:
    counts = confusion(np.full((2, 2), IGNORE), np.zeros((2, 2), int), 3)
    assert not counts.any()
    assert math.isnan(mean_iou(counts)) and math.isnan(pixel_accuracy(counts))


def test_small_integer_types_do_not_overflow() -> None:
    label = np.full(3, 200, np.uint8)
    assert confusion(label, label, 250)[200, 200] == 3


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match=r"\(2, 2\).*\(2, 3\)"):
        confusion(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)


def test_gap_closed() -> None:
    assert gap_closed(40, 40, 60) == 0 and gap_closed(40, 60, 60) == 1 and gap_closed(40, 35, 60) == -0.25
    assert math.isnan(gap_closed(50, 55, 50))


def test_an_image_of_one_pixel_leaves_scores_finite() -> None:
    probability = torch.tensor([[[0.75]], [[0.25]]])
    sums = image_sums(probability, probability, np.array([0]))
    other = image_sums(torch.full((2, 3, 3), 0.5), torch.full((2, 3, 3), 0.5), np.arange(9))
    assert all(math.isfinite(value) for value in scores(sums + other).values())
    assert scores(sums)["snd"] == 0


@pytest.mark.parametrize("value", [3, 255, -1])
def test_a_prediction_that_is_no_class_is_refused(value: int) -> None:
    label, prediction = np.array([0, 1, 255]), np.array([0, value, value])
    with pytest.raises(ValueError, match="3 classes are 0 and on"):
        confusion(label, prediction, 3)
    assert confusion(np.array([0, 255, 255]), prediction, 3)[0, 0] == 1
