"""Folders of images and of labels by split: one's own, and those that converters of datasets leave."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from udaseg.data.folders import IMAGE_SUFFIXES, LABEL_SUFFIXES, Pair, files, folders, has_folder, match, walk
from udaseg.data.storage import children, join
from udaseg.errors import DatasetError

_SPLITS = {"train": "train", "training": "train", "val": "val", "validation": "val", "test": "test", "testing": "test"}
"""What folders of splits are called -> the split."""
_IMAGES, _LABELS = ("images", "img_dir"), ("labels", "annotations", "ann_dir", "masks")


class _Split(NamedTuple):
    """Where a split lies."""

    name: str
    images: str
    labels: str | None


def by_split(root: str) -> Iterator[Pair]:
    """ROOT/<split>/images/... or ROOT/images/<split>/..., and labels of the same paths for a labelled split.

    They are ROOT/<split>/labels/... or ROOT/labels/<split>/.... In the second form, that of Ultralytics and of
    mmsegmentation's converters, folders may be called img_dir, and annotations, ann_dir or masks, and all folders right
    below images/ are those of splits. Folders training, validation and testing are train, val and test.
    """
    inner, outer = _inner(root), _outer(root)
    if inner and outer:
        forms = "are of two forms, <split>/images and images/<split>; leave one of them in this root"
        raise DatasetError(f"{inner[0].images} and {outer[0].images} {forms}")
    if not inner and not outer:
        raise DatasetError(f"{root}: no folder <split>/images in this folder{_why_not_outer(root)}")
    yield from _unique(inner or outer)


def by_kind(root: str, images: str, labels: str) -> Iterator[Pair]:
    """ROOT/<images>/<split>/... and ROOT/<labels>/<split>/..., as in the second form of `by_split`."""
    splits = _outer(root, [images], [labels])
    if not splits:
        raise DatasetError(f"{root}: no folder {images}/<split> in this folder{_why_not_outer(root, [images])}")
    yield from _unique(splits)


def is_converted(root: str) -> bool:
    """Whether a root has the folder of images that mmsegmentation's converters make."""
    return has_folder(join(root, "img_dir"))


def converted(root: str, *downloaded: str) -> Iterator[Pair]:
    """ROOT/img_dir/<split>/... and ROOT/ann_dir/<split>/..., which mmsegmentation's converters leave.

    Raises DatasetError where one of the folders that were `downloaded` is in the root too.
    """
    if there := [join(root, folder) for folder in downloaded if has_folder(join(root, folder))]:
        both = "are what was downloaded and what a converter made of it; leave one of them in this root"
        raise DatasetError(f"{there[0]} and {join(root, 'img_dir')} {both}")
    return by_kind(root, "img_dir", "ann_dir")


def has_splits(root: str) -> bool:
    """Whether `by_split` is to read a bare folder, in which it finds splits, or train where images/ has them."""
    return bool(_inner(root)) or any(split.name == "train" for split in _outer(root))


def _inner(root: str) -> list[_Split]:
    """Of ROOT/<split>/images."""
    there = [folder for folder in folders(root) if has_folder(join(root, folder, "images"))]
    found = _of_splits(root, {folder: _SPLITS.get(folder, folder) for folder in there})
    return [_Split(split, join(place, "images"), join(place, "labels")) for split, place in found.items()]


def _outer(root: str, images: Sequence[str] = _IMAGES, labels: Sequence[str] = _LABELS) -> list[_Split]:
    """Of ROOT/<images>/<split>; none where there are other folders than those of splits, drives say, or images.

    Raises DatasetError where two folders hold one thing, and where labels are of no split that has images.
    """
    image_root = _one([join(root, name) for name in images if _other(join(root, name)) is None])
    if image_root is None:
        return []
    there = [join(root, name) for name in labels if has_folder(join(root, name))]
    label_root = _one([folder for folder in there if _of_splits(folder)])
    images_of, labels_of = _of_splits(image_root), {} if label_root is None else _of_splits(label_root)
    if not images_of.keys() & labels_of.keys():
        for folder in there:
            if any(walk(folder, LABEL_SUFFIXES)):
                apart = f"holds labels, but none in a folder of a split of {image_root}"
                raise DatasetError(f"{folder}: {apart}; move them into such folders, or elsewhere")
    return [_Split(split, place, labels_of.get(split)) for split, place in images_of.items()]


def _of_splits(folder: str, known: dict[str, str] = _SPLITS) -> dict[str, str]:
    """Split -> its folder, of those right below a folder. Raises DatasetError where two are of one split."""
    found: dict[str, str] = {}
    for name in folders(folder):
        if name in known and (first := found.setdefault(known[name], join(folder, name))) != join(folder, name):
            raise DatasetError(f"{first} and {join(folder, name)} are one split; put what these hold into one folder")
    return found


def _one(found: Sequence[str]) -> str | None:
    """The only one. Raises DatasetError where there are several."""
    if len(found) > 1:
        raise DatasetError(f"{' and '.join(found)} hold folders of splits; leave one of them in this root")
    return found[0] if found else None


def _other(folder: str) -> str | None:
    """What a folder holds but folders of splits, empty for nothing at all; None where it has these alone."""
    if not has_folder(folder):
        return ""
    names = folders(folder)
    if not names or (other := [name for name in names if name not in _SPLITS]):
        return other[0] if names else ""
    found = sorted(i.base_name for i in children(folder) if i.is_file and not i.base_name.startswith("."))
    return next((name for name in found if name.lower().endswith(IMAGE_SUFFIXES)), None)


def _why_not_outer(root: str, images: Sequence[str] = _IMAGES) -> str:
    """Why a root is not of the form images/<split>; empty where it has no such folder."""
    for name in images:
        if other := _other(join(root, name)):
            return f", and {name}/ holds {other!r} and not folders {', '.join(_SPLITS)} alone"
    return ""


def _unique(splits: Iterable[_Split]) -> list[Pair]:
    """The pairs of splits; ids begin with the split where the paths alone would not be unique."""
    pairs = [pair for split in splits for pair in _pairs(split)]
    splits_of: dict[str, set[str]] = {}
    for pair in pairs:
        splits_of.setdefault(pair.image_id, set()).add(pair.split)
    if any(len(of) > 1 for of in splits_of.values()):
        pairs = [pair._replace(image_id=f"{pair.split}/{pair.image_id}") for pair in pairs]
    return pairs


def _pairs(split: _Split) -> Iterator[Pair]:
    """Those of a split. Raises DatasetError where labels in train ids lie beside those that they were made of."""
    there = split.labels is not None and has_folder(split.labels)
    labels = files(split.labels, LABEL_SUFFIXES) if split.labels is not None and there else []
    uri_of = dict(labels)
    for name, uri in labels:
        raw = name.removesuffix("_labelTrainIds")
        if raw != name and (first := uri_of.get(raw)) is not None:
            raise DatasetError(f"{first} and {uri} are two labels of one image; move those of one kind elsewhere")
    return match(files(split.images, IMAGE_SUFFIXES), labels, split.name)
