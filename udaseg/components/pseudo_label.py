"""Rules that turn the predictions of a batch into pseudo-labels, while a network trains."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.prototypes import prototype_logits
from udaseg.distributed import mean_over_ranks
from udaseg.types import IGNORE


def confident_share(confidence: Tensor, threshold: float) -> Tensor:
    """Share of all pixels of all ranks with confidence >= threshold: the quality weight q of the DACS line.

    Args:
        confidence: (B, H, W) in [0, 1].
        threshold: in [0, 1].

    Returns:
        Scalar tensor in [0, 1], without gradient.
    """
    return mean_over_ranks((confidence >= threshold).float().mean())


def prototype_transfer(
    feature: Tensor, prototypes: Tensor, present: Tensor, *, temperature: float, threshold: float
) -> Tensor:
    """Non-parametric label transfer: each cell takes the class of its nearest prototype by cosine.

    A reconstruction for BCL (ECCV 2022): its released code computes such labels and never trains on them.

    Args:
        feature: (B, A, h, w).
        prototypes: (B, K, A).
        present: (B, K) bool, the classes that may be given.
        temperature: > 0, of the softmax over classes whose maximum is the confidence.
        threshold: cells less confident than this become 255; in [0, 1].

    Returns:
        (B, h, w) int64 train ids, 255 = not confident. No gradient.
    """
    with torch.no_grad():
        confidence, label = prototype_logits(feature, prototypes, present, temperature=temperature).softmax(1).max(1)
        known = present.any(1)[:, None, None]
        return torch.where((confidence > threshold) & known, label, IGNORE)


def hybrid_label(static: Tensor, dynamic: Tensor) -> Tensor:
    """Hybrid pseudo-label: `static` (B, H, W) where it is known, elsewhere `dynamic` (B, h, w), nearest-upsampled."""
    upsampled = F.interpolate(dynamic[:, None].float(), size=static.shape[1:], mode="nearest")[:, 0].long()
    return torch.where(static != IGNORE, static, upsampled)


def normalised_certainty(probability: Tensor) -> Tensor:
    """(B, H, W) of 1 - entropy / ln(K) of (B, K, H, W) probabilities: 0 = all classes alike, 1 = one is sure."""
    entropy = -torch.xlogy(probability, probability).sum(1)
    return (1 - entropy / math.log(max(2, probability.shape[1]))).clamp(0, 1)
