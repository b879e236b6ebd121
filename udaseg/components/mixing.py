"""Masks that say which pixels of a mixed image come from where, and the pasting itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.rng import keyed
from udaseg.types import IGNORE


def class_mask(
    label: Tensor,
    index: Tensor,
    *,
    seed: int,
    include_ignore: bool = True,
    round_up: bool = True,
    pool_size: int = 1,
    num_classes: int = IGNORE,
    purpose: str = "class_mask",
) -> Tensor:
    """ClassMix: half of the classes of each label map, drawn by the sample's key.

    Source: DACS (2007.08702) on ClassMix (2007.07936). The authors' code counts the ignore id as one of the classes.
    That of DAFormer and its line (`get_class_masks` of lhoyer/DAFormer) draws half of the classes of the whole batch
    for each image, so that an image may be pasted whole or not at all.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore.
        index: (B,) global sample indices.
        seed: key of the run and stage.
        include_ignore: whether 255 is a class that can be drawn.
        round_up: half of an odd number of classes, rounded up (the DACS line) or down (LDBE).
        pool_size: consecutive samples whose classes each of them draws from; 1 = each image's own.
        num_classes: K, which no train id but 255 reaches; the draws take time for each.
        purpose: what is pasted, which its draws are keyed by.

    Returns:
        (B, H, W) bool, True where the pixel is pasted.
    """
    present = present_classes(label)
    if not include_ignore:
        present[:, IGNORE] = False
    if pool_size > 1:
        pools = F.pad(present, (0, 0, 0, -len(label) % pool_size)).unflatten(0, (-1, pool_size)).any(1)
        present = pools[:, None].expand(-1, pool_size, -1).flatten(0, 1)[: len(label)]
    chosen = _draw(
        present,
        index,
        seed=seed,
        purpose=purpose,
        number=lambda count: (count + round_up) // 2,
        num_classes=num_classes,
    )
    return chosen.gather(1, label.flatten(1)).view_as(label)


def thing_mask(label: Tensor, index: Tensor, *, things: Sequence[int], seed: int, num_classes: int = IGNORE) -> Tensor:
    """Half of the things that each label map has, rounded down, but one where it has one.

    Source: EHTDI (2208.06100). Its authors' code looks the drawn classes up one place too low in the list of those
    present, so that the last thing is never pasted, and the class before the first one is.

    Args:
        label, index, seed, num_classes: see `class_mask`.
        things: train ids to draw from.

    Returns:
        (B, H, W) bool.
    """
    thing = torch.zeros(IGNORE + 1, dtype=torch.bool)
    thing[list(things)] = True
    present = present_classes(label) & thing.to(label.device, non_blocking=True)
    chosen = _draw(
        present,
        index,
        seed=seed,
        purpose="thing_mask",
        number=lambda count: max(1, count // 2),
        num_classes=num_classes,
    )
    return chosen.gather(1, label.flatten(1)).view_as(label)


def context_mask(
    label: Tensor, index: Tensor, *, companions: Sequence[tuple[int, int]], seed: int, num_classes: int = IGNORE
) -> Tensor:
    """CAMix: half of the classes of each label map, rounded up, and with each of them those that it comes with.

    Source: CAMix (2108.03557); checked against `get_context_class_masks` of qianyuzqy/CAMix.

    Args:
        label, index, seed, num_classes: see `class_mask`.
        companions: pairs of train ids in the order in which they are looked at: where the first is pasted and the image
            has the second, so is the second.

    Returns:
        (B, H, W) bool.
    """
    present = present_classes(label)
    chosen = _draw(
        present,
        index,
        seed=seed,
        purpose="context_mask",
        number=lambda count: (count + 1) // 2,
        num_classes=num_classes,
    )
    for pasted, companion in companions:
        chosen[:, companion] |= chosen[:, pasted] & present[:, companion]
    return chosen.gather(1, label.flatten(1)).view_as(label)


def _draw(
    present: Tensor, index: Tensor, *, seed: int, purpose: str, number: Callable[[int], int], num_classes: int
) -> Tensor:
    """(B, 256) bool: `number(n)` of each sample's n classes that are present, (B, 256), at most K + 1 of them."""
    # what is drawn depends on how many classes there are, which the device knows: so it is drawn for every number
    drawn = np.zeros((len(present), num_classes + 2, num_classes + 1), bool)
    for sample, key in enumerate(index.tolist()):
        generator = keyed(seed, key, purpose)
        begin = generator.bit_generator.state
        for count in range(1, num_classes + 2):
            generator.bit_generator.state = begin
            drawn[sample, count, generator.permutation(count)[: number(count)]] = True
    return present & _of_place(on_device(drawn, present.device), present)


def present_classes(label: Tensor) -> Tensor:
    """(B, 256) bool: which train ids, 255 = ignore among them, each of the (B, H, W) label maps holds."""
    present = torch.zeros(len(label), IGNORE + 1, dtype=torch.bool, device=label.device)
    return present.scatter_(1, label.flatten(1), True)


def _of_place(drawn: Tensor, present: Tensor) -> Tensor:
    """What was drawn for each class: the i-th of n classes that are present has drawn[:, n, i].

    Args:
        drawn: (B, N + 1, N).
        present: (B, C) bool.

    Returns:
        (B, C); of classes that are not present anything.
    """
    count = present.sum(1)
    place = (present.cumsum(1) - 1).clamp(0, drawn.shape[2] - 1)
    return drawn[torch.arange(len(drawn), device=drawn.device), count].gather(1, place)


def rare_mask(label: Tensor, index: Tensor, *, classes: Sequence[int], seed: int) -> Tensor:
    """All pixels of one class of each label map, drawn among the given classes that it has; nothing where it has none.

    Source: DSP (2107.09600), which pastes a long-tail class on each mixed image.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore.
        index: (B,) global sample indices.
        classes: train ids to draw from.
        seed: key of the run and stage.

    Returns:
        (B, H, W) bool.
    """
    if not classes:
        return torch.zeros_like(label, dtype=torch.bool)
    ids = torch.tensor(classes).to(label.device, non_blocking=True)
    present = present_classes(label)[:, ids]
    drawn = np.zeros((len(label), len(classes) + 1, len(classes)), bool)
    for sample, number in enumerate(index.tolist()):
        for count in range(1, len(classes) + 1):
            drawn[sample, count, keyed(seed, number, "rare_mask").integers(count)] = True
    chosen = present & _of_place(on_device(drawn, label.device), present)
    one = torch.where(chosen, ids, -1).amax(1)  # -1 where none is present
    return label == one[:, None, None]


def region_mask(image: Tensor, index: Tensor, *, stride: int, seed: int) -> Tensor:
    """CutMix: one rectangle of each image, in whole cells; its share of the area is uniform, its place too.

    Source: CutMix (1905.04899) as RCCR (2110.05170) has it: both sides are the root of the drawn share, rounded down to
    whole cells, at least one. Its authors draw one rectangle a batch.

    Args:
        image: (B, 3, H, W), for its size and device.
        index: (B,) global sample indices.
        stride: pixels of a cell's side.
        seed: key of the run and stage.

    Returns:
        (B, H // stride, W // stride) bool, at least one cell each.
    """
    size = rows, columns = tuple(max(1, side // stride) for side in image.shape[-2:])
    mask = np.zeros((len(image), *size), bool)
    for sample, number in zip(mask, index.tolist(), strict=True):
        rng = keyed(seed, number, "region_mask")
        side = math.sqrt(rng.beta(1, 1))
        height, width = (max(1, int(cells * side)) for cells in size)
        top, left = rng.integers(rows - height + 1), rng.integers(columns - width + 1)
        sample[top : top + height, left : left + width] = True
    return on_device(mask, image.device)


def border(mask: Tensor) -> Tensor:
    """The pixels of a (B, H, W) bool mask's edge: what 2 x 2 windows, ended by a pixel, hold of both sides.

    Source: EHTDI (2208.06100), its edge enhancement: dilation less erosion by 2 x 2, as OpenCV anchors them.
    """

    def grown(x: Tensor) -> Tensor:
        return F.max_pool2d(F.pad(x.float(), (1, 0, 1, 0)), 2, stride=1) > 0

    return grown(mask) & grown(~mask)


def reliable_mask(
    label: Tensor, reliability: Tensor, index: Tensor, *, share: float, seed: int, num_classes: int
) -> Tensor:
    """MOCM: a share of the classes of each label map, drawn one after the other by how reliable their pixels are.

    A class is drawn with a probability that is in proportion to the mean reliability of its pixels in the image, among
    the classes that are left (the largest of log r + Gumbel noise). Our reconstruction of the metric-based online
    ClassMix of STvM (2212.04227), of which it is known that reliability governs what is mixed.

    Args:
        label: (B, H, W) int64 train ids; 255 = ignore, which is never drawn.
        reliability: (B, H, W) >= 0.
        index: (B,) global sample indices.
        share: of the classes that a map has, in [0, 1]; their number is rounded up.
        seed: key of the run and stage.
        num_classes: K.

    Returns:
        (B, H, W) bool, True where the pixel is pasted.
    """
    slots, flat = label.new_zeros(len(label), IGNORE + 1, dtype=torch.float64), label.flatten(1)
    total = slots.scatter_add(1, flat, reliability.flatten(1).double())[:, :num_classes]
    count = slots.scatter_add(1, flat, torch.ones_like(flat, dtype=torch.float64))[:, :num_classes]
    noise = np.stack([keyed(seed, number, "reliable_mask").gumbel(size=num_classes) for number in index.tolist()])
    reliable = (total / count).clamp_min(torch.finfo(torch.float64).tiny)  # present, however unreliable
    score = reliable.log() + on_device(noise, label.device)
    present = count > 0
    place = score.masked_fill(~present, -math.inf).argsort(1, descending=True).argsort(1)
    number = (share * present.sum(1, keepdim=True).double() - 1e-9).ceil()  # 3 / 21 of 21 are 3, however it is rounded
    chosen = present & (place < number)
    return F.pad(chosen, (0, IGNORE + 1 - num_classes)).gather(1, flat).view_as(label)


def soft_paste(mask: Tensor, over: Tensor, under: Tensor, *, blend: float) -> Tensor:
    """Blend `over` into `under` where the (B, H, W) bool mask is set: blend * over + (1 - blend) * under; (B, C, H, W).

    Source: DSP (2107.09600), eq. 1 and 2.
    """
    return torch.where(mask[:, None], blend * over + (1 - blend) * under, under)


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """`over` where the (B, H, W) bool mask is set, `under` elsewhere; both (B, H, W) or (B, C, H, W).

    Raises ValueError where they differ in size.
    """
    if over.shape[-2:] != under.shape[-2:]:
        sizes = tuple(over.shape[-2:]), tuple(under.shape[-2:])
        raise ValueError(f"images of {sizes[0]} and {sizes[1]} cannot be mixed: their streams need one data.crop")
    return torch.where(mask if over.ndim == 3 else mask[:, None], over, under)


def next_of_group(x: Tensor, size: int) -> Tensor:
    """(B, ...) of which each sample is the next one of its group of `size`, the first again after the last."""
    return x.unflatten(0, (-1, size)).roll(-1, 1).flatten(0, 1)
