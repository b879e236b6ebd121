"""Which cells a contrastive loss takes: of each class of each image some, half of them predicted wrong."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.rng import uniforms
from udaseg.types import IGNORE


class Anchors(NamedTuple):
    """Places for anchors of G groups; those that are not taken have label 255."""

    cell: Tensor
    """(G, S) int64: which of a group's cells, image after image."""
    label: Tensor
    """(G, S) int64 train ids."""
    swapped: Tensor
    """(G, S) int64: the place whose weight each takes in the released code of TADA, which orders pixels view by view,
    each with one of every class of every image, and weights class by class."""


@torch.no_grad()
def hard_anchors(
    label: Tensor,
    predicted: Tensor,
    index: Tensor,
    *,
    seed: int,
    num_classes: int,
    group_size: int = 1,
    most: int = 1024,
    per_class: int = 100,
    first_class: int = 0,
) -> Anchors:
    """Draw cells of each class that has more than `per_class` of them in an image, as many of each class.

    n = min(most // classes of the group's images, per_class) of each; as far as there are enough half of them hard,
    that is predicted to be of another class, the others easy.

    Source: hard anchor sampling of ContrastiveSeg (2101.11939), as TADA (2109.04813) has it: `_hard_anchor_sampling` of
    ETHRuiGong/TADA. How many are taken is known on the device alone, so the places are as many as there can be.

    Args:
        label: (B, N) int64 train ids of cells, 255 = ignore.
        predicted: (B, N) int64 train ids.
        index: (B,) global sample indices.
        seed: key of the run and stage.
        num_classes: K.
        group_size: consecutive images that share `most`.
        most: anchors of a group.
        per_class: anchors of a class of an image, at most.
        first_class: classes below it are left out.

    Returns:
        S = group_size * K * min(per_class, N) places for each of B / group_size groups.
    """
    cells, groups = label.shape[1], len(label) // group_size
    views = min(per_class, cells)
    of_class = label[:, None] == torch.arange(num_classes, device=label.device)[:, None]
    of_class[:, :first_class] = False
    shown = of_class.sum(2).unflatten(0, (groups, group_size)) > per_class
    count = (most // shown.sum((1, 2)).clamp_min(1)).clamp_max(views)

    drawn = on_device(uniforms(seed, index.numpy(), "anchors", cells), label.device)
    wrong = (predicted != label)[:, None]
    hard, easy = (_drawn_first(of_class & kind, drawn, views) for kind in (wrong, ~wrong))
    hard_count, easy_count = ((of_class & kind).sum(2) for kind in (wrong, ~wrong))
    each = count.repeat_interleave(group_size)[:, None]
    kept = torch.minimum(hard_count, torch.maximum(each // 2, each - easy_count))[..., None]  # that are hard

    view = torch.arange(views, device=label.device)
    cell = torch.where(view < kept, hard, easy.gather(2, (view - kept).clamp_min(0)))
    cell = cell.unflatten(0, (groups, group_size))
    cell = cell + torch.arange(group_size, device=label.device)[:, None, None] * cells
    taken = shown[..., None] & (view < count[:, None, None, None])
    classes = torch.arange(num_classes, device=label.device)[:, None].expand(cell.shape).masked_fill(~taken, IGNORE)
    return Anchors(cell.flatten(1), classes.flatten(1), _swapped(shown.flatten(1), count, views))


def _drawn_first(chosen: Tensor, drawn: Tensor, count: int) -> Tensor:
    """(B, K, count) places of the cells that are chosen, (B, K, N), in a drawn order; after the last any other."""
    return torch.where(chosen, drawn[:, None], -1.0).topk(count, dim=2).indices


def _swapped(shown: Tensor, count: Tensor, views: int) -> Tensor:
    """`Anchors.swapped` of (G, R) rows that are shown, of which each has `count` (G,) of `views` places."""
    number = shown.sum(1, keepdim=True)[..., None]
    rank = (shown.cumsum(1) - 1).clamp_min(0)[..., None]
    position = torch.arange(views, device=shown.device) * number + rank  # in the order of the pixels
    each = count.clamp_min(1)[:, None, None]
    row = (~shown).sort(dim=1, stable=True).indices  # those that are shown come first
    of_row = row.gather(1, (position // each).clamp_max(shown.shape[1] - 1).flatten(1)).view_as(position)
    return (of_row * views + position % each).flatten(1)
