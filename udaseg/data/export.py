"""Label maps under the names that other tools look for: Cityscapes' and COCO-Stuff's folders, and those that the
servers of benchmarks score."""

from __future__ import annotations

import hashlib
import posixpath
from collections.abc import Iterable, Mapping
from typing import Any, Literal, NamedTuple

import numpy as np

from udaseg.data.classes import Classes
from udaseg.data.storage import filesystem
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.errors import DatasetError

ExportFormat = Literal["cityscapes", "coco_stuff", "submission"]


class Names(NamedTuple):
    """Where a layout has an image and its label maps, below the folder of the layout."""

    image: str | None = None
    """None where it holds no images."""
    labels: Mapping[str, np.ndarray | None] = {}
    """Path -> (256,) uint8 lookup of train ids, for pseudo-labels; None = as they are."""
    predictions: Mapping[str, np.ndarray] = {}
    """Likewise for the most probable class of every pixel."""


def names(layout: ExportFormat, image_id: str, split: str, image_uri: str, classes: Classes) -> Names:
    """The files of an image.

    Cityscapes' tools look for <split>/<city>/<name>; an image that lies in no folder gets the city "fleet". Label ids
    are those of Cityscapes where all classes are its own, else train ids. COCO-Stuff's pixel maps hold train ids.

    What servers score lies in one folder under the images' own names: of Cityscapes (..._leftImg8bit) label ids, of
    ACDC and Dark Zurich (..._rgb_anon) train ids, as the authors of DAFormer and SePiCo hand them in.

    Args:
        layout: which one.
        image_id: path-like, without suffix.
        split: "train", "val", ...
        image_uri: of its file; an id by one of our layouts lacks what its name ends in.
        classes: names in the order of train ids.

    Raises DatasetError where a server has no such image or class.
    """
    if layout == "submission":
        stem = posixpath.splitext(filesystem(image_uri)[1])[0]
        return Names(predictions={f"{posixpath.basename(stem)}.png": _submitted_ids(stem, classes)})
    if layout == "coco_stuff":
        return Names(f"images/{split}/{image_id}{suffix_of(image_uri)}", {f"annotations/{split}/{image_id}.png": None})
    place = image_id.removesuffix("_leftImg8bit")
    place = f"{split}/{place}" if "/" in place else f"{split}/fleet/{place}"
    labels = {
        f"gtFine/{place}_gtFine_labelTrainIds.png": None,
        f"gtFine/{place}_gtFine_labelIds.png": _cityscapes_ids(classes),
    }
    return Names(f"leftImg8bit/{place}_leftImg8bit.png", labels)


def require_unique_names(
    layout: ExportFormat, images: Iterable[Mapping[str, Any]], again: Iterable[Mapping[str, Any]], classes: Classes
) -> None:
    """Make sure that a layout has a place for each image, and gives it to it alone. Holds 8 bytes an image.

    Args:
        layout: which one.
        images: rows with "image_id", "split" and "image_uri".
        again: the same, read where two of `images` seem to have one name.
        classes: of the labels.

    Raises DatasetError, naming two images of one name, or as `names` does.
    """

    def place(row: Mapping[str, Any]) -> str:
        found = names(layout, row["image_id"], row["split"], row["image_uri"], classes)
        return next(iter({**found.labels, **found.predictions}))

    def short(name: str) -> int:
        return int.from_bytes(hashlib.blake2b(name.encode(), digest_size=8).digest(), "big")

    found = np.sort(np.fromiter((short(place(row)) for row in images), np.uint64))
    twice = set(found[1:][found[1:] == found[:-1]].tolist())
    first: dict[str, str] = {}
    for row in again if twice else ():
        if short(name := place(row)) in twice and first.setdefault(name, row["image_id"]) != row["image_id"]:
            raise DatasetError(
                f"images {first[name]!r} and {row['image_id']!r} would both be {name!r} in layout {layout}; "
                "rename one, or leave the layout out"
            )


def suffix_of(uri: str) -> str:
    """ ".jpg" of an image's address."""
    return posixpath.splitext(filesystem(uri)[1])[1]


def _submitted_ids(stem: str, classes: Classes) -> np.ndarray:
    if other := [name for name in classes.names if name not in CITYSCAPES_CLASSES.names]:
        raise DatasetError(f"layout submission: {other[0]!r} is no class that the servers of Cityscapes and ACDC know")
    if stem.endswith("_rgb_anon"):
        train_ids = [CITYSCAPES_CLASSES.names.index(name) for name in classes.names]
        return np.array(train_ids + [255] * (256 - len(train_ids)), np.uint8)
    label_ids = _cityscapes_ids(classes)
    if label_ids is None or not stem.endswith("_leftImg8bit"):
        raise DatasetError(
            f"layout submission: image {stem!r} is none of Cityscapes (..._leftImg8bit), ACDC or Dark Zurich "
            "(..._rgb_anon); give a dataset of theirs with their own names, or leave the layout out"
        )
    return label_ids


def _cityscapes_ids(classes: Classes) -> np.ndarray | None:
    if not set(classes.names) <= set(CITYSCAPES_CLASSES.names):
        return None
    raw_of = {train: raw for raw, train in CITYSCAPES_CLASSES.raw_to_train.items() if train != 255}
    lookup = np.zeros(256, np.uint8)  # 0 is Cityscapes' "unlabeled"
    for train, name in enumerate(classes.names):
        lookup[train] = raw_of[CITYSCAPES_CLASSES.names.index(name)]
    return lookup
