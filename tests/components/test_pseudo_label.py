from __future__ import annotations

import numpy as np
import pytest
import torch

from udaseg.components.pseudo_label import confident_share, hybrid_label, prototype_transfer
from udaseg.components.thresholds import class_balanced_thresholds, image_threshold, threshold_top1, union_pseudo_label
from udaseg.data.confidence import HISTOGRAM_BINS, confidence_histogram, decode_confidence, encode_confidence
from udaseg.types import IGNORE


def _prediction(shape: tuple[int, int], classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences, most of them close to 1 as a trained network's are."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape), (1 - np.exp(-4 * rng.random(shape) ** 2)).astype(np.float32)


def _probabilities(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    logits = 2 * torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))
    return logits.softmax(0).numpy()


# --- the stored confidence ------------------------------------------------------------------------------------------


def test_encoding_resolves_what_is_left_to_one() -> None:
    """Half a code is 1/8192 nat, so 1 - p is kept to that relative precision, up to where 16 bits end."""
    probability = np.concatenate([np.linspace(0, 0.999, 5000), 1 - np.geomspace(1e-3, 2e-7, 5000)])
    left = -np.expm1(-encode_confidence(probability).astype(np.float64) / 4096)
    np.testing.assert_allclose(1 - left, 1 - probability, rtol=1 / 8192 + 1e-6)
    np.testing.assert_allclose(decode_confidence(encode_confidence(probability)), probability, atol=1.3e-4)


def test_encoding_is_monotonic_and_its_ends_are_safe() -> None:
    codes = encode_confidence(np.linspace(0, 1, 10001, dtype=np.float32)).astype(np.int64)
    assert (np.diff(codes) >= 0).all() and codes[0] == 0 and codes[-1] == 65535
    decoded = decode_confidence(np.arange(65536).astype(np.uint16))
    assert decoded[0] == 0 and (np.diff(decoded) >= 0).all() and decoded[-1] <= 1
    assert encode_confidence(np.array([0.9985]))[0] < encode_confidence(np.array([0.99999]))[0]


def test_every_code_decodes_to_a_probability_that_encodes_to_itself() -> None:
    codes = np.arange(0, 31000, dtype=np.uint16)  # beyond, float32 holds 1 - p less finely than a code does
    assert np.array_equal(encode_confidence(decode_confidence(codes)), codes)


# --- class-balanced thresholds --------------------------------------------------------------------------------------


def test_histograms_count_and_add_up() -> None:
    parts = []
    for seed in range(3):
        label, confidence = _prediction((8, 9), 4, seed)
        parts.append(confidence_histogram(label, encode_confidence(confidence), 4))
        assert parts[-1].shape == (4, HISTOGRAM_BINS)
        assert np.array_equal(parts[-1].sum(1), np.bincount(label.ravel(), minlength=4))
    labels, confidences = zip(*(_prediction((8, 9), 4, seed) for seed in range(3)), strict=True)
    whole = confidence_histogram(np.stack(labels), encode_confidence(np.stack(confidences)), 4)
    assert np.array_equal(sum(parts), whole)


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


# --- union ----------------------------------------------------------------------------------------------------------


def test_image_share_lies_strictly_above_the_threshold() -> None:
    confidence = np.random.default_rng(0).permutation(100).reshape(10, 10) / 100
    assert (confidence > image_threshold(confidence, 0.1)).sum() == 9
    assert not (confidence > image_threshold(confidence, 0.0)).any()
    assert (confidence > image_threshold(confidence, 1.0)).sum() == 99


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
        assert label[i, j] == (best if by_class or p[best] > nth else IGNORE)


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


# --- on the fly -----------------------------------------------------------------------------------------------------


def test_confident_share_counts_the_threshold_itself() -> None:
    confidence = torch.tensor([[[0.5, 0.968], [0.97, 0.1]]])
    assert float(confident_share(confidence, 0.968)) == 0.5
    assert float(confident_share(confidence, 0.0)) == 1


def test_transfer_is_the_loop_over_cells() -> None:
    rng = np.random.default_rng(0)
    feature, prototypes = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 6, 3))
    present = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    label = prototype_transfer(
        torch.from_numpy(feature),
        torch.from_numpy(prototypes),
        torch.from_numpy(present),
        temperature=0.1,
        threshold=0.8,
    )
    for b, i, j in np.ndindex(2, 4, 5):
        f = feature[b, :, i, j]
        cosine = np.array([p @ f / np.linalg.norm(p) / np.linalg.norm(f) for p in prototypes[b]])
        cosine[~present[b]] = -1
        probability = np.exp(cosine / 0.1) / np.exp(cosine / 0.1).sum()
        best = int(probability.argmax())
        assert int(label[b, i, j]) == (best if probability[best] > 0.8 else IGNORE)
    assert (label == IGNORE).any() and (label != IGNORE).any()


def test_transfer_gives_no_absent_class_and_no_gradient() -> None:
    feature = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    present = torch.tensor([[False, True], [False, False]])
    label = prototype_transfer(feature, torch.ones(2, 2, 3), present, temperature=10.0, threshold=0.0)
    assert (label[0] == 1).sum() > 0 and not (label[0] == 0).any(), "class 0 has no prototype"
    assert (label[1] == IGNORE).all(), "without any prototype nothing is known"
    assert not label.requires_grad


def test_fill_keeps_what_is_known_and_upsamples_the_rest() -> None:
    static = torch.full((1, 4, 4), IGNORE)
    static[0, 0, 0] = 7
    filled = hybrid_label(static, torch.tensor([[[1, 2], [IGNORE, 3]]]))
    x = IGNORE
    assert filled.tolist() == [[[7, 1, 2, 2], [1, 1, 2, 2], [x, x, 3, 3], [x, x, 3, 3]]]


# --- other rules ----------------------------------------------------------------------------------------------------


def test_a_share_of_0_leaves_the_images_own_share_alone() -> None:
    label, confidence = _prediction((40, 50), 3)
    histogram = confidence_histogram(label, encode_confidence(confidence), 3)
    thresholds = class_balanced_thresholds(histogram, 0.0)
    stored = decode_confidence(encode_confidence(confidence))
    kept = threshold_top1(label, stored, thresholds, 0.1) != IGNORE
    assert np.array_equal(kept, stored > image_threshold(stored, 0.1)) and kept.any()


def test_what_networks_disagree_on_is_never_kept() -> None:
    label, confidence = np.zeros((2, 3), np.int64), np.array([[0, 0.5, 0.9], [0, 0.2, 0]], np.float32)
    kept = threshold_top1(label, confidence, np.zeros(1, np.float32), 1.0)
    assert np.array_equal(kept != IGNORE, confidence > 0)


def test_certainty_is_one_minus_the_normalised_entropy() -> None:
    from udaseg.components.pseudo_label import normalised_certainty

    probability = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.7, 0.1, 0.1, 0.1]]).T[None, :, :, None]
    got = normalised_certainty(probability)[0, :, 0]
    expected = []
    for column in probability[0, :, :, 0].T.tolist():
        entropy = -sum(p * np.log(p) for p in column if p > 0)
        expected.append(1 - entropy / np.log(4))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


def test_reliability_counts_are_those_of_a_loop_and_add_up() -> None:
    from udaseg.evaluation.calibration import calibration_error, reliability_counts

    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), [0.0, 1.0]]).astype(np.float32)
    correct = rng.random(502) < confidence
    expected = np.zeros((20, 3))
    for c, right in zip(confidence, correct, strict=True):
        expected[min(int(c * 20), 19)] += [1, right, c]
    np.testing.assert_allclose(reliability_counts(confidence, correct), expected, atol=1e-4)
    halves = reliability_counts(confidence[:200], correct[:200]) + reliability_counts(confidence[200:], correct[200:])
    np.testing.assert_allclose(halves, expected, atol=1e-4)
    loop = sum(abs(row[1] / row[0] - row[2] / row[0]) * row[0] for row in expected if row[0]) / 502
    assert calibration_error(expected) == pytest.approx(loop)
    assert calibration_error(np.zeros((20, 3))) is None
