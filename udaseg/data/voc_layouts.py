"""How Pascal VOC lies on disk, and CVAT's "Segmentation mask 1.1", which follows it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from udaseg.data.classes import MAX_CLASSES_BYTES, Classes, of_color_labels
from udaseg.data.folders import IMAGE_SUFFIXES, Pair, composed, files, has_folder
from udaseg.data.storage import exists, join, read_bytes
from udaseg.errors import DatasetError

_CVAT_SPLITS = {"train": "train", "validation": "val", "val": "val", "test": "test"}
"""Subsets in small letters: what exports call Train, Validation and Test."""


def voc(root: str) -> Iterator[Pair]:
    """JPEGImages/<id>.jpg, SegmentationClass/<id>.png; ImageSets/Segmentation/<split>.txt has the ids of a split.

    Images that no list names have no segmentation. trainval.txt is train and val; beside one of them alone, the rest of
    it is the other. Where SegmentationClassAug has the labels of SBD (Hariharan et al., ICCV 2011), they are those of
    images without a label of VOC's own, and trainaug.txt or train_aug.txt is train, in place of train.txt and aug.txt.
    Raises DatasetError where two lists name one image.
    """
    images, labels = _of_ids(root, "JPEGImages", IMAGE_SUFFIXES), _of_ids(root, "SegmentationClass", [".png"])
    found = files(join(root, "ImageSets", "Segmentation"), [".txt"])
    lists = {name: (uri, _ids(uri)) for name, uri in found}
    if has_folder(join(root, "SegmentationClassAug")):
        labels = _of_ids(root, "SegmentationClassAug", [".png"]) | labels
        if longer := next((name for name in ("trainaug", "train_aug") if name in lists), None):
            lists["train"] = lists.pop(longer)
            lists.pop("aug", None)
    known = sorted({"train", "val"} & lists.keys())
    if "trainval" in lists and known:
        uri, both = lists.pop("trainval")
        if len(known) == 1:
            other = set(lists[known[0]][1])
            lists["val" if known == ["train"] else "train"] = uri, [i for i in both if i not in other]
    taken: dict[str, str] = {}
    for name, (uri, ids) in sorted(lists.items()):
        for image_id in ids:
            key = composed(image_id)
            if (first := taken.setdefault(key, uri)) != uri:
                raise DatasetError(f"{first} and {uri}: both name {image_id!r}; remove one of the lists")
            if key not in images:
                raise DatasetError(f"{uri}: {image_id!r} is not in {join(root, 'JPEGImages')}")
            yield Pair(image_id, images[key], labels.get(key), "train" if name == "default" else name)


def _of_ids(root: str, folder: str, suffixes: Sequence[str]) -> dict[str, str]:
    """The URIs of a folder's files by their ids, see `composed`. Raises DatasetError where two have one id."""
    found: dict[str, str] = {}
    for file_id, uri in files(join(root, folder), suffixes):
        first = found.setdefault(composed(file_id), uri)
        if first != uri:
            raise DatasetError(f"{first} and {uri}: the id {file_id!r} is not unique; remove one of them")
    return found


def _ids(uri: str) -> list[str]:
    lines = (line.strip().strip('"') for line in _text(uri).splitlines())  # CVAT quotes names with blanks
    return [line for line in lines if line]


def cvat(root: str) -> Iterator[Pair]:
    """CVAT's "Segmentation mask 1.1": as `voc`, with the labels in the colours that labelmap.txt names."""
    if not has_folder(join(root, "JPEGImages")):
        raise DatasetError(f"{root}: no folder JPEGImages; export from CVAT with 'Save images'")
    for pair in voc(root):
        yield pair._replace(split=_CVAT_SPLITS.get(pair.split.lower(), pair.split))


def cvat_classes(root: str, given: Classes | None) -> Classes:
    """The classes of labelmap.txt, whose lines are name:r,g,b:parts:actions, in its order or in that of given ones.

    An export may order and colour them otherwise than the last one did: names decide. A background that the given
    classes lack is ignored. Raises DatasetError where a line is none, or names a class that is not given.
    """
    uri = join(root, "labelmap.txt")
    colour_of: dict[str, tuple[int, int, int]] = {}
    for number, line in enumerate(_text(uri).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        found = re.fullmatch(r"(.+):(\d{1,3}),(\d{1,3}),(\d{1,3}):.*", line.strip())
        if found is None or found[1] in colour_of:
            raise DatasetError(f"{uri}: line {number}, {line[:60]!r}, is not name:r,g,b:parts:actions of another class")
        colour_of[found[1]] = (int(found[2]), int(found[3]), int(found[4]))
    if given is None:
        classes = Classes(names=tuple(colour_of), palette=tuple(colour_of.values()))
        return of_color_labels(classes, "palette")
    train_id = {name: k for k, name in enumerate(given.names)}
    if unknown := [name for name in colour_of if name not in {*given.names, "background"}]:
        raise DatasetError(f"{uri}: has {', '.join(map(repr, unknown))}, which the class list lacks")
    colors = {",".join(map(str, colour)): train_id.get(name, 255) for name, colour in colour_of.items()}
    if len(colors) < len(colour_of):
        raise DatasetError(f"{uri}: two classes have one colour; give each its own in CVAT")
    return replace(given, color_to_train=colors, ids_in_red=False)


def _text(uri: str) -> str:
    """A text file. Raises DatasetError where it is missing or not UTF-8."""
    if not exists(uri):
        raise DatasetError(f"{uri}: no such file")
    try:
        return read_bytes(uri, limit=MAX_CLASSES_BYTES).decode()
    except UnicodeDecodeError:
        raise DatasetError(f"{uri}: not a text file in UTF-8") from None
