"""COCO's panoptic and stuff annotations, as the official downloads unpack.

Sources of names and encodings: cocodataset.org, "Download" and "Format data"; github.com/cocodataset/panopticapi;
github.com/nightrome/cocostuff.
"""

from __future__ import annotations

import hashlib
import io
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.folders import IMAGE_SUFFIXES, Pair, Problem, files, has_folder, match, raw_labels
from udaseg.data.images import read_colours
from udaseg.data.storage import children, join, read_bytes, write_bytes
from udaseg.data.strict_json import parse_json
from udaseg.data.taxonomies import voc_palette
from udaseg.errors import DatasetError, UnreachableError

_MAX_BYTES = 1 << 31
"""panoptic_train2017.json has 0.4 GB."""
_OTHER = 183
"""What COCO-stuff calls all things together."""


class Segments(NamedTuple):
    """Which category each segment of a panoptic label is of."""

    of: Mapping[str, Mapping[int, int]]
    """URI of a label -> segment id -> category id."""
    digest: str
    """Of the annotations."""


def panoptic_pairs(root: str) -> Iterator[Pair]:
    """<split>2017/<id>.jpg and annotations/panoptic_<split>2017/<id>.png, as the JSON file beside that folder says.

    The labels hold numbers of segments; `drawn` makes label maps of them. Their folders may be in the root too, where
    Detectron2 has them. Splits whose images were not unpacked are passed over.
    """
    for name, uri in _there(root, "panoptic"):
        content, folder = _read(uri, "images", "annotations"), _images(root, name)
        file_of = {image["id"]: image["file_name"] for image in content["images"]}
        for annotation in content["annotations"]:
            image, label = file_of.get(annotation["image_id"]), annotation["file_name"]
            if image is None:
                raise DatasetError(f"{uri}: the image {annotation['image_id']!r} of {label} is not among its images")
            label_uri = join(_segment_folder(root, name), *label.split("/"))
            yield Pair(_stem(image), join(folder, *image.split("/")), label_uri, _split(name))


def panoptic_classes(root: str, given: Classes | None) -> Classes:
    """The categories in their order, with their colours; or the class list given, of category ids."""
    return given or _classes(_smallest(root, "panoptic"), {})


def panoptic_segments(root: str) -> Segments:
    """Of all panoptic annotations in a root folder."""
    segments: dict[str, dict[int, int]] = {}
    digest = hashlib.sha256()
    for name, uri in _there(root, "panoptic"):
        folder = _segment_folder(root, name)
        for annotation in _read(uri, "annotations", digest=digest)["annotations"]:
            parts = annotation["segments_info"]
            segments[join(folder, *annotation["file_name"].split("/"))] = {s["id"]: s["category_id"] for s in parts}
    return Segments(segments, digest.hexdigest()[:12])


def stuff_pairs(root: str) -> Iterator[Pair]:
    """<split>2017/<id>.jpg and annotations/stuff_<split>2017_pixelmaps/<id>.png, whose pixels are category ids.

    The pixel maps are a zip within the zip of annotations. Splits whose images were not unpacked are passed over.
    """
    for name, _ in _there(root, "stuff"):
        folder = join(root, "annotations", f"stuff_{name}_pixelmaps")
        if not has_folder(folder):
            raise DatasetError(f"{folder}: no such folder; unpack stuff_{name}_pixelmaps.zip there")
        yield from match(files(_images(root, name), IMAGE_SUFFIXES), files(folder, [".png"]), _split(name))


def stuff_classes(root: str, given: Classes | None) -> Classes:
    """The categories of stuff in their order; things, which are one category (183, "other"), are ignored."""
    return given or _classes(_smallest(root, "stuff"), {_OTHER: 255})


_STUFF_AND_THINGS = "annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"
"""Where the two folders of stuffthingmaps_trainval2017.zip are put."""


def stuff_164k_pairs(root: str) -> Iterator[Pair]:
    """<split>2017/<id>.jpg and annotations/<split>2017/<id>.png of stuffthingmaps_trainval2017.zip, things and stuff.

    The folders of labels may lie in that of their archive too. Splits whose images were not unpacked are passed over.
    """
    names = "train2017", "val2017"
    places = [join(root, folder) for folder in _STUFF_AND_THINGS]
    found = [place for place in places if any(has_folder(join(place, name)) for name in names)]
    if len(found) != 1:
        where = f"{' and '.join(found)} have" if found else f"{root}: none of {', '.join(_STUFF_AND_THINGS)} has"
        raise DatasetError(f"{where} train2017 or val2017; unpack stuffthingmaps_trainval2017.zip into one of them")
    labelled = [name for name in names if has_folder(join(found[0], name))]
    for name in [name for name in labelled if has_folder(_images(root, name))] or labelled:
        labels = raw_labels(join(found[0], name))
        yield from match(files(_images(root, name), IMAGE_SUFFIXES), labels, _split(name))


def drawn(pairs: Sequence[Pair], segments: Segments, folder: str, done: list[str]) -> tuple[list[Pair], list[Problem]]:
    """The pairs with label maps of category ids in place of segments, which are written below a folder.

    A segment's number is red + 256 green + 65536 blue. Returns the problems of labels that cannot be drawn, too;
    the URIs of those that were are added to `done`, one by one.
    """

    def draw(pair: Pair) -> Pair | Problem:
        assert pair.label_uri is not None
        try:
            label = _categories(read_colours(pair.label_uri), segments.of[pair.label_uri])
        except UnreachableError:
            raise
        except DatasetError as error:
            text = str(error) if pair.label_uri in str(error) else f"{pair.label_uri}: {error}"
            return Problem(pair.image_id, text)
        uri = join(folder, pair.split, f"{pair.image_id}.png")
        stream = io.BytesIO()
        Image.fromarray(label).save(stream, "PNG")
        write_bytes(uri, stream.getvalue())
        done.append(uri)
        return pair._replace(label_uri=uri)

    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(draw, pairs))
    return [f for f in found if isinstance(f, Pair)], [f for f in found if isinstance(f, Problem)]


def _categories(colours: np.ndarray, category_of: Mapping[int, int]) -> np.ndarray:
    """(H, W) uint8 or, where there are larger ids, uint16 of codes of `decode_colours`; 0 where there is no segment."""
    numbers = colours >> 16 | colours & 0xFF00 | (colours & 0xFF) << 16
    found, place, pixels = np.unique(numbers, return_inverse=True, return_counts=True)
    unknown = [(n, p) for n, p in zip(found.tolist(), pixels.tolist(), strict=True) if n and n not in category_of]
    if unknown:
        number, count = unknown[0]
        raise DatasetError(f"segment {number} ({count} pixels) is not in the annotations")
    ids = np.array([category_of.get(n, 0) for n in found.tolist()])
    if ids.max() > 65535 or ids.min() < 0:
        raise DatasetError(f"category {ids.max()}; ids of 0 to 65535 are possible")
    label: np.ndarray = ids.astype(np.uint16 if ids.max() > 255 else np.uint8)[place].reshape(numbers.shape)
    return label


def _annotations(root: str, kind: str) -> list[tuple[str, str]]:
    """(name, URI) of annotations/<kind>_<name>.json, sorted. Raises DatasetError where there is none."""
    folder = join(root, "annotations")
    names = sorted(info.base_name for info in children(folder) if info.is_file)
    found = [(m[1], join(folder, name)) for name in names if (m := re.fullmatch(rf"{kind}_(\w+)\.json", name))]
    if not found:
        raise DatasetError(f"{folder}: no file {kind}_<split>.json in this folder")
    return found


def _there(root: str, kind: str) -> list[tuple[str, str]]:
    """Those of `_annotations` whose images are there, or all where none are."""
    found = _annotations(root, kind)
    return [one for one in found if has_folder(_images(root, one[0]))] or found


def _segment_folder(root: str, name: str) -> str:
    """Where the labels of a split are, whose pixels are segments."""
    beside = join(root, f"panoptic_{name}")
    below = join(root, "annotations", f"panoptic_{name}")
    return beside if not has_folder(below) and has_folder(beside) else below


def _smallest(root: str, kind: str) -> str:
    """The annotations of fewest bytes: all have the same categories."""
    sizes = {info.base_name: info.size for info in children(join(root, "annotations"))}
    _, uri = min(_annotations(root, kind), key=lambda one: sizes[f"{kind}_{one[0]}.json"])
    return uri


def _read(uri: str, *lists: str, digest: Any = None) -> dict[str, Any]:
    """A JSON file of annotations. Raises DatasetError, naming it, where it has not these lists of objects."""
    content = read_bytes(uri, limit=_MAX_BYTES)
    if digest is not None:
        digest.update(content)
    value = parse_json(content, uri)
    for name in lists:
        entries = value.get(name) if isinstance(value, dict) else None
        lacking = [e for e in entries or () if not isinstance(e, dict) or not _KEYS[name] <= e.keys()]
        if not isinstance(entries, list) or lacking:
            raise DatasetError(f"{uri}: {name!r} is not a list of objects with {', '.join(sorted(_KEYS[name]))}")
    return dict(value)


_KEYS = {
    "images": {"id", "file_name"},
    "annotations": {"image_id", "file_name", "segments_info"},
    "categories": {"id", "name"},
}


def _classes(uri: str, ignored: Mapping[int, int]) -> Classes:
    categories = [c for c in _read(uri, "categories")["categories"] if c["id"] not in ignored]
    colours = voc_palette(len(categories) + 1)[1:]  # for those without, other than the first, black
    palette = tuple(tuple(c.get("color", colour)) for c, colour in zip(categories, colours, strict=True))
    own = {category["id"]: k for k, category in enumerate(categories)}
    try:
        return Classes(
            names=tuple(c["name"] for c in categories),
            palette=palette,
            raw_to_train={0: 255, 255: 255, **ignored, **own},
        )
    except DatasetError as error:
        raise DatasetError(f"{uri}: {error}") from None


def _images(root: str, name: str) -> str:
    """The folder of a split's images, in the root or in its folder images."""
    beside = join(root, "images", name)
    return beside if has_folder(beside) else join(root, name)


def _split(name: str) -> str:
    return re.sub(r"\d{4}$", "", name)


def _stem(file: str) -> str:
    return file.rpartition(".")[0]
