"""Masks that say which pixels of a mixed image come from where, and the pasting itself."""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.rng import keyed
from udaseg.types import IGNORE


def class_mask(label: Tensor, index: Tensor, *, seed: int, include_ignore: bool = True) -> Tensor:
    """ClassMix: half (rounded up) of the classes of each label map, drawn by the sample's key.

    Source: DACS (2007.08702) on ClassMix (2007.07936). The authors' code counts the ignore id as one of the classes.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore.
        index: (B,) global sample indices.
        seed: key of the run and stage.
        include_ignore: whether 255 is a class that can be drawn.

    Returns:
        (B, H, W) bool, True where the pixel is pasted.
    """
    masks = []
    for sample, number in zip(label, index.tolist(), strict=True):
        classes = sample.flatten().bincount(minlength=IGNORE + 1).nonzero()[:, 0].cpu()
        if not include_ignore:
            classes = classes[classes != IGNORE]
        order = torch.from_numpy(keyed(seed, number, "class_mask").permutation(len(classes)))
        chosen = torch.zeros(IGNORE + 1, dtype=torch.bool)
        chosen[classes[order[: (len(classes) + 1) // 2]]] = True
        masks.append(chosen.to(sample.device)[sample])
    return torch.stack(masks)


def paste(mask: Tensor, over: Tensor, under: Tensor) -> Tensor:
    """`over` where the (B, H, W) bool mask is set, `under` elsewhere; both (B, H, W) or (B, C, H, W)."""
    return torch.where(mask if over.ndim == 3 else mask[:, None], over, under)
