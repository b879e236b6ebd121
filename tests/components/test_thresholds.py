"""Class-balanced thresholds and the union of shares, against loops."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from udaseg.components.thresholds import class_balanced_thresholds, image_threshold, threshold_top1, union_pseudo_label
from udaseg.data.confidence import confidence_histogram, decode_confidence, encode_confidence
from udaseg.types import IGNORE


def _prediction(shape: tuple[int, int], classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences, most of them close to 1 as a trained network's are."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape), (1 - np.exp(-4 * rng.random(shape) ** 2)).astype(np.float32)


def _probabilities(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    logits = 2 * torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    return logits.softmax(0).numpy()


@pytest.mark.parametrize("share", [0.05, 0.1, 0.5, 1.0])
def test_thresholds_are_the_exact_quantiles_to_one_bin(share: float) -> None:
    label, confidence = _prediction((200, 200), 5)
    histogram = confidence_histogram(label, encode_confidence(confidence), 5)
    for k, threshold in enumerate(class_balanced_thresholds(histogram, share)):
        ordered = np.sort(confidence[label == k])[::-1]
        exact = ordered[int(len(ordered) * share) - 1]
        assert threshold <= exact + 1e-6
        assert 1 - exact == pytest.approx(1 - threshold, rel=0.0025, abs=1e-6)
        kept = (ordered >= threshold).mean()
        assert share - 1 / len(ordered) <= kept <= share + 0.01


def test_a_class_that_is_too_rare_keeps_its_top_or_all_of_it() -> None:
    label, confidence = np.zeros((1, 5), np.int64), np.array([[0.3, 0.5, 0.6, 0.8, 0.9]], np.float32)
    histogram = confidence_histogram(label, encode_confidence(confidence), 2)  # int(5 * .1) is 0
    top = class_balanced_thresholds(histogram, 0.1)
    everything = class_balanced_thresholds(histogram, 0.1, rare_class="keep_all")
    assert ((confidence >= top[0]) == [[False, False, False, False, True]]).all()
    assert (confidence >= everything[0]).all() and everything[0] > 0.29
    assert top[1] == 1 and everything[1] == 1, "a class that was never predicted accepts nothing"


def test_a_class_that_is_accepted_whole_loses_no_pixel_by_rounding() -> None:
    for p in np.linspace(0.3, 0.999, 500, dtype=np.float32):
        histogram = confidence_histogram(np.zeros((1, 1), np.int64), encode_confidence(np.array([[p]])), 2)
        threshold = class_balanced_thresholds(histogram, 0.1, rare_class="keep_all")[0]
        assert p > threshold and 1 - p == pytest.approx(1 - threshold, rel=0.003)


def test_a_cap_bounds_the_thresholds_of_predicted_classes() -> None:
    label, confidence = _prediction((50, 50), 3)
    histogram = confidence_histogram(label, encode_confidence(confidence), 4)
    free = class_balanced_thresholds(histogram, 0.1)
    assert (free > 0.9).all()
    np.testing.assert_array_equal(
        class_balanced_thresholds(histogram, 0.1, cap=0.9), np.array([0.9, 0.9, 0.9, 1], np.float32)
    )
    np.testing.assert_array_equal(class_balanced_thresholds(histogram, 0.1, cap=0.9999), free)


def test_keep_all_changes_nothing_for_frequent_classes() -> None:
    label, confidence = _prediction((50, 50), 3)
    histogram = confidence_histogram(label, encode_confidence(confidence), 3)
    kept = class_balanced_thresholds(histogram, 0.2, rare_class="keep_all")
    assert np.array_equal(class_balanced_thresholds(histogram, 0.2), kept)


def test_image_share_reaches_the_threshold() -> None:
    confidence = np.random.default_rng(0).permutation(100).reshape(10, 10) / 100
    assert (confidence >= image_threshold(confidence, 0.1)).sum() == 10
    assert not (confidence >= image_threshold(confidence, 0.0)).any()
    assert (confidence >= image_threshold(confidence, 1.0)).all()


@pytest.mark.parametrize("rule", ["any_class", "top1"])
def test_saturated_confidence_is_kept(rule: str) -> None:
    probability = np.stack([np.ones((10, 10), np.float32), np.zeros((10, 10), np.float32)])
    probability[:, :2] = np.array([0.75, 0.25]).reshape(2, 1, 1)
    never = np.ones(2, np.float32)

    def kept(share: float) -> int:
        return int((union_pseudo_label(probability, never, share, rule=rule) != IGNORE).sum())  # type: ignore[arg-type]

    assert (kept(0.0), kept(0.1), kept(0.8)) == (0, 80, 80), "equal confidences stand or fall together"
    probability[:, :2] = probability[:, 2:4]
    assert kept(1.0) == 100
    label, confidence = probability.argmax(0), probability.max(0)
    assert (threshold_top1(label, confidence, never * 2, 1.0) == 0).all()


@pytest.mark.parametrize("rule", ["any_class", "top1"])
def test_union_is_the_loop_over_pixels(rule: str) -> None:
    probability, thresholds = _probabilities((4, 9, 11)), np.array([0.3, 0.9, 0.6, 0.99])
    confidence = probability.max(0)
    nth = np.sort(confidence.ravel())[::-1][int(99 * 0.05) - 1]
    label = union_pseudo_label(probability, thresholds, 0.05, rule=rule)  # type: ignore[arg-type]
    assert label.dtype == np.uint8
    for i, j in np.ndindex(9, 11):
        p = probability[:, i, j]
        best = int(p.argmax())
        by_class = any(p[k] > thresholds[k] for k in range(4)) if rule == "any_class" else p[best] > thresholds[best]
        by_image = p[best] > nth if rule == "any_class" else p[best] >= nth
        assert label[i, j] == (best if by_class or by_image else IGNORE)


def test_any_class_keeps_a_pixel_for_a_class_that_is_not_its_label() -> None:
    probability = np.array([0.6, 0.4]).reshape(2, 1, 1)
    thresholds = np.array([0.9, 0.3])
    assert union_pseudo_label(probability, thresholds, 0, rule="any_class").item() == 0
    assert union_pseudo_label(probability, thresholds, 0, rule="top1").item() == IGNORE


def test_stored_top1_gives_the_union_without_a_second_pass() -> None:
    probability = _probabilities((5, 20, 30))
    label, confidence = probability.argmax(0), probability.max(0)
    thresholds = np.array([0.5, 0.7, 0.9, 0.6, 0.8])
    stored = threshold_top1(label, confidence, thresholds, 0.1)
    assert np.array_equal(stored, union_pseudo_label(probability, thresholds, 0.1, rule="top1"))
    assert 0 < (stored == IGNORE).mean() < 1


def test_thresholds_made_from_codes_keep_the_share_of_decoded_pixels() -> None:
    label, confidence = _prediction((100, 100), 3)
    code = encode_confidence(confidence)
    thresholds = class_balanced_thresholds(confidence_histogram(label, code, 3), 0.3)
    kept = threshold_top1(label, decode_confidence(code), thresholds, 0) != IGNORE
    for k in range(3):
        assert 0.3 - 1e-3 <= kept[label == k].mean() <= 0.31


def test_a_share_of_0_leaves_the_images_own_share_alone() -> None:
    label, confidence = _prediction((40, 50), 3)
    histogram = confidence_histogram(label, encode_confidence(confidence), 3)
    thresholds = class_balanced_thresholds(histogram, 0.0)
    stored = decode_confidence(encode_confidence(confidence))
    kept = threshold_top1(label, stored, thresholds, 0.1) != IGNORE
    assert np.array_equal(kept, stored >= image_threshold(stored, 0.1)) and kept.any()


def test_a_cap_holds_whatever_the_share() -> None:
    label, confidence = _prediction((40, 50), 3)
    histogram = confidence_histogram(label, encode_confidence(confidence), 4)
    np.testing.assert_array_equal(
        class_balanced_thresholds(histogram, 0.0, cap=0.9), np.array([0.9, 0.9, 0.9, 1], np.float32)
    )


def test_what_networks_disagree_on_is_never_kept() -> None:
    """Not even where a class has nothing else, so that its threshold is 0."""
    confidence = np.array([[0.0, 0.0, 0.0, 0.8]])
    kept = threshold_top1(np.zeros((1, 4), np.uint8), confidence, np.zeros(1, np.float32), 1.0)
    assert kept.tolist() == [[IGNORE, IGNORE, IGNORE, 0]]
