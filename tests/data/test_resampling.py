"""Resizing: what each filter weighs, beside loops of their own, and in NumPy as in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from udaseg.data.resampling import Box, resample
from udaseg.models.inference import resized
from udaseg.types import Resample


def picture(height: int = 37, width: int = 53) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)


def four_nearest(pixels: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """OpenCV's INTER_LINEAR pixel by pixel: half-pixel centres, the border repeated, rounded to the nearest."""
    left, top, right, bottom = box
    height, width = pixels.shape[:2]
    out = np.empty((*size, 3), np.uint8)
    for i in range(size[0]):
        for j in range(size[1]):
            y = min(max(top + (i + 0.5) * (bottom - top) / size[0] - 0.5, 0), height - 1)
            x = min(max(left + (j + 0.5) * (right - left) / size[1] - 0.5, 0), width - 1)
            total = np.zeros(3)
            for row, row_weight in ((int(y), 1 - y % 1), (min(int(y) + 1, height - 1), y % 1)):
                for column, weight in ((int(x), 1 - x % 1), (min(int(x) + 1, width - 1), x % 1)):
                    total += row_weight * weight * pixels[row, column]
            out[i, j] = int(total[0] + 0.5), int(total[1] + 0.5), int(total[2] + 0.5)
    return out


@pytest.mark.parametrize(
    ("box", "size"),
    [
        ((0, 0, 53, 37), (18, 26)),
        ((0, 0, 53, 37), (74, 90)),
        ((3.25, 5.5, 41.75, 36.9), (20, 24)),
        ((50, 35, 53, 37), (8, 9)),
    ],
    ids=["half", "larger", "inside", "corner"],
)
def test_bilinear_weighs_the_four_nearest_pixels(box: Box, size: tuple[int, int]) -> None:
    pixels = picture()
    found = resample(Image.fromarray(pixels), box, size, "bilinear").astype(int)
    off = np.abs(found - four_nearest(pixels, box, size))
    assert off.max() <= 1 and (off > 0).mean() < 0.02, "but for near ties, in single precision here"


@pytest.mark.parametrize("how", ["antialias", "bilinear", "bicubic"])
def test_labels_and_training_see_the_same_pixels(how: Resample) -> None:
    """A whole image, resized in NumPy and Pillow for training and in torch for prediction."""
    pixels = picture(64, 96)
    small = resample(Image.fromarray(pixels), (0, 0, 96, 64), (27, 40), how)
    image = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    found = resized(image, 27, how)[0].permute(1, 2, 0).numpy() * 255
    assert found.shape == (27, 40, 3)
    assert np.abs(found - small).max() < 1.5
    assert found.min() >= 0 and found.max() <= 255


def test_filters_differ_where_an_image_shrinks() -> None:
    pixels = picture(64, 96)
    one, other, third = (
        resample(Image.fromarray(pixels), (0, 0, 96, 64), (16, 24), how) for how in ("antialias", "bilinear", "bicubic")
    )
    assert float(one.std()) < float(third.std()) < float(other.std()), "averaging flattens noise"
    same = resample(Image.fromarray(pixels), (8, 8, 40, 40), (32, 32), "bilinear")
    assert np.array_equal(same, pixels[8:40, 8:40]), "at its own size a crop is what it was"
