"""Images at another size, as the lines of papers make them. Nothing here needs torch."""

from __future__ import annotations

import numpy as np
from PIL import Image

from udaseg.types import Resample

Box = tuple[float, float, float, float]
"""Left, top, right and bottom in pixels of an image, whose pixels have their centres at halves."""


def resample(image: Image.Image, box: Box, size: tuple[int, int], how: Resample) -> np.ndarray:
    """A box of an RGB image at a size of height and width, (height, width, 3) uint8.

    "antialias" and "bicubic" are Pillow's filters, which widen where they shrink; "bilinear" weighs the four nearest
    pixels whatever the scale, with half-pixel centres and the image's border repeated, as OpenCV's INTER_LINEAR does.
    OpenCV counts in fixed point, which may round a value to its neighbour.
    """
    if how != "bilinear":
        wide = Image.Resampling.BICUBIC if how == "bicubic" else Image.Resampling.BILINEAR
        return np.asarray(image.resize((size[1], size[0]), resample=wide, box=box))
    left, top, right, bottom = box
    rows, row_weight = _neighbours(top, bottom, size[0], image.height)
    columns, column_weight = _neighbours(left, right, size[1], image.width)
    first, last = columns[0].min(), columns[1].max() + 1  # what lies beside the box costs nothing
    pixels = np.asarray(image)[:, first:last].astype(np.float32)
    pixels = _between(pixels[rows[0]], pixels[rows[1]], row_weight[:, None, None])
    pixels = _between(pixels[:, columns[0] - first], pixels[:, columns[1] - first], column_weight[None, :, None])
    return (pixels + 0.5).astype(np.uint8)


def _neighbours(begin: float, end: float, count: int, length: int) -> tuple[tuple[np.ndarray, np.ndarray], np.ndarray]:
    """Of `count` cells between two places of an axis: pixels before and after each centre, and the latter's weight."""
    place = begin + (np.arange(count) + 0.5) * (end - begin) / count - 0.5
    place = place.clip(0, length - 1)
    before = np.floor(place).astype(np.int64)
    return (before, np.minimum(before + 1, length - 1)), (place - before).astype(np.float32)


def _between(one: np.ndarray, other: np.ndarray, weight: np.ndarray) -> np.ndarray:
    out: np.ndarray = one + (other - one) * weight
    return out
