"""Reading images and label maps, turned as they are shown, and what is in them."""

from __future__ import annotations

import contextlib
import io
import os
from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from udaseg.data.classes import Classes
from udaseg.data.depth import described, scaled
from udaseg.data.folders import why_missing
from udaseg.data.indexed_labels import require_ids
from udaseg.data.places import at_places
from udaseg.data.storage import filesystem, read_bytes
from udaseg.errors import DatasetError, UnreachableError
from udaseg.types import DepthRange

MAX_PIXELS = 1 << 26
"""More pixels than this (67 million) an image may not have; a file of a few kilobytes can claim any number."""


MAX_BYTES = 1 << 28
"""Larger files are not read."""


_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's others include formats that run programs
_DEEP = ("I;16", "I;16B", "I;16L", "I", "F")  # one band of more than 8 bits
_COLOURS = ("LA", "PA", "RGB", "RGBA", "CMYK", "YCbCr")


class Facts(NamedTuple):
    """What the manifest keeps of an image's and its label's pixels."""

    height: int
    width: int
    class_pixels: np.ndarray | None
    """(num_classes,) int64, None where unlabelled."""
    raw_ids: np.ndarray | None = None
    """The values in the label, None where unlabelled."""
    places: bytes | None = None
    """uint8 train ids of the label `at_places`, None where unlabelled."""


def _open(data: bytes, raw_mode: str | None = None, most: int = MAX_PIXELS) -> Image.Image:
    """Decode all pixels of an encoded image, turned as its EXIF orientation says. Raises DatasetError with the reason.

    Cameras store pixels as the sensor lies, and whoever draws labels sees the image turned.
    `raw_mode`, a name of Pillow's, is how the file's bytes are taken where not as the file says.
    """
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        if image.width * image.height > most:
            raise DatasetError(f"{image.width} x {image.height} pixels; more than {most:,} are not decoded")
        if raw_mode is not None:
            image.tile = [tile._replace(args=raw_mode) for tile in image.tile]
        image.load()  # open() reads headers only; a truncated file is noticed here
        with contextlib.suppress(Exception):  # EXIF that is broken is passed over, as it is where the image is shown
            ImageOps.exif_transpose(image, in_place=True)
        return image
    except DatasetError:
        raise
    except UnidentifiedImageError:
        raise DatasetError(f"not an image in a known format ({len(data)} bytes)") from None
    except Exception as error:  # Pillow's decoders raise a dozen types on broken files
        raise DatasetError(f"cannot be decoded: {error}") from None


def decode_image(data: bytes, depth_range: DepthRange | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of an encoded image as it is shown; `depth_range` as in `rgb`.

    Raises DatasetError, without the file's name, where it is broken, or as `rgb` does.
    """
    image = _open(data)
    if image.format == "PNG" and image.mode == "RGBA" and data[24] == 16 and data[25] == 4:
        raise DatasetError("grey of 16 bits beside an alpha channel, of which half would be lost; leave alpha out")
    return rgb(image, depth_range)


def rgb(image: Image.Image, depth_range: DepthRange | None = None) -> np.ndarray:
    """(H, W, 3) uint8 of an opened image.

    Args:
        image: of 8-bit colours or greys, which are taken as they are, or of one band of more bits or floating-point
            numbers, such as a depth or a temperature.
        depth_range: which values of the latter become 0 and 255, see `udaseg.data.depth.scaled`; all three channels
            hold the result.

    Raises DatasetError where its pixels are neither, or the latter and no range is given.
    """
    if image.mode in _DEEP:
        values = np.asarray(image)
        if depth_range is None:
            raise DatasetError(
                f"pixels of mode {image.mode}, {described(values)}; say which values are black and white by "
                "`udaseg prepare --depth-range LOW HIGH`"
            )
        return np.repeat(scaled(values, depth_range)[..., None], 3, axis=2)
    return _colours(image)


def _colours(image: Image.Image) -> np.ndarray:
    if image.mode not in ("1", "L", "P", *_COLOURS):
        # 16-bit grey, above all, which convert() would clip without a word.
        raise DatasetError(f"pixels of mode {image.mode}; convert the image to 8-bit RGB")
    return np.asarray(image.convert("RGB"))


def require_proportions(height: int, width: int, short_side: float, name: str) -> None:
    """Raise DatasetError, with the image's name, where brought to a short side it would have more than MAX_PIXELS."""
    if short_side * short_side * max(height, width) / min(height, width) > MAX_PIXELS:
        raise DatasetError(f"{name}: {width} x {height} pixels are too long and narrow to be predicted")


def decode_label(data: bytes, classes: Classes | None = None) -> np.ndarray:
    """(H, W) uint16 raw ids of an encoded label map as it is shown: grey of 1 to 32 bits, or palette indices.

    Of a PNG of three channels of 16 bits, which are no colours, it is the first: the others hold instances in SYNTHIA.
    Raises DatasetError, without the file's name, where it is broken, has several channels otherwise or what cannot be
    an id, and where `classes` are given and its palette shows that its indices are not their ids.
    """
    image = _open(data)
    if _has_wide_channels(image, data):
        # Pillow keeps the high byte of each value, hence the low one where the bytes are taken to be swapped.
        high, low = (np.asarray(i)[..., 0].astype(np.uint16) for i in (image, _open(data, "RGB;16L")))
        return high << 8 | low
    if image.mode == "F":
        raise DatasetError("label has numbers with fractions (mode F), not ids; save it with 8 or 16 bits a pixel")
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        what = f"label has {len(image.getbands())} channels (mode {image.mode}), not one channel of ids"
        if image.mode in _COLOURS:
            pixels = np.asarray(image.convert("RGB"))
            form = "palette, if these are colours"
            if (pixels == pixels[..., :1]).all():
                form = "grey: all hold the same"
            elif not pixels[..., 1:].any():
                form = "red: the others are 0"
            what = f"{what}; give --label-colors {form}"
        raise DatasetError(what)
    if image.mode == "P" and classes is not None:
        require_ids(image, classes)
    bits = _bits(image, data)
    label = np.asarray(image)
    if image.mode == "I" and (label.min() < 0 or label.max() > 65535):
        raise DatasetError(f"label holds values of {label.min()} to {label.max()}; ids of 0 to 65535 are possible")
    label = label.astype(np.uint16)
    if image.mode == "L":  # Pillow stretches grey of 2 and 4 bits, which PNG optimisers write, to 0..255
        label //= {2: 85, 4: 17}.get(bits, 1)
    return label


def _bits(image: Image.Image, data: bytes) -> int:
    """How many bits a pixel of a label has in its file. Raises DatasetError where Pillow gives other values."""
    if image.format == "TIFF":
        tags = image.tag_v2  # type: ignore[attr-defined]
        if tags.get(262) == 0:  # PhotometricInterpretation; of 8 bits Pillow turns the values round, of 16 it does not
            raise DatasetError("label is a TIFF whose 0 is white, so that ids are not certain; save it with 0 as black")
        return int(tags.get(258, (1,))[0])
    if image.format == "BMP":
        bits = data[24] if data[14] == 12 else data[28]  # the header of OS/2 has 12 bytes
        if bits != {"1": 1, "L": 8}.get(image.mode, bits):  # Pillow goes by the number of its greys
            raise DatasetError(f"label is a BMP of {bits} bits whose greys cannot be read; save it as PNG")
        return bits
    return data[24] if image.format == "PNG" else 8


def decode_colours(data: bytes) -> np.ndarray:
    """(H, W) int32 colours of an encoded label map as it is shown, red << 16 | green << 8 | blue; alpha is passed over.

    Raises DatasetError, without the file's name, where it is broken or has no 8-bit colours.
    """
    pixels = _colours(_open(data))
    code = pixels[..., 0].astype(np.int32)
    for channel in (1, 2):  # in place: aerial tiles have tens of millions of pixels
        code <<= 8
        code |= pixels[..., channel]
    return code


def decode_red(data: bytes) -> np.ndarray:
    """(H, W) uint16 ids in the red channel of an encoded label map as it is shown, which may have 16 bits.

    Raises as `decode_colours` does.
    """
    image = _open(data)
    return decode_label(data) if _has_wide_channels(image, data) else _colours(image)[..., 0].astype(np.uint16)


def _has_wide_channels(image: Image.Image, data: bytes) -> bool:
    """Whether an image is a PNG of three channels of 16 bits, of which Pillow keeps the high bytes."""
    return image.format == "PNG" and image.mode == "RGB" and data[24] == 16


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


def read_image(uri: str, depth_range: DepthRange | None = None) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the image at `uri`; `depth_range` as in `rgb`.

    Raises UnreachableError, naming it, where it cannot be reached, and DatasetError where it cannot be decoded.
    """
    return _read(uri, partial(decode_image, depth_range=depth_range))


def read_codes(uri: str, shape: tuple[int, int]) -> np.ndarray:
    """(H, W) uint16 of a map that was made here and may be larger than any image, up to `shape`.

    Raises as `read_label` does.
    """
    return _read(uri, lambda data: np.asarray(_open(data, most=max(MAX_PIXELS, shape[0] * shape[1]))).astype(np.uint16))


def read_label(uri: str) -> np.ndarray:
    """(H, W) uint16 raw ids of the label map at `uri`.

    Raises UnreachableError, naming it, where it cannot be reached, and DatasetError where it cannot be decoded.
    """
    return _read(uri, decode_label)


def read_colours(uri: str) -> np.ndarray:
    """(H, W) int32 of the image at `uri`, see `decode_colours`. Raises as `read_label` does."""
    return _read(uri, decode_colours)


def read_raw_label(uri: str, classes: Classes, *, check: bool = False) -> np.ndarray:
    """(H, W) places in `classes.lookup()` of the label map at `uri`: raw ids, or colours where its labels are such.

    Raises as `read_label` does; `check` is for labels that are new, and is of their palettes, see `decode_label`.
    """
    if classes.color_to_train:
        return _read(uri, decode_colours)
    if classes.ids_in_red:
        return _read(uri, decode_red)
    return _read(uri, partial(decode_label, classes=classes) if check else decode_label)


def unknown_text(raw: np.ndarray, pixels: np.ndarray, classes: Classes) -> str:
    """What values of a label that no class has are, with their numbers of pixels; of colours the nearest too."""
    most = np.argsort(-pixels, kind="stable")[:8]
    found = [_named(int(raw[i]), f"{pixels[i]} pixels", classes) for i in most]
    more = f" and {len(raw) - 8} more" if len(raw) > 8 else ""
    kind = "colours" if classes.color_to_train else "ids"
    return f"label {kind} outside the class list: {', '.join(found)}{more}"


def _named(value: int, pixels: str, classes: Classes) -> str:
    if not classes.color_to_train:
        return f"{value} ({pixels})"
    color = np.array([value >> 16, value >> 8 & 255, value & 255])
    known = [[int(v) for v in c.split(",")] for c in classes.color_to_train]
    nearest = list(classes.color_to_train)[int(((np.array(known) - color) ** 2).sum(1).argmin())]
    train = classes.color_to_train[nearest]
    of = (train,) if train < len(classes) else classes.unions[train - len(classes)] if train != classes.ignore else ()
    name = " or ".join(repr(classes.names[k]) for k in of) or "ignored"
    return f"{','.join(map(str, color.tolist()))} ({pixels}; nearest is {nearest}, {name})"


def inspect(
    image_uri: str,
    label_uri: str | None,
    classes: Classes,
    lookup: np.ndarray,
    depth_range: DepthRange | None = None,
) -> Facts:
    """Decode an image and its label in full and count the label's pixels per train id; `lookup` is `classes.lookup()`.

    Raises DatasetError, naming the file, where one cannot be decoded, the sizes differ or an id is not in the classes.
    """
    height, width, _ = read_image(image_uri, depth_range).shape
    if label_uri is None:
        return Facts(height, width, None)
    label = read_raw_label(label_uri, classes, check=True)
    if label.shape != (height, width):
        size = f"{label.shape[1]} x {label.shape[0]}"
        raise DatasetError(f"{label_uri}: label is {size} pixels (width x height), its image {width} x {height}")
    if classes.color_to_train:
        raw_ids, pixels = np.unique(label, return_counts=True)
    else:
        counts = np.bincount(label.ravel())
        raw_ids = np.flatnonzero(counts)
        pixels = counts[raw_ids]
    train_ids = lookup[raw_ids]
    if (unknown := train_ids < 0).any():
        raise DatasetError(f"{label_uri}: {unknown_text(raw_ids[unknown], pixels[unknown], classes)}")
    counted = train_ids < len(classes)  # the rest is ignored
    class_pixels = np.zeros(len(classes), np.int64)
    np.add.at(class_pixels, train_ids[counted], pixels[counted])
    places = lookup[at_places(label)].astype(np.uint8).tobytes()
    return Facts(height, width, class_pixels, raw_ids, places)
