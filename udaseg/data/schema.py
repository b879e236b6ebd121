"""A dataset directory: a Parquet manifest with one row an image, its classes, and the index that sampling reads.

    manifest.parquet   the rows, as in `MANIFEST`
    classes.json       `Classes`
    index.arrow        the same rows as memory-mapped Arrow IPC, in the manifest's order
    class_rows.arrow   per split and class, the rows that contain it, most pixels first

Images stay where they are. A URI is relative to the dataset directory unless it has a scheme or is absolute.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import posixpath
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from urllib.parse import quote, unquote

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import pyarrow.parquet as pq

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


class DatasetError(ValueError):
    """A dataset that cannot be used; the message names the file or field and what to do."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a dataset, in the order of their train ids."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    raw_to_train: Mapping[int, int] = field(default_factory=dict)
    """Raw label id -> train id; empty where labels hold train ids already."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 254:
            raise DatasetError(f"classes: {len(self.names)} names; an 8-bit label map holds 1 to 254 classes")
        if len(set(self.names)) != len(self.names):
            raise DatasetError("classes: names must be distinct")
        if len(self.palette) != len(self.names):
            raise DatasetError(f"classes: {len(self.palette)} palette colours for {len(self.names)} names")
        if bad := [c for c in self.palette if len(c) != 3 or not all(0 <= v <= 255 for v in c)]:
            raise DatasetError(f"classes: palette colour {bad[0]} is not three numbers of 0 to 255")
        if self.ignore != 255:
            raise DatasetError(
                f"classes: ignore is {self.ignore}; train ids ignore with 255: map other ids to it by raw_to_train"
            )
        allowed = {*range(len(self.names)), 255}
        if bad_ids := sorted(set(self.raw_to_train.values()) - allowed):
            raise DatasetError(f"classes: raw_to_train maps to {bad_ids}, outside 0..{len(self.names) - 1} and 255")
        if bad_ids := sorted(raw for raw in self.raw_to_train if not 0 <= raw <= 65535):
            raise DatasetError(f"classes: raw_to_train maps {bad_ids}; a 16-bit label map holds ids of 0 to 65535")

    def __len__(self) -> int:
        return len(self.names)

    def lookup(self) -> np.ndarray:
        """(65536,) int16: raw id -> train id, -1 where a raw id is not known."""
        table = np.full(65536, -1, np.int16)
        if self.raw_to_train:
            for raw, train in self.raw_to_train.items():
                table[raw] = train
        else:
            table[: len(self.names)] = np.arange(len(self.names))
            table[self.ignore] = self.ignore
        return table

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"raw_to_train": {str(k): v for k, v in self.raw_to_train.items()}}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str = "classes.json") -> Classes:
        """Parse `to_json`'s text. Raises DatasetError, naming `origin`, where a field is missing or wrong."""
        try:
            raw = json.loads(text)
            names = tuple(str(name) for name in raw["names"])
            palette = tuple((int(r), int(g), int(b)) for r, g, b in raw["palette"])
            mapping = {int(k): int(v) for k, v in raw.get("raw_to_train", {}).items()}
            return cls(names=names, palette=palette, ignore=int(raw.get("ignore", 255)), raw_to_train=mapping)
        except DatasetError as error:
            raise DatasetError(f"{origin}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(
                f'{origin}: not a class list ({error!r}); it needs {{"names": [...], "palette": [[r, g, b], ...]}}, '
                'and may have "ignore" and "raw_to_train": {"raw id": train id}'
            ) from None


@lru_cache(maxsize=64)
def _filesystem_root(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(uri)
    except ValueError as error:  # pa.ArrowInvalid: a scheme that Arrow does not know, a malformed URI
        raise DatasetError(f"{uri}: {error}") from None


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI or local path (made absolute), and the path within it. DatasetError for a bad URI."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    # One filesystem, hence one pool of connections, serves all URIs of a bucket.
    address, mark, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    host, _, key = rest.partition("/")
    fs, root = _filesystem_root(f"{scheme}://{host}/{mark}{query}")
    return fs, posixpath.join(root, unquote(key)).rstrip("/") or root


def absolute(uri: str) -> str:
    """A URI as it is, a path made absolute."""
    return uri if "://" in uri else os.path.abspath(uri)


def join(base: str, *parts: str) -> str:
    """`parts`, plain paths, below `base`; where it is a URI they are quoted, and its ?query stays at the end."""
    if "://" not in base:
        return posixpath.join(base, *parts)
    address, mark, query = base.partition("?")
    return posixpath.join(address, *map(quote, parts)) + mark + query


def resolve(uri: str, base: str) -> str:
    """A manifest's URI as an address of its own: relative ones are below `base`, the dataset directory."""
    return uri if "://" in uri or uri.startswith("/") else join(base, uri)


def exists(uri: str) -> bool:
    """Whether a file or directory stands at `uri`."""
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
    """The whole file at `uri`.

    Raises FileNotFoundError, naming it, where there is none, and DatasetError where it has more than `limit` bytes.
    """
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as file:
        if limit is not None and file.size() > limit:
            raise DatasetError(f"{file.size():,} bytes; files of more than {limit:,} are not read")
        return file.read()


def write_bytes(uri: str, content: bytes, *, scratch: str | None = None) -> None:
    """Write a whole file, visible under its name only when complete; makes its directory.

    A local file is first written elsewhere, in the folder `scratch` of the same filesystem or beside its place, under a
    name of its own, so that two writers of the same file cannot mix.
    """
    with writer(uri, scratch=scratch) as stream:
        stream.write(content)


@contextlib.contextmanager
def writer(uri: str, *, scratch: str | None = None) -> Iterator[pa.NativeFile]:
    """An output stream to a file that appears as in `write_bytes`, when the block ends without an error."""
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):  # object stores have no folders, and show no half of an object
        with fs.open_output_stream(path) as stream:
            yield stream
        return
    folder, name = posixpath.split(path)
    os.makedirs(folder, exist_ok=True)
    if scratch is not None:
        os.makedirs(scratch, exist_ok=True)
        name = ""  # a name of an image fills what a filesystem allows
    temporary = posixpath.join(scratch or folder, f"{name}{uuid.uuid4().hex}.tmp")
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def children(uri: str) -> list[pafs.FileInfo]:
    """The files and folders in a folder, none where it does not exist. Raises OSError where it cannot be listed."""
    fs, path = filesystem(uri)
    if fs.type_name != "gcs":
        return fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    # One level of a Google bucket, as Arrow lists it, lacks the folders that no object stands for (apache/arrow#35993).
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    named = [(info, info.path[len(path) + 1 :]) for info in infos]
    files = [info for info, name in named if info.is_file and "/" not in name]
    folders = dict.fromkeys(name.partition("/")[0] for info, name in named if "/" in name or not info.is_file)
    return [*files, *(pafs.FileInfo(posixpath.join(path, name), pafs.FileType.Directory) for name in folders)]


def remove(uri: str) -> None:
    """Delete the file at `uri` where there is one."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_file(path)


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


def read_classes(directory: str) -> Classes:
    """The classes of a dataset directory. Raises DatasetError where it has none."""
    uri = join(directory, "classes.json")
    if not exists(uri):
        raise DatasetError(f"{directory}: no classes.json, so not a dataset; make one with `udaseg prepare`")
    return Classes.from_json(read_bytes(uri).decode(), uri)


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
