"""Label maps as pictures: with the colours of their classes, alone and over the image."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from udaseg.data.classes import Classes

SIDE = 512
"""Pixels of a picture's width in a sheet, at most."""
_COLUMNS = "udaseg:columns"


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


def sheet(columns: Mapping[str, Sequence[Image.Image]]) -> bytes:
    """A PNG of pictures of one size, made small: a row an image, a column a name, which `cut` reads again."""
    width, height = next(iter(columns.values()))[0].size
    size = (min(width, SIDE), max(1, round(height * min(1, SIDE / width))))
    rows = zip(*columns.values(), strict=True)
    pixels = [[np.asarray(picture.resize(size, Image.Resampling.NEAREST)) for picture in row] for row in rows]
    buffer, names = io.BytesIO(), PngInfo()
    names.add_text(_COLUMNS, json.dumps({"names": list(columns), "rows": len(pixels)}))
    Image.fromarray(np.block([[[tile] for tile in row] for row in pixels])).save(buffer, "PNG", pnginfo=names)
    return buffer.getvalue()


def cut(content: bytes) -> dict[str, list[np.ndarray]]:
    """The (H, W, 3) uint8 pictures of a `sheet`, by column. Raises ValueError where it is none."""
    try:
        image = Image.open(io.BytesIO(content))
        known = json.loads(image.text[_COLUMNS])  # type: ignore[attr-defined]
        names, rows = known["names"], known["rows"]
        bands = np.split(np.asarray(image), rows)
        pictures = [np.split(band, len(names), axis=1) for band in bands]
    except (AttributeError, KeyError, OSError, SyntaxError, TypeError, ValueError) as error:
        raise ValueError(f"not a sheet of pictures: {error!r}") from None
    return {name: [row[place] for row in pictures] for place, name in enumerate(names)}
