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
    count = mean_over_ranks(seen.sum().to(loss.dtype)).clamp_min(1)
    return (loss * seen).sum() / (count * elements)
