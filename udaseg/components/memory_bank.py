"""What a contrastive loss remembers of each class beyond the present step."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udaseg.components.prototypes import pooled_means
from udaseg.distributed import all_samples

EMPTY = -1
"""The label of a place in a queue that nothing has been put into yet."""


class MemoryBank(nn.Module):
    """The last means of each class, one a step in which it was seen; a new one takes the place of the oldest.

    Each class begins with one zero vector, an entry like any other until it is the oldest. A step's pixels are those of
    all ranks, which therefore hold the same.

    Source: SePiCo (2204.08808); checked against `ProtoEstimator` of BIT-DA/SePiCo.

    Args:
        num_classes, channels: K and A.
        length: L, the most entries of a class.
    """

    entries: Tensor
    pushed: Tensor

    def __init__(self, num_classes: int, channels: int, length: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(num_classes, length, channels))
        self.register_buffer("pushed", torch.ones(num_classes, dtype=torch.int64))

    @property
    def filled(self) -> Tensor:
        """(K,) int64: how many of a class's L entries there are, which are its first ones."""
        return self.pushed.clamp_max(self.entries.shape[1])

    @torch.no_grad()
    def update(self, feature: Tensor, label: Tensor) -> None:
        """Take in a step's pixels of all ranks: feature (N, A), label (N,) int64 train ids, 255 = ignore."""
        count, mean = pooled_means(feature.to(self.entries.dtype), label, len(self.entries))
        shown = count > 0
        oldest = torch.arange(len(count), device=count.device), self.pushed % self.entries.shape[1]
        self.entries[oldest] = torch.where(shown[:, None], mean, self.entries[oldest])
        self.pushed += shown


class PixelQueue(nn.Module):
    """The last pixels that a contrastive loss has seen, with their labels; new ones push out the oldest.

    It holds those of all ranks, in the samples' order, so that all ranks hold the same. Source: the memory bank of RCCR
    (2110.05170), there a list of the tensors of single steps.

    Args:
        length: L, pixels that it holds.
        channels: A.
    """

    entries: Tensor
    labels: Tensor

    def __init__(self, length: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(length, channels))
        self.register_buffer("labels", torch.full((length,), EMPTY))

    @torch.no_grad()
    def push(self, feature: Tensor, label: Tensor) -> None:
        """Take in the samples of all ranks: n pixels of each, (B, n, A), and their labels (B, n) >= 0."""
        own = torch.cat([feature, label[..., None].to(feature.dtype)], 2).to(self.entries.dtype)
        new, length = all_samples(own).flatten(0, 1), len(self.entries)
        self.entries.copy_(torch.cat([self.entries, new[:, :-1]])[-length:])
        self.labels.copy_(torch.cat([self.labels, new[:, -1].long()])[-length:])
