"""A dataset directory: a Parquet manifest with one row an image, its classes, and the index that sampling reads.

    manifest.parquet   the rows, as in `MANIFEST`
    classes.json       `Classes`
    index.arrow        the same rows as memory-mapped Arrow IPC, in the manifest's order
    class_rows.arrow   per split and class, the rows that contain it, most pixels first
    class_places.arrow per class, how many training images have it at each place; only `udaseg prepare` writes it

Images stay where they are. A URI is relative to the dataset directory unless it has a scheme or is absolute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from udaseg.data.classes import Classes
from udaseg.data.depth import metadata
from udaseg.data.storage import (
    exists,
    filesystem,
    join,
    reach,
    read_bytes,
    remove,
    require_directory,
    write_bytes,
    writer,
)
from udaseg.errors import DatasetError
from udaseg.types import DepthRange

DATASET_FILES = ("manifest.parquet", "classes.json", "index.arrow", "class_rows.arrow", "class_places.arrow")


MANIFEST = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("label_uri", pa.string()),  # null where unlabelled
        pa.field("height", pa.int32(), nullable=False),
        pa.field("width", pa.int32(), nullable=False),
        pa.field("class_pixels", pa.list_(pa.int64())),  # pixels per train id; null where unlabelled
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)
"""The manifest's columns. A pseudo-labelled manifest adds `confidence_uri` (16-bit PNG) after `label_uri`, and one with
the probabilities of all classes `distribution_uri` (16-bit PNG, classes below one another) after that."""


PSEUDO_MANIFEST = MANIFEST.insert(3, pa.field("confidence_uri", pa.string()))
SOFT_MANIFEST = PSEUDO_MANIFEST.insert(4, pa.field("distribution_uri", pa.string()))


CLASS_ROWS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("rows", pa.list_(pa.int32()), nullable=False),
        pa.field("pixels", pa.list_(pa.int64()), nullable=False),
    ]
)


CLASS_PLACES = pa.schema(
    [
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("images", pa.list_(pa.int64()), nullable=False),  # in the order of `udaseg.data.places.at_places`
    ]
)


def class_rows(manifest: pa.Table, splits: Mapping[str, tuple[int, int]], num_classes: int) -> Iterator[pa.RecordBatch]:
    """Per split and class, the rows (int32) that contain the class, most pixels first (ties in row order).

    Args:
        manifest: rows of MANIFEST; those of a split lie together.
        splits: the first row of each split and the one after its last.
        num_classes: K.
    """
    for split, (start, stop) in splits.items():
        class_pixels = manifest["class_pixels"].slice(start, stop - start)
        for class_id in range(num_classes):
            pixels = pc.list_element(class_pixels, class_id).fill_null(0).to_numpy()
            rows = np.argsort(-pixels, kind="stable")[: np.count_nonzero(pixels)]
            values = ([split], [class_id], [(start + rows).astype(np.int32)], [pixels[rows]])
            yield pa.record_batch([pa.array(v, f.type) for v, f in zip(values, CLASS_ROWS, strict=True)], CLASS_ROWS)


def write_dataset(
    directory: str,
    manifest: pa.Table,
    classes: Classes,
    places: np.ndarray | None = None,
    *,
    depth_range: DepthRange | None = None,
) -> None:
    """Write all files of a dataset directory; the manifest comes last, so that its presence means a whole dataset.

    Rows are sorted by split and image id, so that each split is one range of rows, which the index's metadata names
    beside the manifest's `digest`.

    Args:
        directory: where to.
        manifest: rows of MANIFEST, in any order.
        classes: K of them.
        places: (K, P) of `udaseg.data.places.count_places` for the training images; None = unknown.
        depth_range: with which its images are read, see `udaseg.data.depth`; the metadata of manifest and index say it.
    """
    order = pc.sort_indices(manifest, [("split", "ascending"), ("image_id", "ascending")]).to_numpy()
    if (np.diff(order.astype(np.int64)) < 0).any():  # listed folders are in order, and need no copy
        manifest = manifest.take(order)
    sizes = {entry["values"]: entry["counts"] for entry in pc.value_counts(manifest["split"]).to_pylist()}
    ends = np.cumsum([*sizes.values()]).tolist()
    splits = {split: (end - size, end) for (split, size), end in zip(sizes.items(), ends, strict=True)}
    manifest = manifest.replace_schema_metadata({"splits": json.dumps(splits)} | metadata(depth_range))
    buffer = pa.BufferOutputStream()
    pq.write_table(manifest, buffer)
    rows = buffer.getvalue()
    own = _digest([rows])
    index = manifest.replace_schema_metadata({**manifest.schema.metadata, "manifest": own})
    remove(join(directory, "manifest.parquet"))  # an older one does not belong to the new classes and index
    write_bytes(join(directory, "classes.json"), classes.to_json().encode())
    with writer(join(directory, "index.arrow")) as stream, pa.ipc.new_file(stream, index.schema) as file:
        file.write_table(index.combine_chunks())
    with writer(join(directory, "class_rows.arrow")) as stream, pa.ipc.new_file(stream, CLASS_ROWS) as file:
        for batch in class_rows(manifest, splits, len(classes)):
            file.write_batch(batch)
    if places is None:
        remove(join(directory, "class_places.arrow"))  # of an overwritten dataset
    else:
        schema = CLASS_PLACES.with_metadata({"manifest": own})
        table = pa.table({"class_id": range(len(classes)), "images": list(places)}, schema)
        with writer(join(directory, "class_places.arrow")) as stream, pa.ipc.new_file(stream, schema) as file:
            file.write_table(table)
    write_bytes(join(directory, "manifest.parquet"), rows)


def manifest_of(directory: str) -> str:
    """The address of a directory's manifest. Raises DatasetError where there is none."""
    uri = join(directory, "manifest.parquet")
    if not exists(uri):
        require_directory(directory)
        raise DatasetError(f"{directory}: no manifest.parquet, so not a dataset; make one with `udaseg prepare`")
    return uri


ANEW = "copy it again, or make the dataset anew with `udaseg prepare --overwrite`"


BROKEN = (pa.ArrowException, OSError, ValueError)
"""What Arrow raises on files that are not whole."""


def reason_of(error: Exception) -> str:
    """The first sentence of an error of Arrow's."""
    return str(error).partition("\n")[0].partition(". ")[0].rstrip(".")


def check_rows(table: pa.Table, uri: str, *, classes: int | None = None) -> None:
    """Raise DatasetError, naming `uri`, the column and the row, where a table does not hold rows of `MANIFEST`.

    Args:
        table: it may have more columns.
        uri: of its file.
        classes: how many pixels are counted of; None = unknown.
    """
    for field in MANIFEST:
        if field.name not in table.column_names:
            raise DatasetError(f"{uri}: column {field.name!r} is missing; {ANEW}")
        column = table[field.name]
        if column.type not in (field.type, _LARGE.get(field.type)):
            raise DatasetError(f"{uri}: column {field.name!r} is of type {column.type}, not {field.type}; {ANEW}")
        if column.null_count and not field.nullable:
            raise DatasetError(f"{uri}: column {field.name!r} is empty in row {_first(pc.is_null(column))}; {ANEW}")
    for name in ("height", "width"):
        if (row := _first(pc.less_equal(table[name], 0))) >= 0:
            raise DatasetError(f"{uri}: {name} is {table[name][row]} in row {row}; {ANEW}")
    counts = pc.list_flatten(table["class_pixels"])
    if counts.null_count or _first(pc.less(counts, 0)) >= 0:
        raise DatasetError(f"{uri}: column 'class_pixels' has entries that are no number of pixels; {ANEW}")
    lengths = pc.list_value_length(table["class_pixels"])
    if classes is not None and (row := _first(pc.not_equal(lengths, classes))) >= 0:
        raise DatasetError(f"{uri}: class_pixels has {lengths[row]} entries in row {row} for {classes} classes; {ANEW}")


def check_class_rows(
    table: pa.Table, uri: str, index: pa.Table, splits: Mapping[str, tuple[int, int]], classes: int
) -> None:
    """Raise DatasetError, naming `uri`, where a table of `CLASS_ROWS` is not that of an index of checked rows."""
    wanted = [(split, class_id) for split in splits for class_id in range(classes)]
    fits = table.schema.equals(CLASS_ROWS)
    fits = fits and list(zip(*(table[name].to_pylist() for name in ("split", "class_id")), strict=True)) == wanted
    for at, (split, class_id) in enumerate(wanted if fits else ()):
        start, stop = splits[split]
        found = pc.list_element(index["class_pixels"].slice(start, stop - start), class_id).fill_null(0).to_numpy()
        rows, pixels = (table[name][at].values.to_numpy() for name in ("rows", "pixels"))
        fits = fits and len(rows) == len(pixels) == np.count_nonzero(found) and (np.diff(pixels) <= 0).all()
        fits = fits and ((rows >= start) & (rows < stop)).all() and np.array_equal(found[rows - start], pixels)
    if not fits:
        raise DatasetError(f"{uri}: not of the index beside it and its classes; {ANEW}")


def check_class_places(table: pa.Table, uri: str, index: pa.Table, classes: int, places: int) -> None:
    """Raise DatasetError, naming `uri`, where a table of `CLASS_PLACES` is not that of an index and its classes."""
    fits = table.schema.equals(CLASS_PLACES) and table["class_id"].to_pylist() == [*range(classes)]
    fits = fits and pc.all(pc.equal(pc.list_value_length(table["images"]), places)).as_py()
    if not fits or (table.schema.metadata or {}).get(b"manifest") != index.schema.metadata[b"manifest"]:
        raise DatasetError(f"{uri}: not of the index beside it and its classes; {ANEW}")


def _first(mask: pa.ChunkedArray) -> int:
    """The first true entry, -1 where there is none."""
    return int(pc.index(mask, True).as_py())


_LARGE = {pa.string(): pa.large_string(), pa.list_(pa.int64()): pa.large_list(pa.int64())}


def read_manifest(directory: str, split: str | None = None) -> pa.Table:
    """The rows of a dataset directory, of one split where it is given.

    Raises DatasetError where the directory is no dataset, its manifest is broken or the split has no rows.
    """
    uri = manifest_of(directory)
    content = read_bytes(uri)
    try:
        table = pq.read_table(pa.BufferReader(content))
        table.validate(full=True)
    except BROKEN as error:
        raise DatasetError(f"{uri}: not a whole Parquet file ({reason_of(error)}); {ANEW}") from None
    check_rows(table, uri)
    own = _digest([content])
    _check_digest(_index_metadata(directory).get(b"manifest", own.encode()), own, uri)
    if split is None:
        return table
    rows = table.filter(pc.equal(table["split"], split))
    if rows.num_rows == 0:
        present: Sequence[str] = sorted(set(table["split"].to_pylist()))
        raise DatasetError(f"{uri}: no rows of split {split!r}; it has {', '.join(present) or 'no rows at all'}")
    return rows


def pixels_of_classes(rows: pa.Table, classes: int) -> np.ndarray:
    """(N, K) int64 pixels of each class in each of the N rows that are labelled."""
    return np.asarray(rows["class_pixels"].combine_chunks().flatten()).reshape(-1, classes)


def with_columns(rows: pa.Table, columns: Mapping[str, Sequence[str | None]]) -> pa.Table:
    """Rows with other values in some of their columns, by name."""
    for name, values in columns.items():
        field = rows.schema.field(name)
        rows = rows.set_column(rows.schema.get_field_index(name), field, pa.array(values, field.type))
    return rows


def check_index(index: pa.Table, directory: str) -> None:
    """Raise DatasetError where an index is not that of the manifest beside it."""
    _check_digest((index.schema.metadata or {}).get(b"manifest"), digest(directory), manifest_of(directory))


def _check_digest(told: bytes | None, found: str, uri: str) -> None:
    if told != found.encode():
        raise DatasetError(f"{uri}: is not the one that the index.arrow beside it was made with; {ANEW}")


def _index_metadata(directory: str) -> Mapping[bytes, bytes]:
    """What the index says of itself; nothing where there is no whole one."""
    fs, path = filesystem(join(directory, "index.arrow"))
    try:
        with fs.open_input_file(path) as file:
            return pa.ipc.open_file(file).schema.metadata or {}
    except BROKEN:
        return {}


def digest(directory: str) -> str:
    """A fingerprint of the manifest, which a run keeps so that it is never resumed on other data.

    Raises DatasetError where there is none.
    """
    uri = manifest_of(directory)
    fs, path = filesystem(uri)

    def read() -> str:
        with fs.open_input_stream(path) as stream:
            return _digest(iter(lambda: stream.read(2**22), b""))

    return reach(uri, read)


def _digest(chunks: Iterable[bytes]) -> str:
    sha = hashlib.sha256()
    for chunk in chunks:
        sha.update(chunk)
    return sha.hexdigest()[:16]
