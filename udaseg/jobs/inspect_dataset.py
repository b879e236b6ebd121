"""`udaseg inspect`: what is in datasets, and what is doubtful about them, as a page; in this process, without Ray."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from PIL import Image

from udaseg.data.classes import Classes, read_classes
from udaseg.data.duplicates import duplicates
from udaseg.data.index import DatasetIndex, open_index
from udaseg.data.label_warnings import label_warnings
from udaseg.data.manifest import pixels_of_classes, read_manifest
from udaseg.data.pictures import overlay
from udaseg.data.storage import absolute, join, resolve, write_bytes
from udaseg.errors import DatasetError
from udaseg.jobs.output import own_directory
from udaseg.reports.dataset import Contents, dataset_page

PAGE = "inspection.html"
_COMMON = 0.95
"""A class with a larger share of the labelled pixels is suspicious."""
_SHEET, _SIDE = 12, 320  # images, pixels of the longer side
_NAMED = 3  # groups of duplicates


def inspect_datasets(out: str, directories: Sequence[str]) -> list[str]:
    """Write a page about datasets to the directory `out`; returns all its warnings.

    Raises DatasetError where one is no dataset of `udaseg prepare`, and ConfigError where `out` is anything else's.
    """
    datasets = {directory: read_manifest(directory) for directory in directories}
    classes = {directory: read_classes(directory) for directory in directories}
    with own_directory(out, "inspect"):
        contents = []
        for directory, manifest in datasets.items():
            sheet, unreadable = _sheet(directory)
            warnings = [
                *label_warnings(manifest, classes[directory]),
                *_common(manifest, classes[directory]),
                *unreadable,
            ]
            contents.append(Contents(directory, manifest, classes[directory], warnings, sheet))
        together = [*_other_classes(classes), *_twice(datasets)]
        write_bytes(join(out, PAGE), dataset_page(contents, together).encode())
    own = [f"{one.directory}: {warning}" for one in contents for warning in one.warnings]
    return [*together, *own]


def _common(manifest: pa.Table, classes: Classes) -> list[str]:
    pixels = pixels_of_classes(manifest, len(classes)).sum(0)
    shares = pixels / max(1, pixels.sum())
    return [
        f"class {classes.names[k]!r} is {100 * shares[k]:.2f} % of the labelled pixels"
        for k in np.flatnonzero(shares > _COMMON)
        if len(classes) > 1
    ]


def _other_classes(classes: dict[str, Classes]) -> list[str]:
    """What other datasets have otherwise than the first."""
    (first, wanted), *others = classes.items()
    found = []
    for directory, own in others:
        if own.names == wanted.names:
            continue
        missing, more = ([name for name in a.names if name not in b.names] for a, b in ((wanted, own), (own, wanted)))
        parts = [
            f"{what} {', '.join(map(repr, names))}" for what, names in (("lacks", missing), ("adds", more)) if names
        ]
        found.append(f"{directory}: its classes are not those of {first}: {'; '.join(parts) or 'their order differs'}")
    return found


def _twice(datasets: dict[str, pa.Table]) -> list[str]:
    """Images of the same bytes, in one split and in several; the latter are trained on and judged by."""
    rows: list[dict[str, Any]] = []
    for directory, manifest in datasets.items():
        for row in manifest.select(["image_id", "image_uri", "split"]).to_pylist():
            uri = absolute(resolve(row["image_uri"], directory))
            rows.append({"uri": uri, "name": row["image_id"], "where": (directory, row["split"])})
    within: list[list[dict[str, Any]]] = []
    across: list[list[dict[str, Any]]] = []
    for group in duplicates([row["uri"] for row in rows]):
        found = [rows[place] for place in group]
        (across if len({row["where"] for row in found}) > 1 else within).append(found)
    texts = []
    for groups, where in ((across, "in several splits or datasets"), (within, "more than once in a split")):
        if groups:
            named = "; ".join(
                " = ".join(f"{row['where'][0]} {row['where'][1]} {row['name']}" for row in group)
                for group in groups[:_NAMED]
            )
            texts.append(f"{len(groups)} images are {where}, by their bytes: {named}{', ...' * (len(groups) > _NAMED)}")
    return texts


def _sheet(directory: str) -> tuple[list[tuple[str, Image.Image]], list[str]]:
    """Images from all over a dataset, under their labels; what of them cannot be read."""
    index = open_index(absolute(directory))
    rows = np.unique(np.linspace(0, index.table.num_rows - 1, _SHEET).round().astype(int)).tolist()
    pictures, problems = [], []
    for row in rows:
        try:
            pictures.append((index.table["image_id"][row].as_py(), _picture(index, row)))
        except DatasetError as error:
            problems.append(str(error))
    return pictures, problems


def _picture(index: DatasetIndex, row: int) -> Image.Image:
    pixels = index.image(row)
    if index.table["label_uri"][row].is_valid:
        picture = overlay(pixels, index.train_ids(row), index.classes)
    else:
        picture = Image.fromarray(pixels)
    picture.thumbnail((_SIDE, _SIDE))
    return picture
