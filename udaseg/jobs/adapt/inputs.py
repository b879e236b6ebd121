"""What an adaptation is given, as datasets with held-out images: bare folders are prepared, and a split is made."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from udaseg.checkpoints.directory import read_card
from udaseg.data.classes import Classes, read_classes, require_same_classes
from udaseg.data.dataset_input import read_class_list
from udaseg.data.depth import require_depth_range
from udaseg.data.folders import folders
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.manifest import pixels_of_classes, read_manifest, write_dataset
from udaseg.data.split_trees import has_splits
from udaseg.data.storage import absolute, exists, join, resolve, write_bytes
from udaseg.errors import DatasetError
from udaseg.job_config import Adapt
from udaseg.jobs.adapt.choice import Images
from udaseg.jobs.output import mark
from udaseg.jobs.prepare import prepare
from udaseg.types import DepthRange

HELD_OUT = "val"
_RUNS = 50
"""Images are held out in runs of neighbours by name: those of a drive are nearly the same."""
_NEARLY_ALIKE = 1.25
"""Largest ratio of two domains' short sides up to which the smaller is enlarged in place of the larger shrunk."""


class Inputs(NamedTuple):
    """Dataset directories with the splits "train" and "val"."""

    source: str | None
    target: str


def check_inputs(told: Adapt) -> None:
    """Find, before anything is written, what would stop the adaptation.

    Raises DatasetError or CheckpointError: nothing to read, a source without labels, classes that differ.
    """
    require_depth_range(told.depth_range, "--depth-range")
    found: dict[str, Classes] = {}
    if told.checkpoint is not None:
        found[told.checkpoint] = read_card(told.checkpoint).classes
    given = {"source": told.source, "target": told.target}
    for domain, directory in given.items():
        if directory is None:
            continue
        if is_dataset(directory):
            found[directory] = read_classes(directory)
            continue
        arguments = _arguments(directory, domain)
        images = str(arguments.get("images", directory))
        if "root" not in arguments:
            deque(list_images(images), 0)  # which raises where there is none, or label maps lie beside
        if (file := _class_file(directory, told)) is not None:
            found[directory] = read_class_list(file)
        elif not found:
            raise DatasetError(
                f"{directory}: neither a dataset nor a folder with a classes.json; give one by --classes"
            )
    (of, wanted), *others = found.items()
    for uri, classes in others:
        require_same_classes(wanted, classes, uri, of=of)
    for domain, directory in given.items():
        if directory is None or not is_dataset(directory):
            continue
        index = open_index(absolute(directory))
        splits = {"train", HELD_OUT} & {"train", *index.splits}
        if domain == "source" and any(index.lacks(split, "label_uri") for split in splits):
            raise DatasetError(f"{directory}: a source has labels, and some of its images have none")
        index.rows("train")


def make_inputs(told: Adapt, out: str) -> Inputs:
    """The datasets, in `out`/data where they are not prepared or have no split that is held out.

    What a call before left there is made anew: it may have been of other folders, classes or images.
    """
    source = None if told.source is None else _dataset(told.source, "source", told, out, None)
    if source is not None:
        classes = join(source, "classes.json")
    else:
        assert told.checkpoint is not None  # see `Adapt.check`
        classes = join(out, "data", "classes.json")
        write_bytes(classes, read_card(told.checkpoint).classes.to_json().encode())
    return Inputs(source, _dataset(told.target, "target", told, out, classes))


def _dataset(directory: str, domain: str, told: Adapt, out: str, classes: str | None) -> str:
    """A dataset directory that has images held out. `classes`: the file of a bare folder that has none."""
    directory, own = absolute(directory), join(out, "data", domain)
    if not is_dataset(directory):
        given = _class_file(directory, told) or classes
        arguments = _arguments(directory, domain)
        try:
            prepare(out=own, classes=given, depth_range=_depth_range(told), overwrite=True, **arguments)
        except DatasetError as error:
            raise DatasetError(f"{error}. {_another_way(directory, domain, arguments)}") from None
        directory = own
    index = open_index(directory)
    if HELD_OUT in index.splits:
        return directory
    mark(own, "prepare")
    manifest, places = hold_out(read_manifest(directory), directory), index.class_places()
    write_dataset(own, manifest, index.classes, places, depth_range=index.depth_range)
    return own


def _another_way(directory: str, domain: str, arguments: Mapping[str, Any]) -> str:
    """What to do where `prepare` does not take a bare folder as it is: its options are its own."""
    way = f"Options named here are those of `udaseg prepare`: run it on {directory} with them, and give its --out here"
    if domain == "target" and "labels" in arguments:
        way += f"; or give {join(directory, 'images')} alone, since a target needs no labels"
    elif domain == "target" and "root" in arguments:
        way += "; or move what labels there are elsewhere, since a target needs none"
    return way


def hold_out(manifest: pa.Table, directory: str) -> pa.Table:
    """The manifest of a dataset directory with a tenth of its training images as "val"; of fewer than 100 a fifth.

    Raises DatasetError where there are fewer than two.
    """
    rows = manifest.to_pylist()
    train = sorted((row for row in rows if row["split"] == "train"), key=lambda row: row["image_id"])
    if len(train) < 2:
        raise DatasetError(f"{directory}: {len(train)} train images; there must be two at least, one is held out")
    runs = min(len(train), _RUNS)
    every = 10 if len(train) >= 100 else 5
    held = np.arange(len(train)) * runs // len(train) % every == every - 1
    held[-1] |= not held.any()
    for row, out in zip(train, held.tolist(), strict=True):
        row["split"] = HELD_OUT if out else "train"
    for row in rows:
        row |= {name: row[name] and resolve(row[name], directory) for name in row if name.endswith("_uri")}
    return pa.Table.from_pylist(rows, schema=manifest.schema)


def measure(inputs: Inputs) -> Images:
    """The sizes of both domains' images, by which they are trained on, and how many there are.

    The smaller domain's sizes, but the larger's where they are nearly alike, so that neither loses detail.
    """
    sizes, counts, portrait = [], [], True
    for directory in filter(None, inputs):
        index = open_index(directory)
        start, stop = index.rows("train")
        counts.append(stop - start)
        sides = np.stack([index.table[name].slice(start, stop - start) for name in ("height", "width")], 1)
        sizes.append((int(np.median(sides.min(1))), int(np.median(sides.max(1)))))
        portrait &= bool(np.median(sides[:, 0]) > np.median(sides[:, 1]))
    smaller, larger = min(sizes), max(sizes)
    short, long = larger if larger[0] <= _NEARLY_ALIKE * smaller[0] else smaller
    images = Images(short_side=short, long_side=long, portrait=portrait, count=max(counts))
    if inputs.source is None:
        return images
    return replace(images, commonest_class_pixels=max(1, int(np.median(_class_pixels(inputs.source).max(1)))))


def class_pixels(source: str) -> np.ndarray:
    """(K,) pixels of each class in the source's training images."""
    return _class_pixels(source).sum(0)


def _class_pixels(source: str) -> np.ndarray:
    """(N, K) pixels of each class in each of the source's training images."""
    return pixels_of_classes(read_manifest(source, "train"), len(read_classes(source)))


def is_dataset(directory: str) -> bool:
    return exists(join(directory, "manifest.parquet"))


def _arguments(directory: str, domain: str) -> dict[str, Any]:
    """How `prepare` reads a bare folder: by the splits of its layout folders, images/ and labels/, or images alone."""
    names = folders(directory)
    if has_splits(directory):
        return {"layout": "folders", "root": directory}
    images, labels = (join(directory, kind) if kind in names else None for kind in ("images", "labels"))
    if domain == "source" and (images is None or labels is None):
        raise DatasetError(
            f"{directory}: neither a dataset of `udaseg prepare` nor a folder of images/ and labels/, as a source is"
        )
    return {"images": images or directory} | ({"labels": labels} if images and labels else {})


def _depth_range(told: Adapt) -> DepthRange | None:
    """With which images of bare folders are read: as is told, else as the checkpoint's were."""
    if told.depth_range is None and told.checkpoint is not None:
        return read_card(told.checkpoint).depth_range
    return told.depth_range


def _class_file(directory: str, told: Adapt) -> str | None:
    """The class list of a bare folder: the one that is told, or its own."""
    own = join(directory, "classes.json")
    return told.classes or (own if exists(own) else None)
