"""Thresholds of confidence that follow each class by itself while a network trains."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from udaseg.distributed import sum_over_ranks
from udaseg.types import IGNORE

Reliability = Literal["quality", "class"]
"""What a teacher's pixel weighs: the share of all pixels that are confident, the same for all of them, as in DACS and
its line; or 1 where it reaches the running threshold of its class, else 0."""
BINS = 1000


class ClassThresholds(nn.Module):
    """The confidence that the most certain share of each class's predicted pixels reaches, over the last steps.

    A threshold that is the same for all classes, or one quality for a whole batch, silences classes of which a network
    is never sure. The class-balanced rule of self-training (CBST, 1810.07911, with SDCA's cap) is kept here as a
    running histogram of each class's confidences, so that no pass over the target is needed.

    Args:
        num_classes: K.
        share: of each class's predicted pixels that count as reliable, in [0, 1].
        cap: no threshold is higher, in [0, 1]: what reaches it counts whatever the share. Also that of a class that was
            never predicted.
        momentum: what a step leaves of the histogram, in [0, 1).
    """

    histogram: Tensor

    def __init__(self, num_classes: int, *, share: float = 0.5, cap: float = 0.9, momentum: float = 0.98) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        self.share, self.cap, self.momentum = share, cap, momentum
        self.register_buffer("histogram", torch.zeros(num_classes, BINS, dtype=torch.float64))

    @torch.no_grad()
    def update(self, confidence: Tensor, label: Tensor) -> None:
        """Take in the pixels of all ranks: confidence (B, H, W) in [0, 1] and train ids (B, H, W), 255 = left out."""
        classes = len(self.histogram)
        # In double precision, so that no pixel is counted above its own confidence; NaN ends the step by its loss.
        place = (confidence.nan_to_num().double() * BINS).long().clamp_max(BINS - 1)
        slot = (label.clamp_max(classes) * BINS + place).flatten()  # what is left out is a class more, which is dropped
        ones = self.histogram.new_ones(()).expand(len(slot))
        counts = self.histogram.new_zeros((classes + 1) * BINS).index_add_(0, slot, ones).view(-1, BINS)[:classes]
        self.histogram.mul_(self.momentum).add_(sum_over_ranks(counts))

    def thresholds(self) -> Tensor:
        """(K,) float thresholds, lower edges of bins of 1/1000."""
        from_top = self.histogram.flip(1).cumsum(1)
        wanted = self.share * from_top[:, -1:]
        lowest = BINS - 1 - (from_top < wanted).sum(1)
        lowest = torch.where(wanted[:, 0] > 0, lowest, BINS)
        return (lowest.float() / BINS).clamp_max(self.cap)

    def reliable(self, confidence: Tensor, label: Tensor) -> Tensor:
        """(B, H, W) bool: the pixels that reach the threshold of their class; arguments as of `update`."""
        thresholds = self.thresholds()
        return (label != IGNORE) & (confidence >= thresholds[label.clamp_max(len(thresholds) - 1)])
