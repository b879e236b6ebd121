"""Contrastive losses among pixels, without ever holding a full matrix of their similarities."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from udaseg.distributed import mean_over_ranks

PairWeight = Callable[[slice], Tensor]
"""Rows of anchors -> (rows, M) weights of their pairs."""
OUTSIDE = 0
"""The label of a position that the detail crop does not cover."""


def pair_contrast(
    anchor: Tensor,
    anchor_label: Tensor,
    key: Tensor,
    key_label: Tensor,
    *,
    weight: PairWeight | None = None,
    valid: Tensor | None = None,
    rows: int = 512,
) -> tuple[Tensor, Tensor]:
    """Per anchor i: sum_j -w_ij log(e^s_ij / (e^s_ij + N_i)) over the other keys j of its label.

    s_ij is the inner product of anchor i and key j, and N_i the sum of e^s_in over the keys n of other labels.
    Similarities exist for `rows` anchors at a time and are computed again in the backward pass, so memory grows with
    N, not with N M.

    Args:
        anchor: (N, A), of the length that the loss means them to have.
        anchor_label: (N,) int64.
        key: (M, A). Key i is taken to be the same pixel as anchor i, hence no positive of it.
        key_label: (M,) int64.
        weight: of the pairs; 1 without it.
        valid: (M,) bool, the keys that there are; all without it.
        rows: anchors at a time.

    Returns:
        sums (N,) and the number of positives (N,) of each anchor.
    """

    def block(part: slice, anchor: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        similarity = anchor[part] @ key.T
        similarity = similarity - similarity.detach().max(1, keepdim=True).values  # cancels; keeps exp in range
        same = anchor_label[part, None] == key_label
        power = similarity.exp()
        negative = power.masked_fill(same if valid is None else same | ~valid, 0).sum(1, keepdim=True)
        log_share = similarity - (power + negative).clamp_min(torch.finfo(power.dtype).tiny).log()
        positive = (same if valid is None else same & valid).to(similarity.dtype)
        if part.start < len(key):
            positive.diagonal(part.start).zero_()  # each anchor's own pixel
        count = positive.sum(1)
        if weight is not None:
            positive = positive * weight(part)
        return -(positive * log_share).sum(1), count

    parts = [slice(start, min(start + rows, len(anchor))) for start in range(0, len(anchor), rows)]
    done = [checkpoint(block, part, anchor, key, use_reentrant=False, preserve_rng_state=False) for part in parts]
    return torch.cat([sums for sums, _ in done]), torch.cat([counts for _, counts in done])


def flatten(plane: Tensor, *, position_major: bool = False) -> Tensor:
    """(B, A, h, w) -> (B h w, A), image by image; position by position with `position_major`."""
    order = (2, 3, 0, 1) if position_major else (0, 2, 3, 1)
    return plane.permute(*order).reshape(-1, plane.shape[1])


def pixel_contrast(
    feature: Tensor,
    label: Tensor,
    *,
    valid: Tensor | None = None,
    group_size: int | None = None,
    position_major: bool = False,
    rows: int = 512,
) -> Tensor:
    """Contrast of every pixel with all others of its group, positives by label, cosines without a temperature.

    Source: CLUDA (2208.14227) in its single-resolution form; checked against `contrastive_loss` of user0407/CLUDA.

    Args:
        feature: (B, A, h, w).
        label: (B, h, w) int64. 255 is a class like any other, unless `valid` leaves it out.
        valid: (B, h, w) bool, the pixels that take part; all without it.
        group_size: consecutive images that are compared; None = all. The mean is over the anchors of all ranks.
        position_major: order features as the released code does, which pairs them with other pixels' labels if B > 1.
        rows: anchors at a time.

    Returns:
        Scalar, the mean over anchors.
    """
    total = feature.sum() * 0
    for group in _groups(len(feature), group_size):
        unit = F.normalize(flatten(feature[group], position_major=position_major), dim=1)
        flat, real = label[group].flatten(), None if valid is None else valid[group].flatten()
        sums, counts = pair_contrast(unit, flat, unit, flat, valid=real, rows=rows)
        total = total + _sum_of_anchors(sums, counts, real)
    return total / _count(label, valid)


def multi_resolution_contrast(
    context: Tensor,
    detail: Tensor,
    label: Tensor,
    detail_label: Tensor,
    attention: Tensor,
    pixel_weight: Tensor | None = None,
    *,
    valid: Tensor | None = None,
    detail_valid: Tensor | None = None,
    group_size: int | None = None,
    position_major: bool = False,
    rows: int = 512,
) -> Tensor:
    """Contrast of context pixels with context and detail pixels; a learned map shares each pair out between the two.

    A pair (i, j) of context pixels has weight W_ij = a_i a_j inside the detail crop and 0 for anchors outside it, a
    context-detail pair 1 - W_ij. Half the mean over anchors of their sum, divided by the number of context positives.

    Source: CLUDA (2208.14227); checked against `multi_resolution_cl` of user0407/CLUDA.

    Args:
        context: (B, A, h, w) features of the context crop.
        detail: (B, A, h, w) features of the detail crop in the context's geometry, zero outside.
        label: (B, h, w) int64.
        detail_label: (B, h, w) int64, the label inside the detail crop and `OUTSIDE` elsewhere. Where labels begin at
            0, class 0 counts as outside, as in the released code.
        attention: (B, h, w) in (0, 1).
        pixel_weight: (B, h, w) >= 0; pairs of mixed images weigh the product of their pixels' weights.
        valid: see `pixel_contrast`.
        detail_valid: (B, h, w) bool, the detail pixels that are keys; all without it, also the zeros outside.
        group_size: see `pixel_contrast`.
        position_major: see `pixel_contrast`.
        rows: anchors at a time.

    Returns:
        Scalar.
    """
    total = context.sum() * 0
    for group in _groups(len(context), group_size):
        anchor, detail_key = (
            F.normalize(flatten(feature[group], position_major=position_major), dim=1) for feature in (context, detail)
        )
        anchor_label, cropped_label, share = (x[group].flatten() for x in (label, detail_label, attention))
        pixel = torch.ones_like(share) if pixel_weight is None else pixel_weight[group].flatten()
        real, real_detail = (None if x is None else x[group].flatten() for x in (valid, detail_valid))
        inside = cropped_label != OUTSIDE
        context_weight, detail_weight = _pair_weights(share, share * inside, pixel)
        sums, counts = pair_contrast(
            anchor, anchor_label, anchor, anchor_label, weight=context_weight, valid=real, rows=rows
        )
        key_label = torch.where(inside, cropped_label, anchor_label)
        detail_sums, _ = pair_contrast(
            anchor, anchor_label, detail_key, key_label, weight=detail_weight, valid=real_detail, rows=rows
        )
        total = total + _sum_of_anchors(sums + detail_sums, counts, real)
    return 0.5 * total / _count(label, valid)


def _pair_weights(attention: Tensor, row: Tensor, pixel: Tensor) -> tuple[PairWeight, PairWeight]:
    """W and 1 - W of `multi_resolution_contrast`, times the pixels' weights."""

    def context(part: slice) -> Tensor:
        return (row[part, None] * attention) * (pixel[part, None] * pixel)

    def detail(part: slice) -> Tensor:
        return (1 - row[part, None] * attention) * (pixel[part, None] * pixel)

    return context, detail


def _groups(count: int, size: int | None) -> list[slice]:
    size = size or count
    return [slice(start, start + size) for start in range(0, count, size)]


def _sum_of_anchors(sums: Tensor, counts: Tensor, valid: Tensor | None) -> Tensor:
    each = sums / counts.clamp_min(1)
    return (each if valid is None else each * valid).sum()


def _count(label: Tensor, valid: Tensor | None) -> Tensor:
    """Anchors of all ranks, per rank."""
    count = torch.full((), float(label.numel()), device=label.device) if valid is None else valid.sum().float()
    return mean_over_ranks(count).clamp_min(1)
