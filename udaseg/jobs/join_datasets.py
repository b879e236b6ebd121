"""`udaseg join`: one dataset directory of several, such as several sources; images and labels stay where they are."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from udaseg.data.classes import Classes, require_same_classes
from udaseg.data.index import DatasetIndex, open_index
from udaseg.data.manifest import with_columns, write_dataset
from udaseg.data.storage import absolute, exists, join, resolve, to_uri, to_uris
from udaseg.errors import DatasetError
from udaseg.jobs.output import lies_in, own_directory, require_own
from udaseg.reports.dataset import contents_table
from udaseg.reports.tables import show
from udaseg.types import Location

_URIS = ("image_uri", "label_uri", "confidence_uri", "distribution_uri")


def join_datasets(datasets: Sequence[Location], *, out: Location, overwrite: bool = False) -> None:
    """Write one dataset directory with the rows of several.

    An image's id is that in its own dataset, below the dataset's name. Its label is read as its own dataset's labels
    are, whose ids or colours may be others. Splits of one name are one.

    Args:
        datasets: two dataset directories or more, with the same classes in the same order; joined ones too.
        out: the dataset directory to write.
        overwrite: replace the joined dataset that is in the directory already.

    Raises:
        DatasetError: one is no dataset, classes or depth ranges differ, two have one name, or there is a dataset.
        ConfigError: `out` is neither empty nor a joined dataset's directory.
    """
    out, uris = to_uri(out), to_uris(datasets)
    require_own(out, "join")
    if len(uris) < 2:
        raise DatasetError("give two datasets or more to join")
    if twice := [uri for n, uri in enumerate(uris) if any(_are_one(uri, other) for other in uris[:n])]:
        raise DatasetError(f"{twice[0]}: given twice; its images would count twice")
    if same := [uri for uri in uris if _are_one(out, uri)]:
        raise DatasetError(f"{same[0]}: would be overwritten by what it is joined to; choose another --out")
    if exists(join(out, "manifest.parquet")) and not overwrite:
        raise DatasetError(f"{out}: there is a dataset in this directory already; replace it by --overwrite")
    indices = [open_index(absolute(uri)) for uri in uris]
    classes = _classes(indices)
    ranges = {index.depth_range: index.directory for index in indices if index.depth_range is not None}
    if len(ranges) > 1:
        told = " and ".join(f"{uri} with {low:g} {high:g}" for (low, high), uri in ranges.items())
        raise DatasetError(f"{told}: prepared with these --depth-range, of which a dataset has one")
    manifest = pa.concat_tables(map(_rows, indices), promote_options="permissive")
    if len(pc.unique(manifest["image_id"])) < len(manifest):
        raise DatasetError("two images would have one id, as names of datasets and images make the same together")
    with own_directory(out, "join"):
        write_dataset(out, manifest, classes, _places(indices), depth_range=next(iter(ranges), None))
    show(contents_table(manifest, classes, title=out))


def _are_one(uri: str, other: str) -> bool:
    return lies_in(uri, other) and lies_in(other, uri)


def _classes(indices: Sequence[DatasetIndex]) -> Classes:
    """The classes of all, with how the labels of each show them."""
    first, parts, home = indices[0], dict[str, Classes](), dict[str, str]()
    for index in indices:
        uri = index.directory
        require_same_classes(first.classes, index.classes, uri, of=first.directory)
        if index.classes.unions:
            raise DatasetError(f"{uri}: its mapping gives a class several names, which no joined dataset can have")
        for name in index.datasets:
            if name in home:
                raise DatasetError(
                    f"{uri}: has images of a dataset {name!r}, as {home[name]} has; prepare one with another --name"
                )
            home[name], parts[name] = uri, index.classes.of(name)
    return replace(first.classes.of_train_ids(), parts=parts)


def _rows(index: DatasetIndex) -> pa.Table:
    """A dataset's rows as they are in a joined one: with whole addresses, and ids below the dataset's name."""
    table = index.table.replace_schema_metadata(None)
    columns = {
        name: [None if uri is None else resolve(uri, index.directory) for uri in table[name].to_pylist()]
        for name in _URIS
        if name in table.column_names
    }
    if not index.classes.parts:
        names = zip(table["dataset"].to_pylist(), table["image_id"].to_pylist(), strict=True)
        columns["image_id"] = [f"{dataset}/{image_id}" for dataset, image_id in names]
    return with_columns(table, columns)


def _places(indices: Sequence[DatasetIndex]) -> np.ndarray | None:
    """Where classes lie in the training images of all; None where one that has labels of such does not say so."""
    of_each = [index.class_places() for index in indices if _has_training_labels(index)]
    found = [places for places in of_each if places is not None]
    return np.sum(found, axis=0) if found and len(found) == len(of_each) else None


def _has_training_labels(index: DatasetIndex) -> bool:
    start, stop = index.splits.get("train", (0, 0))
    return index.table["label_uri"].slice(start, stop - start).null_count < stop - start
