"""RandAugment with a cut-out, keyed per sample, whose geometry can be applied to other maps of the same image."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
import torchvision.transforms.functional as tv
from torch import Tensor
from torchvision.transforms.v2.functional import equalize_image

from udaseg.components.augment import full_precision
from udaseg.components.drawn import on_device
from udaseg.rng import keyed

GREY = 127 / 255
"""Of what turns in from outside, and of the cut-out."""
OPERATIONS = 2
"""Drawn for each image, with repetition; each is applied with probability 1/2."""
LEVELS = 10
"""A magnitude is U{1 ... 9} of 10."""

# FixMatch's pool: 8-bit images and a share of the strongest magnitude.
_COLOURS: dict[str, Callable[[Tensor, float], Tensor]] = {
    "identity": lambda x, v: x,
    "autocontrast": lambda x, v: tv.autocontrast(x),
    "equalize": lambda x, v: equalize_image(x),  # which, unlike tv's, never makes the host wait
    "brightness": lambda x, v: tv.adjust_brightness(x, 0.05 + 0.9 * v),
    "color": lambda x, v: tv.adjust_saturation(x, 0.05 + 0.9 * v),
    "contrast": lambda x, v: tv.adjust_contrast(x, 0.05 + 0.9 * v),
    "sharpness": lambda x, v: tv.adjust_sharpness(x, 0.05 + 0.9 * v),
    "posterize": lambda x, v: tv.posterize(x, 4 + int(4 * v)),
    "solarize": lambda x, v: tv.solarize(x, 256 - int(256 * v)),
}
_GEOMETRY = ("rotate", "shear_x", "shear_y", "translate_x", "translate_y")
_POOL = (*_COLOURS, *_GEOMETRY)


@dataclass(frozen=True, slots=True)
class StrongView:
    """Strong views of images, and where their pixels come from."""

    image: Tensor
    """(B, 3, H, W) in [0, 1]."""
    source: Tensor
    """(B, 2, 3) affine maps from places of the view to those of the image, sides being [-1, 1]."""
    cut: Tensor
    """(B, 4) left, top, right and bottom of the cut-out, in shares of the sides."""

    @full_precision()
    def carry(self, plane: Tensor, fill: float) -> Tensor:
        """A map of the images, (B, C, h, w) of any size, as the views show it: nearest; `fill` where nothing is."""
        grid = F.affine_grid(self.source.to(plane.dtype), list(plane.shape), align_corners=False)
        moved = F.grid_sample(plane - fill, grid, mode="nearest", align_corners=False) + fill
        return moved.masked_fill(_cut_out(self.cut, plane.shape[2], plane.shape[3])[:, None], fill)


@full_precision()
def rand_augment(image: Tensor, index: Tensor, *, seed: int, purpose: str) -> StrongView:
    """ProDA's strong view: a flip, two operations of FixMatch's pool, and a cut-out of a third of the short side.

    Source: RandAugment (1909.13719) with the pool of FixMatch (2001.07685), n = 2 and m = 10, as ProDA (2101.10979) has
    it. Of an image that gets a colour and a geometric operation the colour comes first, and all geometry is one
    resampling; what lies outside is grey.

    Args:
        image: (B, 3, H, W) in [0, 1].
        index: (B,) global sample indices.
        seed: key of the run and stage.
        purpose: key of the use.
    """
    height, width = image.shape[-2:]
    views, sources, cuts = [], [], []
    for pixels, i in zip(image, index.tolist(), strict=True):
        rng = keyed(seed, i, f"rand_augment.{purpose}")
        matrix = np.diag([-1.0 if rng.random() < 0.5 else 1.0, 1.0, 1.0])
        colours = (pixels * 255).round().to(torch.uint8)
        for name in rng.choice(_POOL, OPERATIONS).tolist():
            magnitude, applied, sign = rng.integers(1, LEVELS) / LEVELS, rng.random() < 0.5, rng.choice((-1, 1))
            if applied and name in _COLOURS:
                colours = _COLOURS[name](colours, magnitude)
            elif applied:
                matrix = matrix @ _affine(name, sign * magnitude, height, width)
        side = min(height, width) // 3
        column, row = rng.random() * width, rng.random() * height
        left, top = int(max(0, column - side / 2)), int(max(0, row - side / 2))
        cuts.append([left / width, top / height, min(width, left + side) / width, min(height, top + side) / height])
        sources.append(matrix[:2])
        views.append(colours.to(pixels.dtype) / 255)
    source, cut = (on_device(np.array(x), image.device).to(image.dtype) for x in (sources, cuts))
    grid = F.affine_grid(source, list(image.shape), align_corners=False)
    view = F.grid_sample(torch.stack(views) - GREY, grid, mode="bilinear", align_corners=False) + GREY
    return StrongView(view.masked_fill(_cut_out(cut, height, width)[:, None], GREY), source, cut)


def _affine(name: str, magnitude: float, height: int, width: int) -> np.ndarray:
    """(3, 3) from the places of what an operation makes to those of what it is given, sides being [-1, 1].

    Images are sheared about their top left corner, as Pillow does.
    """
    matrix = np.eye(3)
    if name == "rotate":
        angle = math.radians(int(30 * abs(magnitude)) * math.copysign(1, magnitude))
        matrix[:2, :2] = [
            [math.cos(angle), -math.sin(angle) * height / width],
            [math.sin(angle) * width / height, math.cos(angle)],
        ]
    elif name == "shear_x":
        matrix[0, 1:] = 0.3 * magnitude * height / width
    elif name == "shear_y":
        matrix[1, [0, 2]] = 0.3 * magnitude * width / height
    else:
        matrix[("translate_x", "translate_y").index(name), 2] = 0.6 * magnitude  # 0.3 of a side, which is 2 long
    return matrix


def _cut_out(cut: Tensor, height: int, width: int) -> Tensor:
    """(B, h, w) bool: the cells whose middle lies in the cut-out."""
    x = (torch.arange(width, device=cut.device) + 0.5) / width
    y = (torch.arange(height, device=cut.device) + 0.5) / height
    left, top, right, bottom = cut.T[..., None]
    return ((y >= top) & (y < bottom))[:, :, None] & ((x >= left) & (x < right))[:, None]
