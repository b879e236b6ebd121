"""Cells drawn from feature maps class by class, and a bank that remembers them."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.components.drawn import on_device
from udaseg.distributed import all_samples
from udaseg.rng import uniforms
from udaseg.types import IGNORE


def draw_cells(
    label: Tensor, index: Tensor, *, count: int, num_classes: int, seed: int, purpose: str
) -> tuple[Tensor, Tensor]:
    """Up to `count` cells of each class of each image, drawn by the sample's key.

    Args:
        label: (B, h, w) int64 train ids, 255 = ignore.
        index: (B,) global sample indices.
        count: cells of a class that are drawn, all where it has fewer.
        num_classes: K.
        seed: key of the run and stage.
        purpose: key of the use.

    Returns:
        places (B, K, n) int64 among the h w cells, n = min(count, h w), and drawn (B, K, n) bool: those that are of
        the class; where a class has fewer, other places fill up its row.
    """
    cells = label.flatten(1)
    order = on_device(uniforms(seed, index.numpy(), purpose, cells.shape[1]), label.device)
    classes = torch.arange(num_classes, device=label.device)[:, None]
    score = order[:, None].where(cells[:, None] == classes, -1.0)
    best = score.topk(min(count, cells.shape[1]), 2)
    return best.indices, best.values >= 0


def cells_at(feature: Tensor, places: Tensor) -> Tensor:
    """(B, K, n, A) cells of a (B, A, h, w) map at the (B, K, n) places of `draw_cells`."""
    cells, flat = feature.flatten(2).transpose(1, 2), places.flatten(1)
    return cells.gather(1, flat[..., None].expand(-1, -1, cells.shape[2])).unflatten(1, places.shape[1:])


class PixelBank(nn.Module):
    """The last pixels of each class, single ones of all ranks in the samples' order; a new one replaces the oldest.

    Args:
        num_classes, channels: K and A.
        length: L, the most pixels of a class.
    """

    entries: Tensor
    pushed: Tensor

    def __init__(self, num_classes: int, channels: int, length: int) -> None:
        super().__init__()
        self.register_buffer("entries", torch.zeros(num_classes, length, channels))
        self.register_buffer("pushed", torch.zeros(num_classes, dtype=torch.int64))

    @property
    def pixels(self) -> Tensor:
        """(K L, A), class by class."""
        return self.entries.flatten(0, 1)

    @property
    def labels(self) -> Tensor:
        """(K L,) int64 train ids of `pixels`, 255 where a place is empty."""
        classes, length = self.entries.shape[:2]
        place = torch.arange(length, device=self.pushed.device)
        train_id = torch.arange(classes, device=self.pushed.device)[:, None]
        return train_id.where(place < self.pushed[:, None], IGNORE).flatten()

    @torch.no_grad()
    def update(self, feature: Tensor, label: Tensor, index: Tensor, *, count: int, seed: int, purpose: str) -> None:
        """Take in cells of a step's images: feature (B, A, h, w), label (B, h, w); the rest is of `draw_cells`."""
        classes, length, _ = self.entries.shape
        places, drawn = draw_cells(label, index, count=count, num_classes=classes, seed=seed, purpose=purpose)
        cells = cells_at(feature, places).to(self.entries.dtype)
        joined = all_samples(torch.cat([cells, drawn[..., None].to(cells.dtype)], 3))
        new = joined.transpose(0, 1).flatten(1, 2)  # (K, all that were drawn, A + 1)
        pixel, there = new[..., :-1], new[..., -1] > 0
        number = there.cumsum(1)
        total = number[:, -1:]
        stays = there & (number > total - length)
        at = ((self.pushed[:, None] + number - 1) % length).where(stays, length)  # a place more, which is cut off
        padded = F.pad(self.entries, (0, 0, 0, 1)).scatter(1, at[..., None].expand_as(pixel), pixel)
        self.entries.copy_(padded[:, :length])
        self.pushed.add_(total[:, 0])
