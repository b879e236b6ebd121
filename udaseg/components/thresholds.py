"""Pseudo-labels over a whole target set: the thresholds that confidence has to reach.

Without torch, for the tasks that read what is stored.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from udaseg.data.confidence import HISTOGRAM_BINS, decode_confidence
from udaseg.types import IGNORE


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
        share: in [0, 1]; with 0 a class's own threshold is 1, so that the rule keeps what reaches the cap.
        cap: no threshold of a predicted class is higher, whatever the share; SDCA's is 0.9 (with share 0.5), LDBE's
            0.999999999.
        rare_class: where int(count * share) is 0, "keep_top" keeps the most certain bin; "keep_all" accepts the class
            whole, which is what the index -0 does in the authors' code.

    Returns:
        (K,) float32 thresholds; 1, which no stored confidence reaches, for a class that was never predicted.
    """
    thresholds = np.ones(len(histogram), np.float32)
    for k, counts in enumerate(histogram):
        total = int(counts.sum())
        if total == 0:
            continue
        if share == 0:
            thresholds[k] = cap
            continue
        wanted = int(total * share)
        if wanted == 0 and rare_class == "keep_all":
            wanted = total
        from_top = np.cumsum(counts[::-1])
        lowest_bin = HISTOGRAM_BINS - 1 - int(np.searchsorted(from_top, max(1, wanted)))
        whole = wanted == total and lowest_bin > 0  # of which a pixel that was rounded up lies below its bin's edge
        thresholds[k] = min(cap, float(decode_confidence(np.array(lowest_bin * 8 - whole))))
    return thresholds


def image_threshold(confidence: np.ndarray, share: float) -> float:
    """The n-th largest confidence of an image, n = int(pixels * share), which its own top share reaches; inf for n = 0.

    Equal confidences stand or fall together, so that more than n pixels may reach it; with a share of 1 all do.
    """
    flat = confidence.ravel()
    wanted = int(flat.size * share)
    return float(np.partition(flat, flat.size - wanted)[flat.size - wanted]) if wanted else float("inf")


def union_pseudo_label(
    probability: np.ndarray, thresholds: np.ndarray, image_share: float, *, rule: Literal["any_class", "top1"]
) -> np.ndarray:
    """Union of the class-balanced rule with the image's own most certain share, the label of BCL and LDBE.

    Args:
        probability: (K, H, W) softmax outputs. A pixel that is 0 for all classes, which several networks disagree on,
            is never kept.
        thresholds: (K,) class-balanced thresholds.
        image_share: share of the image's pixels that is kept whatever their class, in [0, 1].
        rule: "any_class" keeps a pixel where *some* class exceeds its own threshold, even one that is not the label
            (the authors' code); "top1" where the predicted class does. The image's share is what reaches
            `image_threshold`, with "any_class" what exceeds it, as in the authors' code; where nothing can exceed it,
            as confidence is saturated, what reaches it too (there: nothing).

    Returns:
        (H, W) uint8: the predicted class, or 255.
    """
    label = probability.argmax(0)
    confidence = np.take_along_axis(probability, label[None], 0)[0]
    lowest = image_threshold(confidence, image_share)
    if rule == "any_class":
        by_class = (probability > thresholds[:, None, None]).any(0)
        by_image = confidence > lowest if lowest < confidence.max() else confidence >= lowest
    else:
        by_class = confidence > thresholds[label]
        by_image = confidence >= lowest
    keep = (by_class | by_image) & (confidence > 0)
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
    keep = (confidence >= thresholds[label]) | (confidence >= image_threshold(confidence, image_share))
    return np.where(keep & (confidence > 0), label, IGNORE).astype(np.uint8)
