"""Losses of a student that learns from another network's, or an earlier one's, predictions."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from udaseg.distributed import mean_over_ranks

DistillationForm = Literal["released", "kl"]


def distillation(student: Tensor, teacher: Tensor, seen: Tensor, *, form: DistillationForm = "kl") -> Tensor:
    """How far a student's class probabilities s are from a teacher's t.

    Source: ProDA (2101.10979), its distillation; "released" is checked against `CustomModel.step_distillation` of
    microsoft/ProDA.

    Args:
        student: (B, K, h, w) logits; gradient flows through them.
        teacher: (B, K, h, w) probabilities.
        seen: (B, h, w) bool, the pixels that have a teacher.
        form: "kl" is the divergence sum_k t_k (log t_k - log s_k), mean over pixels, which the paper names. "released"
            is the authors' code, which hands s where log s belongs: t_k (log t_k - s_k), mean over pixels and classes.
            Its least value is not at s = t, but where all of s lies on t's largest class.

    Returns:
        Scalar, over the pixels of all ranks; 0 where none is seen.
    """
    mine = student.softmax(1) if form == "released" else student.log_softmax(1)
    loss = (torch.xlogy(teacher, teacher) - teacher * mine).sum(1)
    elements = student.shape[1] if form == "released" else 1
    count = mean_over_ranks(seen.sum().to(loss.dtype)).clamp_min(1e-12)
    return (loss * seen).sum() / (count * elements)


def as_before(logits: Tensor, old_classes: int, background: int) -> Tensor:
    """(B, K_old, ...) logits of the old classes where a network does not yet tell the new ones from the background.

    Their softmax has the probability of each old class, and of the background and all new ones together.

    Source: MiB (2002.00718), eq. 8.

    Args:
        logits: (B, K, ...), old classes first.
        old_classes: K_old.
        background: the old class that pixels of new ones had.
    """
    joined = torch.cat([logits[:, background, None], logits[:, old_classes:]], 1).logsumexp(1, keepdim=True)
    return torch.cat([logits[:, :background], joined, logits[:, background + 1 : old_classes]], 1)


def unbiased_distillation(logits: Tensor, old_logits: Tensor, *, background: int) -> Tensor:
    """Cross-entropy of a network with the one before it, which took new classes for background; mean over old classes.

    Source: MiB (2002.00718), eq. 7 and 8, which UCD (2203.14098) keeps; checked against
    `UnbiasedKnowledgeDistillationLoss` of ygjwd12345/UCD.

    Args:
        logits: (B, K, h, w), old classes first; gradient flows through them.
        old_logits: (B, K_old, h, w) of the network before.
        background: the old class that pixels of new ones had.

    Returns:
        Scalar, the mean over pixels.
    """
    old_classes = old_logits.shape[1]
    mine = as_before(logits, old_classes, background).log_softmax(1)
    return -(old_logits.softmax(1) * mine).sum(1).mean() / old_classes
