"""Contrastive losses among pixels, without ever holding a full matrix of their similarities."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from udaseg.distributed import mean_over_ranks
from udaseg.losses.contrastive import downscale_label, masked_average_pool
from udaseg.types import IGNORE

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
    unshifted_negatives: bool = False,
    same_pixels: bool = True,
    rows: int = 512,
) -> tuple[Tensor, Tensor]:
    """Per anchor i: sum_j -w_ij log(e^s_ij / (e^s_ij + N_i)) over the other keys j of its label.

    s_ij is the inner product of anchor i and key j, and N_i the sum of e^s_in over the keys n of other labels.
    Similarities exist for `rows` anchors at a time and are computed again in the backward pass, so memory grows with
    N, not with N M.

    Args:
        anchor: (N, A), of the length that the loss means them to have.
        anchor_label: (N,) int64.
        key: (M, A).
        key_label: (M,) int64.
        weight: of the pairs; 1 without it.
        valid: (M,) bool, the keys that there are; all without it.
        unshifted_negatives: take the anchor's largest similarity off all s_ij but those within N_i, as UCD's code does.
        same_pixels: whether key i is the same pixel as anchor i, hence no positive of it.
        rows: anchors at a time.

    Returns:
        sums (N,) and the number of positives (N,) of each anchor.
    """

    def block(part: slice, anchor: Tensor, key: Tensor) -> tuple[Tensor, Tensor]:
        similarity = anchor[part] @ key.T
        same = anchor_label[part, None] == key_label
        lowest = torch.finfo(similarity.dtype).min
        negative = similarity.masked_fill(same if valid is None else same | ~valid, lowest).logsumexp(1, keepdim=True)
        if unshifted_negatives:
            similarity = similarity - similarity.detach().max(1, keepdim=True).values
        log_share = -F.softplus(negative - similarity)  # in logarithms: no power leaves the range
        positive = (same if valid is None else same & valid).to(similarity.dtype)
        if same_pixels and part.start < len(key):
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
    pixel_weight: Tensor | None = None,
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
        pixel_weight: (B, h, w) >= 0; pairs of mixed images weigh the product of their pixels' weights.
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
        weight = None if pixel_weight is None else partial(_product, pixel_weight[group].flatten())
        sums, counts = pair_contrast(unit, flat, unit, flat, weight=weight, valid=real, rows=rows)
        total = total + _sum_of_anchors(sums, counts, real)
    return total / _count(label, valid)


def memory_contrast(
    feature: Tensor, label: Tensor, memory: Tensor, memory_label: Tensor, *, temperature: float, rows: int = 512
) -> Tensor:
    """Contrast of pixels with remembered ones, of which each of the same class is a positive.

    With s_j = f . memory[j] / temperature, a pixel loses, as the mean over the memories j of its class,
    -log(e^{s_j} / (e^{s_j} + sum over the memories n of other classes of e^{s_n})).

    Source: the supervised pixel contrast of ContrastiveSeg (2101.11939), eq. 4, with a memory.

    Args:
        feature: (N, A) pixels.
        label: (N,) int64 train ids, 255 = ignore.
        memory: (M, A), without gradient.
        memory_label: (M,) int64 train ids, 255 = an empty place.
        temperature: > 0.
        rows: pixels at a time, see `pair_contrast`.

    Returns:
        Scalar, the mean over pixels, on all ranks, that have a memory of their class; 0 where none has.
    """
    there = memory_label != IGNORE
    sums, counts = pair_contrast(
        feature / temperature, label, memory, memory_label, valid=there, same_pixels=False, rows=rows
    )
    having = mean_over_ranks((counts > 0).sum().to(sums.dtype))
    return (sums / counts.clamp_min(1)).sum() / having.clamp_min(1e-12)  # of ranks it may be below 1


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
        pixel_weight: see `pixel_contrast`.
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


def region_contrast(
    anchor: Tensor,
    positive: Tensor,
    label: Tensor,
    counted: Tensor,
    bank: Tensor,
    bank_label: Tensor,
    *,
    temperature: float = 0.1,
    rows: int = 512,
) -> Tensor:
    """Contrast of each cell with the same place seen in another context, against all of a bank that has another label.

    With s = a . p / t of anchor and positive, a cell loses -log(e^s / (e^s + sum over negatives n of e^{a . n / t})),
    to whose share the authors add 1e-8, so that no cell loses more than 18.4. Similarities exist for `rows` anchors at
    a time and are computed again in the backward pass.

    Source: RCCR (2110.05170); checked against those lines of qianyuzqy/RCCR's `train_spasr_syn.py`.

    Args:
        anchor: (N, A) unit vectors; gradient flows through them.
        positive: (N, A) unit vectors of the same places.
        label: (N,) int64, those of the positives.
        counted: (N,) bool, the cells that the mean is taken over.
        bank: (L, A) unit vectors.
        bank_label: (L,) int64; below 0 = there is none. 255 is a label like any other, so a negative of all.
        temperature: t > 0.
        rows: anchors at a time.

    Returns:
        Scalar, the mean over the counted cells of all ranks; 0 where there is none.
    """
    positive, bank = positive.detach(), bank.detach()

    def block(part: slice, anchor: Tensor) -> Tensor:
        own = (anchor[part] * positive[part]).sum(1, keepdim=True) / temperature
        negative = (bank_label >= 0) & (bank_label != label[part, None])
        others = (anchor[part] @ bank.T / temperature).masked_fill(~negative, -math.inf)
        share = own.squeeze(1) - torch.cat([own, others], 1).logsumexp(1)
        return -(share.exp() + 1e-8).log()

    parts = [slice(start, min(start + rows, len(anchor))) for start in range(0, len(anchor), rows)]
    loss = torch.cat([checkpoint(block, part, anchor, use_reentrant=False, preserve_rng_state=False) for part in parts])
    return (loss * counted).sum() / mean_over_ranks(counted.sum().to(loss.dtype)).clamp_min(1e-12)


def view_contrast(
    first: Tensor, second: Tensor, valid: Tensor | None = None, *, scale: float, rows: int = 512
) -> Tensor:
    """Of the rows of two views, each is to find its partner in the other view among all other rows of both.

    Cross-entropy of scale * R R^T without its diagonal, R being both views below one another, with the partner's place
    as the class. Similarities exist for `rows` rows at a time and are computed again in the backward pass.

    Source: EHTDI (2208.06100), on class probabilities of an image's cells, and on those of its classes' mean logits;
    checked against those lines of ljjcoder/EHTDI's `main.py`.

    Args:
        first, second: (N, A); row i of the one is the partner of row i of the other.
        valid: (N,) bool, the rows that there are; all without it.
        scale: > 0, one over the temperature.
        rows: at a time.

    Returns:
        Scalar, the mean over the valid rows of both views; 0 where there is none.
    """
    both, count = torch.cat([first, second]), len(first)
    real = torch.ones_like(both[:, 0], dtype=torch.bool) if valid is None else torch.cat([valid, valid])
    place = torch.arange(len(both), device=both.device)

    def block(part: slice, both: Tensor) -> Tensor:
        similarity = scale * both[part] @ both.T
        partner = similarity.gather(1, ((place[part] + count) % len(both))[:, None]).squeeze(1)
        seen = real & (place != place[part, None])
        return similarity.masked_fill(~seen, torch.finfo(similarity.dtype).min).logsumexp(1) - partner

    parts = [slice(start, min(start + rows, len(both))) for start in range(0, len(both), rows)]
    loss = torch.cat([checkpoint(block, part, both, use_reentrant=False, preserve_rng_state=False) for part in parts])
    return (loss * real).sum() / real.sum().clamp_min(1)


def two_view_contrast(
    weak: Tensor, strong: Tensor, label: Tensor, *, class_scale: float, cell_scale: float
) -> tuple[Tensor, Tensor]:
    """`view_contrast` of a weak and a strong view of each image, between their classes and between their cells.

    Classes are compared by the probabilities of their mean logits, over the cells with that label in both views; cells
    by their own probabilities. Source: see `view_contrast`.

    Args:
        weak, strong: (B, K, h, w) logits.
        label: (B, H, W) int64 train ids of the views' pixels, 255 = of no class.
        class_scale, cell_scale: see `scale` of `view_contrast`.

    Returns:
        The class level and the cell level of each image, (B,) and (B,).
    """
    small = downscale_label(label, (weak.shape[2], weak.shape[3]))
    (weak_means, present), (strong_means, _) = (masked_average_pool(x, small, x.shape[1]) for x in (weak, strong))
    classes = zip(strong_means.softmax(2), weak_means.softmax(2), present, strict=True)
    cells = zip(*(x.flatten(2).transpose(1, 2).softmax(2) for x in (strong, weak)), strict=True)
    return (
        torch.stack([view_contrast(*views, scale=class_scale) for views in classes]),
        torch.stack([view_contrast(*views, scale=cell_scale) for views in cells]),
    )


def _product(pixel: Tensor, part: slice) -> Tensor:
    """(rows, N) products of the pixels' weights."""
    return pixel[part, None] * pixel


def _pair_weights(attention: Tensor, row: Tensor, pixel: Tensor) -> tuple[PairWeight, PairWeight]:
    """W and 1 - W of `multi_resolution_contrast`, times the pixels' weights."""

    def context(part: slice) -> Tensor:
        return (row[part, None] * attention) * _product(pixel, part)

    def detail(part: slice) -> Tensor:
        return (1 - row[part, None] * attention) * _product(pixel, part)

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
    return mean_over_ranks(count).clamp_min(1e-12)
