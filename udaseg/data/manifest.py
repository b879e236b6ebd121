"""A dataset directory: a Parquet manifest with one row an image, its classes, and the index that sampling reads.

    manifest.parquet   the rows, as in `MANIFEST`
    classes.json       `Classes`
    index.arrow        the same rows as memory-mapped Arrow IPC, in the manifest's order
    class_rows.arrow   per split and class, the rows that contain it, most pixels first

Images stay where they are. A URI is relative to the dataset directory unless it has a scheme or is absolute.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from udaseg.data.classes import Classes
from udaseg.data.storage import exists, filesystem, join, read_bytes, remove, write_bytes, writer
from udaseg.errors import DatasetError

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
"""The manifest's columns. A pseudo-labelled manifest adds `confidence_uri` (16-bit PNG) after `label_uri`."""


PSEUDO_MANIFEST = MANIFEST.insert(3, pa.field("confidence_uri", pa.string()))


CLASS_ROWS = pa.schema(
    [
        pa.field("split", pa.string(), nullable=False),
        pa.field("class_id", pa.int32(), nullable=False),
        pa.field("rows", pa.list_(pa.int32()), nullable=False),
        pa.field("pixels", pa.list_(pa.int64()), nullable=False),
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


def write_dataset(directory: str, manifest: pa.Table, classes: Classes) -> None:
    """Write all files of a dataset directory; the manifest comes last, so that its presence means a whole dataset.

    Rows are sorted by split and image id, so that each split is one range of rows, which the index's metadata names.
    """
    order = pc.sort_indices(manifest, [("split", "ascending"), ("image_id", "ascending")]).to_numpy()
    if (np.diff(order.astype(np.int64)) < 0).any():  # listed folders are in order, and need no copy
        manifest = manifest.take(order)
    sizes = {entry["values"]: entry["counts"] for entry in pc.value_counts(manifest["split"]).to_pylist()}
    ends = np.cumsum([*sizes.values()]).tolist()
    splits = {split: (end - size, end) for (split, size), end in zip(sizes.items(), ends, strict=True)}
    manifest = manifest.replace_schema_metadata({"splits": json.dumps(splits)})
    remove(join(directory, "manifest.parquet"))  # an older one does not belong to the new classes and index
    write_bytes(join(directory, "classes.json"), classes.to_json().encode())
    with writer(join(directory, "index.arrow")) as stream, pa.ipc.new_file(stream, manifest.schema) as file:
        file.write_table(manifest.combine_chunks())
    with writer(join(directory, "class_rows.arrow")) as stream, pa.ipc.new_file(stream, CLASS_ROWS) as file:
        for batch in class_rows(manifest, splits, len(classes)):
            file.write_batch(batch)
    with writer(join(directory, "manifest.parquet")) as stream:
        pq.write_table(manifest, stream)


def _manifest(directory: str) -> str:
    uri = join(directory, "manifest.parquet")
    if not exists(uri):
        raise DatasetError(f"{directory}: no manifest.parquet, so not a dataset; make one with `udaseg prepare`")
    return uri


def read_manifest(directory: str, split: str | None = None) -> pa.Table:
    """The rows of a dataset directory, of one split where it is given.

    Raises DatasetError where the directory is no dataset, a column is missing or the split has no rows.
    """
    uri = _manifest(directory)
    table = pq.read_table(pa.BufferReader(read_bytes(uri)))
    if missing := [name for name in MANIFEST.names if name not in table.column_names]:
        raise DatasetError(f"{uri}: column {missing[0]!r} is missing")
    if split is None:
        return table
    rows = table.filter(pc.equal(table["split"], split))
    if rows.num_rows == 0:
        present: Sequence[str] = sorted(set(table["split"].to_pylist()))
        raise DatasetError(f"{uri}: no rows of split {split!r}; it has {', '.join(present) or 'no rows at all'}")
    return rows


def digest(directory: str) -> str:
    """A fingerprint of the manifest, which a run keeps so that it is never resumed on other data.

    Raises DatasetError where there is none.
    """
    fs, path = filesystem(_manifest(directory))
    with fs.open_input_stream(path) as stream:
        sha = hashlib.sha256()
        while chunk := stream.read(2**22):
            sha.update(chunk)
    return sha.hexdigest()[:16]
