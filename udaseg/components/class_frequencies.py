"""How often classes are labelled, over the last steps."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udaseg.distributed import sum_over_ranks

LEAST = 1e-4
"""Share that a class has at least, so that its logarithm is finite where it is not seen."""


class ClassFrequencies(nn.Module):
    """Shares of the classes in the labels of the last steps, on all ranks.

    Args:
        num_classes: K.
        momentum: what a step leaves of the counts, in [0, 1).
    """

    counts: Tensor

    def __init__(self, num_classes: int, *, momentum: float = 0.98) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        self.momentum = momentum
        self.register_buffer("counts", torch.zeros(num_classes, dtype=torch.float64))

    @torch.no_grad()
    def update(self, label: Tensor) -> None:
        """Take in the pixels of all ranks: train ids of any shape, 255 = left out."""
        slot = label.clamp_max(len(self.counts)).flatten()  # what is left out is a class more, which is dropped
        counts = self.counts.new_zeros(len(self.counts) + 1).index_add_(0, slot, torch.ones_like(slot).to(self.counts))
        self.counts.mul_(self.momentum).add_(sum_over_ranks(counts[:-1]))

    def shares(self) -> Tensor:
        """(K,) float, `LEAST` or more; all alike before a label is seen."""
        total = self.counts.sum()
        least = torch.finfo(total.dtype).tiny  # counts fade while no step shows a label
        shares = torch.where(total > 0, self.counts / total.clamp_min(least), 1 / len(self.counts))
        return shares.float().clamp_min(LEAST)
