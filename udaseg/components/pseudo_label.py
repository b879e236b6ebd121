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
        return torch.where((confidence >= threshold) & known, label, IGNORE)


def hybrid_label(static: Tensor, dynamic: Tensor) -> Tensor:
    """Hybrid pseudo-label: `static` (B, H, W) where it is known, elsewhere `dynamic` (B, h, w), nearest-upsampled."""
    upsampled = F.interpolate(dynamic[:, None].float(), size=static.shape[1:], mode="nearest")[:, 0].long()
    return torch.where(static != IGNORE, static, upsampled)


@torch.no_grad()
def nearest_label(
    feature: Tensor,
    memory: Tensor,
    memory_label: Tensor,
    *,
    num_classes: int,
    neighbours: int,
    agreeing: int,
    rows: int = 1024,
) -> Tensor:
    """Each cell takes the class that most of its nearest remembered pixels have, where enough of them agree.

    Args:
        feature: (B, A, h, w), unit vectors for neighbours by cosine.
        memory: (M, A).
        memory_label: (M,) int64 train ids, 255 = an empty place, which agrees with none.
        num_classes: K.
        neighbours: how many vote.
        agreeing: how many votes the class must have.
        rows: cells at a time, so that memory grows with rows M.

    Returns:
        (B, h, w) int64 train ids, 255 where fewer agree.
    """
    found = []
    for cells in feature.movedim(1, -1).flatten(0, 2).split(rows):
        similarity = (cells @ memory.T).masked_fill(memory_label == IGNORE, -math.inf)
        nearest = memory_label[similarity.topk(min(neighbours, len(memory))).indices]
        votes = F.one_hot(nearest.clamp_max(num_classes), num_classes + 1).sum(1)[:, :num_classes]
        most, label = votes.max(1)
        found.append(label.masked_fill(most < agreeing, IGNORE))
    return torch.cat(found).view(len(feature), *feature.shape[2:])


def normalised_certainty(probability: Tensor) -> Tensor:
    """(B, H, W) of 1 - entropy / ln(K) of (B, K, H, W) probabilities: 0 = all classes alike, 1 = one is sure."""
    entropy = -torch.xlogy(probability, probability).sum(1)
    return (1 - entropy / math.log(max(2, probability.shape[1]))).clamp(0, 1)
