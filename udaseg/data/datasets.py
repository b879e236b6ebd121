"""Where images and labels lie, and what is in them. A new dataset is one function and one entry of `LAYOUTS`.

Nothing here knows of Ray: `pipelines/prepare.py` runs `inspect` over what a layout finds.
"""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.fs as pafs
from PIL import Image, UnidentifiedImageError

from udaseg.data.schema import Classes, DatasetError, exists, filesystem, join, read_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)
_FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF")  # Pillow's others include formats that run programs


class Pair(NamedTuple):
    """An image and its label. A label without image is a Pair too, so that it can be told."""

    image_id: str
    image_uri: str | None
    label_uri: str | None
    split: str


class Problem(NamedTuple):
    """Why an image cannot be used; the text names the file."""

    image_id: str
    text: str


class Facts(NamedTuple):
    """What the manifest keeps of an image's and its label's pixels."""

    height: int
    width: int
    class_pixels: np.ndarray | None
    """(num_classes,) int64, None where unlabelled."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a dataset lies on disk."""

    pairs: Callable[[str], Iterator[Pair]]
    """Root folder -> its pairs. Raises DatasetError where folders are missing or empty."""
    classes: Classes | None = None
    """None where the user gives them, in ROOT/classes.json or by `--classes`."""


# -- finding files


def _children(folder: str, recursive: bool) -> list[pafs.FileInfo]:
    fs, path = filesystem(folder)
    if fs.get_file_info(path).type != pafs.FileType.Directory:
        raise DatasetError(f"{folder}: no such folder")
    return fs.get_file_info(pafs.FileSelector(path, recursive=recursive))


def files(folder: str, suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """(path below `folder` less its suffix, URI) of each file in or below it that ends in one of `suffixes`, sorted.

    Raises DatasetError where the folder is missing or has no such file.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    _, root = filesystem(folder)
    found = []
    for info in _children(folder, recursive=True):
        suffix = next((s for s in suffixes if info.path.lower().endswith(s.lower())), None)
        if info.is_file and suffix:
            path = info.path[len(root) :].lstrip("/")
            found.append((path[: -len(suffix)], join(folder, path)))
    if not found:
        raise DatasetError(f"{folder}: no file in this folder or below ends in {' or '.join(suffixes)}")
    return sorted(found)


def folders(folder: str) -> list[str]:
    """The sorted names of the folders in `folder`. Raises DatasetError where it is missing."""
    return sorted(i.base_name for i in _children(folder, recursive=False) if i.type == pafs.FileType.Directory)


def match(images: Iterable[tuple[str, str]], labels: Iterable[tuple[str, str]], split: str) -> Iterator[Pair]:
    """Join images and labels, both (id, URI), by id. What stands alone, or twice, is kept for `sort_out` to find."""
    labels_of: dict[str, list[str | None]] = {}
    for image_id, uri in labels:
        labels_of.setdefault(image_id, []).append(uri)
    matched = set()
    for image_id, uri in images:
        matched.add(image_id)
        for label_uri in labels_of.get(image_id, [None]):
            yield Pair(image_id, uri, label_uri, split)
    for image_id, label_uris in labels_of.items():
        if image_id not in matched:
            for label_uri in label_uris:
                yield Pair(image_id, None, label_uri, split)


def sort_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Problem]]:
    """The usable pairs, in order, and the problems of the others.

    Refused: an image without label in a split that has labels, a label without image, and all images of an id that is
    not unique, since none of them is known to be the right one.
    """
    labelled = {pair.split for pair in pairs if pair.label_uri}
    times = Counter(pair.image_id for pair in pairs)
    good, problems = [], []
    for pair in pairs:
        if times[pair.image_id] > 1:
            where = " and ".join(filter(None, (pair.image_uri, pair.label_uri)))
            problems.append(Problem(pair.image_id, f"{where}: its id {pair.image_id!r} is not unique"))
        elif pair.image_uri is None:
            problems.append(Problem(pair.image_id, f"{pair.label_uri}: label without image"))
        elif pair.label_uri is None and pair.split in labelled:
            problems.append(Problem(pair.image_id, f"{pair.image_uri}: image without label"))
        else:
            good.append(pair)
    return good, problems


# -- reading files


def _open(data: bytes) -> Image.Image:
    """Decode all pixels of an encoded image, as they are stored. Raises DatasetError with the reason."""
    try:
        image = Image.open(io.BytesIO(data), formats=_FORMATS)
        image.load()  # open() reads headers only; a truncated file is noticed here
        return image
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

    Raises DatasetError, without the file's name, where it is broken or has several channels.
    """
    image = _open(data)
    if image.mode not in ("1", "L", "P", "I;16", "I;16B", "I"):
        raise DatasetError(f"label has {len(image.getbands())} channels (mode {image.mode}), not one channel of ids")
    label = np.asarray(image).astype(np.uint16)
    if image.format == "PNG" and image.mode == "L":
        # Pillow stretches grey of 2 and 4 bits, which PNG optimisers write, to 0..255; byte 24 is the number of bits.
        label //= {2: 85, 4: 17}.get(data[24], 1)
    return label


def _read(uri: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return decode(read_bytes(uri))
    except OSError as error:
        raise DatasetError(f"{uri}: cannot be read: {error}") from None
    except DatasetError as error:
        raise DatasetError(f"{uri}: {error}") from None


def read_image(uri: str) -> np.ndarray:
    """(H, W, 3) uint8 RGB of the image at `uri`. Raises DatasetError, naming it, where it cannot be read."""
    return _read(uri, decode_image)


def read_label(uri: str) -> np.ndarray:
    """(H, W) uint16 raw ids of the label map at `uri`. Raises DatasetError, naming it, where it cannot be read."""
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
    return Facts(height, width, class_pixels)


# -- layouts


def _folders(root: str) -> Iterator[Pair]:
    """ROOT/<split>/images/... and, for a labelled split, ROOT/<split>/labels/... with the same paths."""
    pairs: list[Pair] = []
    for split in folders(root):
        image_folder, label_folder = join(root, split, "images"), join(root, split, "labels")
        if exists(image_folder):
            labels = files(label_folder, LABEL_SUFFIXES) if exists(label_folder) else []
            pairs.extend(match(files(image_folder, IMAGE_SUFFIXES), labels, split))
    if not pairs:
        raise DatasetError(f"{root}: no folder <split>/images in this folder")
    splits_of: dict[str, set[str]] = {}
    for pair in pairs:
        splits_of.setdefault(pair.image_id, set()).add(pair.split)
    if any(len(splits) > 1 for splits in splits_of.values()):  # the paths alone would not be unique
        pairs = [pair._replace(image_id=f"{pair.split}/{pair.image_id}") for pair in pairs]
    yield from pairs


def _cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png and, where labelled, gtFine/<split>/<city>/*_gtFine_labelIds.png."""
    image_root = join(root, "leftImg8bit")
    splits = folders(image_root)
    if not splits:
        raise DatasetError(f"{image_root}: no folder of a split in this folder")
    for split in splits:
        label_folder = join(root, "gtFine", split)
        labels = files(label_folder, ["_gtFine_labelIds.png"]) if exists(label_folder) else []
        yield from match(files(join(image_root, split), ["_leftImg8bit.png"]), labels, split)


# (name, colour, raw id), in the order of the train ids
_CITYSCAPES = (
    ("road", (128, 64, 128), 7),
    ("sidewalk", (244, 35, 232), 8),
    ("building", (70, 70, 70), 11),
    ("wall", (102, 102, 156), 12),
    ("fence", (190, 153, 153), 13),
    ("pole", (153, 153, 153), 17),
    ("traffic light", (250, 170, 30), 19),
    ("traffic sign", (220, 220, 0), 20),
    ("vegetation", (107, 142, 35), 21),
    ("terrain", (152, 251, 152), 22),
    ("sky", (70, 130, 180), 23),
    ("person", (220, 20, 60), 24),
    ("rider", (255, 0, 0), 25),
    ("car", (0, 0, 142), 26),
    ("truck", (0, 0, 70), 27),
    ("bus", (0, 60, 100), 28),
    ("train", (0, 80, 100), 31),
    ("motorcycle", (0, 0, 230), 32),
    ("bicycle", (119, 11, 32), 33),
)

CITYSCAPES_CLASSES = Classes(
    names=tuple(name for name, _, _ in _CITYSCAPES),
    palette=tuple(colour for _, colour, _ in _CITYSCAPES),
    # Raw ids run from 0 to 33; those that are not evaluated are ignored.
    raw_to_train=dict.fromkeys(range(34), 255) | {raw: train for train, (_, _, raw) in enumerate(_CITYSCAPES)},
)

LAYOUTS: dict[str, Layout] = {
    "folders": Layout(pairs=_folders),
    "cityscapes": Layout(pairs=_cityscapes, classes=CITYSCAPES_CLASSES),
}
