"""Pseudo-labels over a whole target set: the scale that confidence is stored on, and the thresholds it has to reach.

Without torch, for the tasks that read what is stored.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from udaseg.types import IGNORE

CODES_PER_NAT = 4096
"""Stored confidence is round(-ln(1 - p) * 4096) in 16 bits: even near 1 it tells .9985 from .99999."""
HISTOGRAM_BINS = 8192
"""Bins of a confidence histogram, 8 codes each: (1 - p) is resolved to 0.2 %."""
RELIABILITY_BINS = 20


def encode_confidence(probability: np.ndarray) -> np.ndarray:
    """uint16 codes of top-1 probabilities in [0, 1], on the scale of -ln(1 - p)."""
    nats = -np.log(np.maximum(1.0 - probability.astype(np.float64), 1e-12))
    return np.clip(np.rint(nats * CODES_PER_NAT), 0, 65535).astype(np.uint16)


def decode_confidence(code: np.ndarray) -> np.ndarray:
    """float32 probabilities of `encode_confidence`'s codes."""
    return (-np.expm1(-code.astype(np.float64) / CODES_PER_NAT)).astype(np.float32)


def confidence_histogram(label: np.ndarray, code: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, 8192) int64 counts of the confidence codes of the pixels predicted as each class; histograms add up."""
    slot = label.astype(np.int64).ravel() * HISTOGRAM_BINS + (code.astype(np.int64).ravel() >> 3)
    return np.bincount(slot, minlength=num_classes * HISTOGRAM_BINS).reshape(num_classes, HISTOGRAM_BINS)


def class_balanced_thresholds(
    histogram: np.ndarray,
    share: float,
    *,
    cap: float = 1.0,
    rare_class: Literal["keep_top", "keep_all"] = "keep_top",
) -> np.ndarray:
    """The confidence that the most certain `share` of each class's predicted pixels reaches.

    Source: class-balanced self-training as used by BCL and LDBE (their threshold pools every fifth pixel of an image's
    sorted list; this one pools all, in bins that resolve 1 - p to 0.2 %).

    Args:
        histogram: (K, 8192) of `confidence_histogram`, summed over the whole set.
        share: in [0, 1]; with 0 the rule keeps nothing.
        cap: no threshold of a predicted class is higher; SDCA's is 0.9 (with share 0.5), LDBE's 0.999999999.
        rare_class: where int(count * share) is 0, "keep_top" keeps the most certain bin; "keep_all" accepts the class
            whole, which is what the index -0 does in the authors' code.

    Returns:
        (K,) float32 thresholds; 1, which no stored confidence reaches, for a class that was never predicted.
    """
    thresholds = np.ones(len(histogram), np.float32)
    if share == 0:
        return thresholds
    for k, counts in enumerate(histogram):
        total = int(counts.sum())
        if total == 0:
            continue
        wanted = int(total * share)
        if wanted == 0 and rare_class == "keep_all":
            wanted = total
        from_top = np.cumsum(counts[::-1])
        lowest_bin = HISTOGRAM_BINS - 1 - int(np.searchsorted(from_top, max(1, wanted)))
        thresholds[k] = min(cap, float(decode_confidence(np.array(lowest_bin * 8))))
    return thresholds


def image_threshold(confidence: np.ndarray, share: float) -> float:
    """The n-th largest confidence of an image, n = int(pixels * share): its own top share lies *strictly* above it."""
    flat = confidence.ravel()
    wanted = int(flat.size * share)
    return float(np.partition(flat, flat.size - wanted)[flat.size - wanted]) if wanted else 1.0


def union_pseudo_label(
    probability: np.ndarray, thresholds: np.ndarray, image_share: float, *, rule: Literal["any_class", "top1"]
) -> np.ndarray:
    """Union of the class-balanced rule with the image's own most certain share, the label of BCL and LDBE.

    Args:
        probability: (K, H, W) softmax outputs.
        thresholds: (K,) class-balanced thresholds.
        image_share: share of the image's pixels that is kept whatever their class, in [0, 1].
        rule: "any_class" keeps a pixel where *some* class exceeds its own threshold, even one that is not the label
            (the authors' code); "top1" where the predicted class does.

    Returns:
        (H, W) uint8: the predicted class, or 255.
    """
    label = probability.argmax(0)
    confidence = np.take_along_axis(probability, label[None], 0)[0]
    if rule == "any_class":
        by_class = (probability > thresholds[:, None, None]).any(0)
    else:
        by_class = confidence > thresholds[label]
    keep = by_class | (confidence > image_threshold(confidence, image_share))
    return np.where(keep, label, IGNORE).astype(np.uint8)


def threshold_top1(label: np.ndarray, confidence: np.ndarray, thresholds: np.ndarray, image_share: float) -> np.ndarray:
    """`union_pseudo_label` with rule "top1", from a stored label and confidence: no second inference.

    Args:
        label: (H, W) predicted train ids.
        confidence: (H, W) float in [0, 1].
            A pixel of confidence 0, which several networks disagree on, is never kept.
        thresholds: (K,), reached or exceeded by what is kept (they are lower edges of histogram bins).
        image_share: in [0, 1].

    Returns:
        (H, W) uint8: the predicted class, or 255.
    """
    keep = (confidence >= thresholds[label]) | (confidence > image_threshold(confidence, image_share))
    return np.where(keep & (confidence > 0), label, IGNORE).astype(np.uint8)


def reliability_counts(confidence: np.ndarray, correct: np.ndarray) -> np.ndarray:
    """(20, 3) float64: per bin of confidence its pixels, those that are right, and their summed confidence.

    Counts of several images add up.

    Args:
        confidence: (N,) in [0, 1].
        correct: (N,) bool.
    """
    slot = np.minimum((confidence * RELIABILITY_BINS).astype(np.int64), RELIABILITY_BINS - 1)
    columns = (None, correct, confidence)
    return np.stack([np.bincount(slot, weights=w, minlength=RELIABILITY_BINS).astype(np.float64) for w in columns], 1)
