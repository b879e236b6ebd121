"""Segmentation metrics: confusion counts first, which add up over images and workers; ratios last."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from udaseg.types import IGNORE


def confusion(label: np.ndarray, prediction: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, K) int64 pixel counts, rows = true class, columns = predicted class; pixels labelled 255 are left out.

    Args:
        label: any shape, train ids or 255.
        prediction: the same shape, train ids.
        num_classes: K.

    Raises ValueError where shapes differ, or a labelled pixel is predicted as what is no class.
    """
    if label.shape != prediction.shape:
        raise ValueError(f"label has shape {label.shape} and prediction {prediction.shape}; they must be equal")
    known = label != IGNORE
    predicted = prediction[known].astype(np.int64)
    if predicted.size and not 0 <= predicted.min() <= predicted.max() < num_classes:
        raise ValueError(f"predictions are {predicted.min()} to {predicted.max()}; {num_classes} classes are 0 and on")
    slot = label[known].astype(np.int64) * num_classes + predicted
    return np.bincount(slot, minlength=num_classes**2).reshape(num_classes, num_classes)


def iou(counts: np.ndarray) -> np.ndarray:
    """(K,) intersection over union of each class in [0, 1]; NaN for a class neither labelled nor predicted."""
    hit = np.diag(counts).astype(np.float64)
    union = counts.sum(0) + counts.sum(1) - hit
    return np.divide(hit, union, out=np.full(len(counts), np.nan), where=union > 0)


def mean_iou(counts: np.ndarray, classes: Sequence[int] | None = None) -> float:
    """Mean of the classes' IoU in [0, 1], NaN classes left out; of some classes alone where they are given."""
    values = iou(counts) if classes is None else iou(counts)[list(classes)]
    return float("nan") if np.isnan(values).all() else float(np.nanmean(values))


def pixel_accuracy(counts: np.ndarray) -> float:
    """Share of labelled pixels that are predicted right, in [0, 1]."""
    return float(np.trace(counts) / counts.sum()) if counts.sum() else float("nan")


def gap_closed(source_only: float, adapted: float, oracle: float) -> float:
    """(adapted - source-only) / (oracle - source-only): 0 = no better than source-only, 1 = as good as the oracle."""
    gap = oracle - source_only
    return (adapted - source_only) / gap if gap else float("nan")
