"""Losses that want two networks, or two views, to see the same: relations of pixels, and assignments to prototypes."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import mean_over_ranks


def relation_consistency(student: Tensor, teacher: Tensor) -> Tensor:
    """Mean squared difference of two matrices of cosines, each of an image's pixels among one another.

    Source: CRDA (2208.11084), its pixel-wise inter-relations; checked against `cosine_pairwise` of kw01sg/CRDA.

    Args:
        student: (B, K, N) logits of N pixels of each image; gradient flows through them.
        teacher: (B, K, N) of the same pixels.

    Returns:
        Scalar in [0, 4].
    """
    mine, theirs = (F.normalize(x, dim=1) for x in (student, teacher.detach()))
    return F.mse_loss(mine.transpose(1, 2) @ mine, theirs.transpose(1, 2) @ theirs)


def assignment_consistency(student: Tensor, teacher: Tensor, seen: Tensor) -> Tensor:
    """Kullback-Leibler divergence of one view's assignments to prototypes from another's.

    Source: ProDA (2101.10979), its structure learning, where the weak view teaches the strong one; checked against
    `CustomModel.step` of microsoft/ProDA, which averages over all B K h w elements: 1 / K of the mean over pixels.

    Args:
        student: (B, K, h, w) assignments in logits, e.g. distances to prototypes, negated.
        teacher: (B, K, h, w) assignments in [0, 1], without gradient.
        seen: (B, h, w) bool, the pixels that both views show.

    Returns:
        Scalar, the mean over elements of pixels seen, on all ranks; 0 where there are none.
    """
    divergence = F.kl_div(student.log_softmax(1), teacher.detach(), reduction="none").sum(1)
    count = mean_over_ranks(seen.sum().to(divergence.dtype)).clamp_min(1)
    return (divergence * seen).sum() / (count * student.shape[1])
