"""State about classes that outlives a step: persistent buffers, equal on all ranks."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from udaseg.dist import sum_over_ranks


class DomainBias(nn.Module):
    """BCL's calibration: how far target prototypes lie from source prototypes, class by class, as a running mean.

    bias[c] <- m * bias[c] + (1 - m) * mean over pairs of (target prototype - source prototype), where both exist. The
    additive form and m are a reconstruction: the paper's formula could not be read, and the released code has none.
    """

    bias: Tensor

    def __init__(self, num_classes: int, channels: int, *, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        self.momentum = momentum
        self.register_buffer("bias", torch.zeros(num_classes, channels))

    def calibrated(self, prototypes: Tensor) -> Tensor:
        """(B, K, A) source prototypes moved toward the target; detached."""
        return prototypes.detach() + self.bias

    @torch.no_grad()
    def update(self, source: Tensor, target: Tensor, shared: Tensor) -> None:
        """Take in the pairs of all ranks: prototypes (B, K, A), and shared (B, K) bool where both domains have one."""
        weight = shared.to(source.dtype)
        total = sum_over_ranks(torch.einsum("bk,bka->ka", weight, target - source))
        count = sum_over_ranks(weight.sum(0))
        seen = (count > 0)[:, None]
        mean = total / count.clamp_min(1)[:, None]
        self.bias.copy_(torch.where(seen, self.momentum * self.bias + (1 - self.momentum) * mean, self.bias))


class ClassGaussians(nn.Module):
    """Mean and diagonal variance of all features of each class ever seen, on all ranks: pooled exactly, no momentum.

    Source: SDCA (2204.08808); checked against `semantic_dist_estimator` of BIT-DA/SDCA, where each rank keeps its own.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_classes, channels))
        self.register_buffer("variance", torch.zeros(num_classes, channels))

    @torch.no_grad()
    def update(self, feature: Tensor, label: Tensor) -> None:
        """Take in the pixels of all ranks: feature (N, A), label (N,) int64 train ids, 255 = ignore."""
        labelled = label < len(self.count)
        x, y = feature[labelled].to(self.mean.dtype), label[labelled]
        count = sum_over_ranks(torch.bincount(y, minlength=len(self.count)).to(self.count.dtype))
        divisor = count.clamp_min(1).to(x.dtype)[:, None]
        mean = sum_over_ranks(torch.zeros_like(self.mean).index_add_(0, y, x)) / divisor
        variance = sum_over_ranks(torch.zeros_like(self.mean).index_add_(0, y, (x - mean[y]).square())) / divisor
        share = (count / (count + self.count).clamp_min(1)).to(x.dtype)[:, None]
        shift = mean - self.mean
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * shift.square())
        self.mean.add_(share * shift)
        self.count.add_(count)
