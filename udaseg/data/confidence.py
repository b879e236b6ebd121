"""The scales that confidence and the probabilities of all classes are stored on, in 16 bits, and histograms.

Without torch, for the tasks that read what is stored.
"""

from __future__ import annotations

import numpy as np

CODES_PER_NAT = 4096
"""Stored confidence is round(-ln(1 - p) * 4096) in 16 bits: even near 1 it tells .9985 from .99999."""


HISTOGRAM_BINS = 8192
"""Bins of a confidence histogram, 8 codes each: (1 - p) is resolved to 0.2 %."""


def encode_confidence(probability: np.ndarray) -> np.ndarray:
    """uint16 codes of top-1 probabilities in [0, 1], on the scale of -ln(1 - p)."""
    nats = -np.log(np.maximum(1.0 - probability.astype(np.float64), 1e-12))
    return np.clip(np.rint(nats * CODES_PER_NAT), 0, 65535).astype(np.uint16)


def decode_confidence(code: np.ndarray) -> np.ndarray:
    """float32 probabilities of `encode_confidence`'s codes."""
    return (-np.expm1(-code.astype(np.float64) / CODES_PER_NAT)).astype(np.float32)


DISTRIBUTION_STRIDE = 8
"""Pixels of an image in a cell of its stored distribution over classes."""


def distribution_size(height: int, width: int) -> tuple[int, int]:
    """Cells of an image's stored distribution, the last of which may reach beyond it."""
    return -(-height // DISTRIBUTION_STRIDE), -(-width // DISTRIBUTION_STRIDE)


def encode_distribution(probability: np.ndarray) -> np.ndarray:
    """uint16 codes of probabilities in [0, 1], on the scale of -ln p: 0.02 % apart down to 1e-7; less is 0."""
    nats = -np.log(np.maximum(probability.astype(np.float64), 1e-12))
    return np.clip(np.rint(nats * CODES_PER_NAT), 0, 65535).astype(np.uint16)


def decode_distribution(code: np.ndarray) -> np.ndarray:
    """float32 probabilities of `encode_distribution`'s codes."""
    return np.where(code == 65535, np.float32(0), np.exp(-code.astype(np.float32) / CODES_PER_NAT))


def confidence_histogram(label: np.ndarray, code: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, 8192) int64 counts of the confidence codes of the pixels predicted as each class; histograms add up."""
    slot = label.astype(np.int64).ravel() * HISTOGRAM_BINS + (code.astype(np.int64).ravel() >> 3)
    return np.bincount(slot, minlength=num_classes * HISTOGRAM_BINS).reshape(num_classes, HISTOGRAM_BINS)
