"""Losses that compare features: maximum mean discrepancy and the distance to ImageNet features."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.dist import mean_over_ranks
from udaseg.types import IGNORE


def mmd(source: Tensor, target: Tensor, *, kernels: int = 5, base: float = 2.0) -> Tensor:
    """Squared maximum mean discrepancy with a sum of Gaussian kernels (biased estimate), 0 for equal sets.

    With D the squared distances among all n = 2 B vectors, the kernels are exp(-D / (b base^i)), i = 0 .. kernels - 1,
    and b is the mean of D over pairs of different vectors, divided by base^(kernels // 2), a constant to the gradient.

    Source: DSP (2107.09600); checked against `mmd_rbf` of GaoLii/DSP.

    Args:
        source, target: (B, A) features.
        kernels: number of bandwidths.
        base: ratio of consecutive bandwidths.

    Returns:
        Scalar.
    """
    both = torch.cat([source, target])
    count, half = len(both), len(source)
    distance = (both[:, None] - both[None]).square().sum(2)
    bandwidth = distance.detach().sum() / (count * (count - 1)) / base ** (kernels // 2)
    bandwidth = bandwidth.clamp_min(torch.finfo(distance.dtype).tiny)  # equal vectors have distance 0 at any width
    kernel = torch.stack([torch.exp(-distance / (bandwidth * base**i)) for i in range(kernels)]).sum(0)
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


def majority_label(label: Tensor, scale: int, *, num_classes: int, min_share: float = 0.75) -> Tensor:
    """Labels at 1/scale of the size: the commonest class of each scale x scale window, 255 where it has too few pixels.

    Ignored pixels count as a class of their own, as in `downscale_label_ratio` of lhoyer/DAFormer.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore; H and W are multiples of `scale`.
        scale: pixels of a window's side.
        num_classes: K.
        min_share: smallest share of the window that the class must have, in [0, 1].

    Returns:
        (B, H / scale, W / scale) int64.
    """
    one_hot = F.one_hot(label.clamp_max(num_classes), num_classes + 1).permute(0, 3, 1, 2).float()
    share, majority = F.avg_pool2d(one_hot, scale).max(1)
    return majority.masked_fill((majority == num_classes) | (share < min_share), IGNORE)


def feature_distance(feature: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean Euclidean distance of two feature maps over the pixels of a mask, counted on all ranks; 0 where it is empty.

    Source: DAFormer (2111.14887), eq. 3-5; checked against `DACS.masked_feat_dist` of lhoyer/MIC.

    Args:
        feature, reference: (B, A, h, w).
        mask: (B, h, w) bool.

    Returns:
        Scalar.
    """
    distance = torch.linalg.vector_norm(feature - reference, dim=1)
    return (distance * mask).sum() / mean_over_ranks(mask.sum().to(distance.dtype)).clamp_min(1e-12)
