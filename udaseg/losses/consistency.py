"""Losses that want two networks, or two views, to see the same: relations, assignments, significant pixels."""

from __future__ import annotations

from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import mean_over_ranks
from udaseg.losses.segmentation import Reduction, output_cross_entropy, with_detail
from udaseg.types import IGNORE, SegOutput

SignificanceForm = Literal["paper", "released"]


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
    count = mean_over_ranks(seen.sum().to(divergence.dtype)).clamp_min(1e-12)
    return (divergence * seen).sum() / (count * student.shape[1])


def significant_cross_entropy(
    out: SegOutput,
    label: Tensor,
    weight: Tensor,
    significance: Tensor,
    *,
    form: SignificanceForm = "paper",
    reduction: Reduction = "all",
) -> Tensor:
    """Cross-entropy of a student's mixture with the teacher's labels, of those pixels alone that are significant.

    Source: CAMix (2108.03557), its significance-reweighted consistency; "released" is checked against the training
    script of qianyuzqy/CAMix.

    Args:
        out: of a `Segmenter`; gradient flows through it.
        label: (B, H, W) int64 train ids, 255 = ignore.
        weight: (B, H, W) >= 0, of each pixel's loss; it does not enter the denominator.
        significance: (B, H, W) in [0, 1].
        form: "paper" is the sum of significance * weight * loss over that of the significance, both of the pixels that
            `reduction` counts. "released" is the authors' code, which multiplies the mean over all pixels, a scalar, by
            the significance and takes the mean of that by significance: the scalar itself, or 0 where nothing is
            significant.
        reduction: see `udaseg.losses.segmentation.cross_entropy`.

    Returns:
        Scalar; 0 where nothing is significant.
    """
    if form == "released":
        anything = mean_over_ranks(significance.mean()) > 0
        return output_cross_entropy(out, label, weight, reduction=reduction) * anything

    def mean(logits: Tensor, label: Tensor, weight: Tensor, significance: Tensor) -> Tensor:
        loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
        total = (significance * weight * loss).sum()
        if reduction != "all":
            significance = significance * (label != IGNORE if reduction == "valid" else loss > 0)
        return total / mean_over_ranks(significance.sum()).clamp_min(1e-12)

    return with_detail(mean, out, label, weight, significance)
