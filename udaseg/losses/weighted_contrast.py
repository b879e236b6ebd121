"""Contrast of pixels whose pairs weigh as much as both are known."""

from __future__ import annotations

import functools

import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import mean_over_ranks
from udaseg.losses.pixel_pair import pair_contrast
from udaseg.types import IGNORE


def weighted_contrast(
    anchor: Tensor,
    anchor_label: Tensor,
    anchor_weight: Tensor,
    key: Tensor,
    key_label: Tensor,
    key_weight: Tensor,
    *,
    temperature: float,
    unshifted_negatives: bool = False,
    rows: int = 512,
) -> Tensor:
    """`pair_contrast` of G groups by cosines over a temperature; a pair weighs the product of what is known of both.

    Source: UCD (2203.14098), where that is the probability of each class, so that a pair weighs as much as both are
    likely to be of one; checked against `PixelConLossV2` of ygjwd12345/UCD. TADA (2109.04813), where it is the
    confidence; checked against `PixelContrastLoss_UncertaintyAware._contrastive` of ETHRuiGong/TADA.

    Args:
        anchor: (G, N, A) pixels of any length.
        anchor_label: (G, N) int64, 255 = no anchor.
        anchor_weight: (G, N, D) >= 0; w_ij is the inner product of anchor i's and key j's.
        key: (G, M, A). Key i is taken to be the same pixel as anchor i.
        key_label: (G, M) int64, 255 = no key.
        key_weight: (G, M, D) >= 0.
        temperature: > 0.
        unshifted_negatives, rows: see `pair_contrast`.

    Returns:
        Scalar: the mean, over the anchors of all ranks that have a positive, of the mean over their positives; 0 where
        none has.
    """
    total, anchors = anchor.sum() * 0, anchor.new_zeros(())
    for a, y, u, k, z, v in zip(anchor, anchor_label, anchor_weight, key, key_label, key_weight, strict=True):
        unit, keys, valid = F.normalize(a, dim=1) / temperature, F.normalize(k, dim=1), z != IGNORE
        weigh = functools.partial(_inner, u, v)
        sums, counts = pair_contrast(
            unit, y, keys, z, weight=weigh, valid=valid, unshifted_negatives=unshifted_negatives, rows=rows
        )
        has = (y != IGNORE) & (counts > 0)
        total, anchors = total + (sums * has / counts.clamp_min(1)).sum(), anchors + has.sum()
    return total / mean_over_ranks(anchors).clamp_min(1e-12)


def _inner(anchor: Tensor, key: Tensor, part: slice) -> Tensor:
    return anchor[part] @ key.T
