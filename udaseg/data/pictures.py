"""Label maps as pictures: with the colours of their classes, alone and over the image."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from udaseg.data.classes import Classes


def palette_image(label: np.ndarray, classes: Classes) -> Image.Image:
    """An 8-bit image of (H, W) uint8 train ids with the classes' colours."""
    image = Image.fromarray(label)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = classes.palette
    image.putpalette(colours.tobytes())
    return image


def overlay(image: np.ndarray, label: np.ndarray, classes: Classes) -> Image.Image:
    """(H, W, 3) uint8 pixels, each halfway to the colour of its class in (H, W) train ids; ignored ones as they are."""
    colours = np.zeros((256, 3), np.uint16)
    colours[: len(classes)] = classes.palette
    mixed = (image + colours[label] + 1) // 2
    return Image.fromarray(np.where(label[..., None] < len(classes), mixed, image).astype(np.uint8))


def png(image: Image.Image) -> bytes:
    """An encoded image, of little work rather than few bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue()
