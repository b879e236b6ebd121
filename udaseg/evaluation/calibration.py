"""Whether confidence is what it says."""

from __future__ import annotations

import numpy as np

RELIABILITY_BINS = 20


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


def calibration_error(reliability: np.ndarray) -> float | None:
    """Expected calibration error: mean over pixels of |accuracy - confidence| of their bin. None without any."""
    count, right, confidence = reliability.T
    return float(np.abs(right - confidence).sum() / count.sum()) if count.sum() else None
