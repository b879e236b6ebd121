"""Reading images and label maps, and what is in them."""

from __future__ import annotations

import io
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
from PIL import Image, UnidentifiedImageError

from udaseg.data.folders import why_missing
from udaseg.data.places import at_places
from udaseg.data.storage import filesystem, read_bytes
from udaseg.errors import DatasetError, UnreachableError

MAX_PIXELS = 1 << 26
"""More pixels than this (67 million) an image may not have; a file of a few kilobytes can claim any number."""


MAX_BYTES = 1 << 28
"""Larger files are not read."""


_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's others include formats that run programs


class Facts(NamedTuple):
    """What the manifest keeps of an image's and its label's pixels."""

    height: int
    width: int
    class_pixels: np.ndarray | None
    """(num_classes,) int64, None where unlabelled."""
    places: bytes | None = None
    """uint8 train ids of the label `at_places`, None where unlabelled."""


def _open(data: bytes, raw_mode: str | None = None) -> Image.Image:
    """Decode all pixels of an encoded image, as they are stored. Raises DatasetError with the reason.

    `raw_mode`, a name of Pillow's, is how the file's bytes are taken where not as the file says.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > MAX_PIXELS:
            raise DatasetError(f"{image.width} x {image.height} pixels; more than {MAX_PIXELS:,} are not decoded")
        if raw_mode is not None:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()  # open() reads headers only; a truncated file is noticed here
        return image
    except DatasetError:
        raise
    except UnidentifiedImageError:
        raise DatasetError(f"not an image in a known format ({len(data)} bytes)") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        raise DatasetError(f"cannot be decoded: {error}") from None


def decode_image(data: bytes) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an encoded image; an EXIF rotation is not applied, as labels have none.

    Raises DatasetError, without the file's name, where it is broken or its pixels are no 8-bit colours or greys.
    """
    image = _open(data)
    if image.mode not in ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr"):
        # 16-bit grey, above all, which convert() would clip without a word.
        raise DatasetError(f"pixels of mode {image.mode}; convert the image to 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def decode_label(data: bytes) -> np.ndarray:
    """(H, W) uint16 raw ids of an encoded label map: grey of 1 to 16 bits, or palette indices.

    Of a PNG of three channels of 16 bits, which are no colours, it is the first: the others hold instances in SYNTHIA.
    Raises DatasetError, without the file's name, where it is broken or has several channels otherwise.
    """
    image = _open(data)
    if image.format == "PNG" and image.mode == "RGB" and data[24] == 16:
        # Pillow keeps the high byte of each value, hence the low one where the bytes are taken to be swapped.
        high, low = (np.asarray(i)[..., 0].astype(np.uint16) for i in (image, _open(data, "RGB;16L")))
        return high << 8 | low
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise DatasetError(f"label has {len(image.getbands())} channels (mode {image.mode}), not one channel of ids")
    label = np.asarray(image).astype(np.uint16)
    if image.format == "PNG" and image.mode == "L":
        # Pillow stretches grey of 2 and 4 bits, which PNG optimisers write, to 0..255; byte 24 is the number of bits.
        label //= {2: 85, 4: 17}.get(data[24], 1)
    return label


def _read(uri: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return decode(read_bytes(uri, limit=MAX_BYTES))
    except UnreachableError:
        raise
    except FileNotFoundError as error:
        raise _missing(uri, error) from None
    except OSError as error:
        raise DatasetError(f"{uri}: cannot be read: {str(error).partition(chr(10))[0]}") from None
    except DatasetError as error:
        raise DatasetError(f"{uri}: {error}") from None


def _missing(uri: str, error: FileNotFoundError) -> DatasetError:
    fs, path = filesystem(uri)
    if fs.type_name != "local":
        return DatasetError(f"{uri}: cannot be read: {str(error).partition(chr(10))[0]}")
    reason = why_missing(path)
    if not os.path.lexists(path) and "UTF-8" not in reason and not os.path.isdir(os.path.dirname(path)):
        # One file may have been deleted; with its folder it is a store that is not mounted.
        return UnreachableError(f"{uri}: could not be reached: neither it nor its folder is there")
    return DatasetError(f"{uri}: cannot be read: {reason}")


def read_image(uri: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the image at `uri`.

    Raises UnreachableError, naming it, where it cannot be reached, and DatasetError where it cannot be decoded.
    """
    return _read(uri, decode_image)


def read_label(uri: str) -> np.ndarray:
    """(H, W) uint16 raw ids of the label map at `uri`.

    Raises UnreachableError, naming it, where it cannot be reached, and DatasetError where it cannot be decoded.
    """
    return _read(uri, decode_label)


def inspect(image_uri: str, label_uri: str | None, lookup: np.ndarray, num_classes: int) -> Facts:
    """Decode an image and its label in full and count the label's pixels per train id; `lookup` is `Classes.lookup()`.

    Raises DatasetError, naming the file, where one cannot be decoded, the sizes differ or an id is not in the classes.
    """
    height, width, _ = _read(image_uri, decode_image).shape
    if label_uri is None:
        return Facts(height, width, None)
    label = _read(label_uri, decode_label)
    if label.shape != (height, width):
        size = f"{label.shape[1]} x {label.shape[0]}"
        raise DatasetError(f"{label_uri}: label is {size} pixels (width x height), its image {width} x {height}")
    pixels = np.bincount(label.ravel())
    raw_ids = np.flatnonzero(pixels)
    train_ids = lookup[raw_ids]
    if unknown := [f"{raw} ({pixels[raw]} pixels)" for raw in raw_ids[train_ids < 0]]:
        more = f" and {len(unknown) - 8} more" if len(unknown) > 8 else ""
        raise DatasetError(f"{label_uri}: label ids outside the class list: {', '.join(unknown[:8])}{more}")
    counted = train_ids < num_classes  # the rest is ignored
    class_pixels = np.zeros(num_classes, np.int64)
    np.add.at(class_pixels, train_ids[counted], pixels[raw_ids[counted]])
    return Facts(height, width, class_pixels, lookup[at_places(label)].astype(np.uint8).tobytes())
