"""Losses of a metric in which each class has several modes, and of two domains that share them."""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.distributed import mean_over_ranks
from udaseg.losses.contrastive import masked_average_pool
from udaseg.losses.segmentation import cross_entropy
from udaseg.types import IGNORE


def multimodal_loss(cosine: Tensor, label: Tensor, *, sigma: float, margin: float) -> tuple[Tensor, Tensor]:
    """How well cells are told by the nearest mode of each class, and by what margin.

    With d_k the Euclidean distance of a cell's unit vector to the nearest mode of class k, the first is the
    cross-entropy of softmax_k(-d_k^2 / (2 sigma^2)), the second max(0, d_y - min over k != y of d_k + margin).

    Source: RepMet (1806.04728), eq. 2 to 5, whose class posterior too is that of the nearest representative; there it
    is not normalised over classes, as what is left is the background's.

    Args:
        cosine: (B, K, M, h, w) of the unit vectors of cells with those of each class's modes, K >= 2.
        label: (B, h, w) int64 train ids, 255 = ignore.
        sigma: width of a mode, > 0; RepMet's is 0.5.
        margin: >= 0; RepMet's is 1.

    Returns:
        Two scalars, means over the labelled cells of all ranks; 0 where there is none.
    """
    squared = (2 - 2 * cosine).amin(2)
    distance, labelled = squared.clamp_min(1e-6).sqrt(), label != IGNORE
    own = label.where(labelled, 0)[:, None]
    other = distance.scatter(1, own, torch.inf).amin(1)
    missing = (distance.gather(1, own)[:, 0] - other + margin).clamp_min(0) * labelled
    count = mean_over_ranks(labelled.sum().to(missing.dtype)).clamp_min(1e-12)
    return cross_entropy(-squared / (2 * sigma**2), label), missing.sum() / count


def mode_alignment(source: Tensor, source_mode: Tensor, target: Tensor, target_mode: Tensor, *, modes: int) -> Tensor:
    """Mean squared distance of the mean vectors of source and target cells that map to the same mode.

    Source: our reconstruction of DRSL's mode alignment (2206.09683).

    Args:
        source, target: (B, A, h, w); pair i is (source i, target i).
        source_mode, target_mode: (B, h, w) int64, `modes` or more where a cell maps to none.
        modes: how many there are, of all classes together.

    Returns:
        Scalar, the mean over the modes that both images of a pair show, and over the pairs of all ranks.
    """
    (mine, here), (theirs, there) = (
        masked_average_pool(x, mode, modes) for x, mode in ((source, source_mode), (target, target_mode))
    )
    shared = here & there
    total = ((mine - theirs).square().sum(2) * shared).sum()
    return total / mean_over_ranks(shared.sum().to(total.dtype)).clamp_min(1e-12)
