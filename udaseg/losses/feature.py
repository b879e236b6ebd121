"""Losses that compare features: maximum mean discrepancy and the distance to ImageNet features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

KERNELS = 5
"""Bandwidths of `mmd`."""
BASE = 2.0
"""Ratio of consecutive bandwidths."""


def mmd(source: Tensor, target: Tensor) -> Tensor:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels (biased estimate), 0 for equal sets.

    With D the squared distances among all n = 2 B vectors, the kernels are exp(-D / (b BASE^i)), i = 0 .. KERNELS - 1,
    and b is the mean of D over pairs of different vectors, divided by BASE^(KERNELS // 2), a constant to the gradient.

    Source: DSP (2107.09600); checked against `mmd_rbf` of GaoLii/DSP.

    Args:
        source, target: (B, A) features.

    Returns:
        Scalar.
    """
    both = torch.cat([source, target])
    count, half = len(both), len(source)
    distance = (both[:, None] - both[None]).square().sum(2)
    bandwidth = distance.detach().sum() / (count * (count - 1)) / BASE ** (KERNELS // 2)
    bandwidth = torch.where(bandwidth > 0, bandwidth, 1.0)  # equal vectors have distance 0 at any width
    kernel = torch.stack([torch.exp(-distance / (bandwidth * BASE**i)) for i in range(KERNELS)]).sum(0)
    return kernel[:half, :half].mean() + kernel[half:, half:].mean() - 2 * kernel[:half, half:].mean()


def upsampled_mean(feature: Tensor, mask: Tensor) -> Tensor:
    """Mean over all pixels of mask * (bilinear upsampling of the features to the mask's size, corners aligned).

    The upsampling is linear, so its adjoint is applied to the mask instead: no feature map of full size exists.

    Args:
        feature: (B, A, h, w).
        mask: (B, H, W) float; its zeros count in the mean.

    Returns:
        (B, A).
    """
    with torch.enable_grad():
        cells = feature.new_zeros(len(feature), 1, *feature.shape[-2:], requires_grad=True)
        up = F.interpolate(cells, size=mask.shape[-2:], mode="bilinear", align_corners=True)
        (share,) = torch.autograd.grad((up * mask[:, None]).sum(), cells)
    return (feature * share).sum((2, 3)) / mask[0].numel()
