"""Masks that say which pixels of a mixed image come from where, and the pasting itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

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

    Returns:
        (B, H, W) bool, True where the pixel is pasted.
    """
    masks = []
    for place, (sample, number) in enumerate(zip(label, index.tolist(), strict=True)):
        first = place - place % pool_size
        pool = label[first : first + pool_size]
        classes = pool.flatten().bincount(minlength=IGNORE + 1).nonzero()[:, 0].cpu()
        if not include_ignore:
            classes = classes[classes != IGNORE]
        order = torch.from_numpy(keyed(seed, number, "class_mask").permutation(len(classes)))
        chosen = torch.zeros(IGNORE + 1, dtype=torch.bool)
        chosen[classes[order[: (len(classes) + round_up) // 2]]] = True
        masks.append(chosen.to(sample.device)[sample])
    return torch.stack(masks)


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
    masks = []
    for sample, number in zip(label, index.tolist(), strict=True):
        here = sample.flatten().bincount(minlength=IGNORE + 1)[list(classes)].cpu() > 0
        found = [c for c, present in zip(classes, here.tolist(), strict=True) if present]
        chosen = found[int(keyed(seed, number, "rare_mask").integers(len(found)))] if found else -1
        masks.append(sample == chosen)
    return torch.stack(masks)


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
