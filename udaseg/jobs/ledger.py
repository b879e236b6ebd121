"""The state of a job over many images: what there is to do, in blocks, and which blocks are done.

    listing.parquet             one row an image; a row group is many blocks
    job.json                    what the job is; it is there once the listing is whole
    <phase>/<block>.parquet     what a phase made of a block; written after all files of the block

An image counts as done when its block's entry is there, so that each counts once, however often a task was begun, and a
job that begins again does only the blocks without entries. Entries derive from the listing alone: whoever does a block
writes the same bytes under the same name.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import posixpath
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from itertools import chain, islice
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from udaseg.data.manifest import BROKEN, reason_of
from udaseg.data.storage import children, exists, filesystem, join, read_bytes, remove, version, write_bytes, writer
from udaseg.data.strict_json import dump_json, parse_json
from udaseg.errors import DatasetError, UnreachableError

LISTING = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("image_uri", pa.string(), nullable=False),
        pa.field("label_uri", pa.string()),
        pa.field("dataset", pa.string(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
    ]
)


_GROUP_ROWS = 4096
"""Rows of a row group at most: every process that opens the listing holds some kilobytes of each group."""


@dataclass(frozen=True)
class Ledger:
    """A job's state; small, so that tasks can have a copy each."""

    directory: str
    images: int
    block_size: int

    @property
    def blocks(self) -> int:
        return -(-self.images // self.block_size)

    def rows(self, block: int) -> list[dict[str, Any]]:
        """The listing's rows of a block."""
        uri = join(self.directory, "listing.parquet")
        try:
            rows: list[dict[str, Any]] = _block(uri, version(uri), self.block_size, block).to_pylist()
            return rows
        except UnreachableError:
            raise
        except BROKEN as error:
            raise DatasetError(f"{uri}: not the whole listing of a job ({reason_of(error)}); {_BEGIN_ANEW}") from None

    def committed(self, phase: str) -> set[int]:
        """The blocks that a phase has done."""
        infos = children(join(self.directory, phase))
        names = (info.base_name.removesuffix(".parquet") for info in infos if info.is_file)
        return {int(name) for name in names if name.isdigit()}

    def is_committed(self, phase: str, block: int) -> bool:
        """Whether a phase has done a block."""
        return exists(self._entry(phase, block))

    def commit(self, phase: str, block: int, entry: Mapping[str, Any], *, scratch: str | None = None) -> None:
        """Write what a phase made of a block: values that Arrow can hold, by name."""
        sink = pa.BufferOutputStream()
        columns = {name: pa.array([value]) for name, value in entry.items()}
        pq.write_table(pa.table(columns), sink, compression="zstd", write_statistics=False)
        write_bytes(self._entry(phase, block), sink.getvalue().to_pybytes(), scratch=scratch)

    def entry(self, phase: str, block: int) -> dict[str, Any]:
        """What `commit` wrote: arrays as NumPy's, everything else as it was."""
        content = read_bytes(self._entry(phase, block))
        try:
            table = pq.read_table(io.BytesIO(content))
        except BROKEN as error:
            raise DatasetError(
                f"{self._entry(phase, block)}: not a whole file ({reason_of(error)}); delete it, and run the same again"
            ) from None
        return {name: _value(table[name].chunk(0)) for name in table.column_names}

    def forget(self, phase: str, block: int) -> None:
        """Have a block done again."""
        remove(self._entry(phase, block))

    def _entry(self, phase: str, block: int) -> str:
        return join(self.directory, phase, f"{block:08d}.parquet")


def _value(column: pa.ListArray) -> Any:
    if pa.types.is_list(column.type) and pa.types.is_primitive(column.type.value_type):
        return column.values.to_numpy()
    return column[0].as_py()


def _block(uri: str, version: tuple[int, int], block_size: int, block: int) -> pa.Table:
    listing = _listing(uri, version)
    in_group = -(-listing.metadata.row_group(0).num_rows // block_size)  # the first is whole, or the only one
    group, within = divmod(block, in_group)
    return _group(uri, version, group).slice(within * block_size, block_size)


@lru_cache(maxsize=4)
def _listing(uri: str, version: tuple[int, int]) -> pq.ParquetFile:
    fs, path = filesystem(uri)
    return pq.ParquetFile(fs.open_input_file(path))


@lru_cache(maxsize=4)
def _group(uri: str, version: tuple[int, int], group: int) -> pa.Table:
    return _listing(uri, version).read_row_group(group)


def open_ledger(
    directory: str, images: Callable[[], Iterator[dict[str, Any]]], *, block_size: int, job: Mapping[str, Any]
) -> Ledger:
    """Begin a job's state, or open the one that a job before left, if it was the same one.

    Args:
        directory: of the state, a path or URI.
        images: yields the listing's rows, in an order that is always the same; held a row group at a time.
        block_size: images of a block.
        job: whatever, beside the listing, decides what the job makes; plain JSON.

    Raises:
        DatasetError: there are no images, or the state is of a job with other images or settings.
    """
    uri = join(directory, "job.json")
    if exists(uri):
        begun = _begun(uri)
        _, digest = _write_listing(images(), begun["block_size"], None)
        now = dict(json.loads(json.dumps(job)), images=digest)
        for name in sorted({*now, *begun["job"]}):
            if now.get(name) != begun["job"].get(name):
                values = "" if name == "images" else f" ({_short(begun['job'].get(name))}, now {_short(now.get(name))})"
                raise DatasetError(
                    f"{posixpath.dirname(directory)}: holds a job that was begun with other {name}{values}; "
                    "go on with the same, or choose another --out"
                )
        ledger = Ledger(directory, begun["count"], begun["block_size"])
        ledger.rows(ledger.blocks - 1)  # it is whole
        return ledger
    rows = images()
    if (first := next(rows, None)) is None:  # before anything is written
        raise DatasetError("there are no images")
    with writer(join(directory, "listing.parquet")) as stream:
        number, digest = _write_listing(chain([first], rows), block_size, stream)
    content = {"job": {**job, "images": digest}, "count": number, "block_size": block_size}
    write_bytes(uri, dump_json(content, indent=1).encode())
    return Ledger(directory, number, block_size)


_BEGIN_ANEW = "delete the folder that it is in to begin the job anew, or choose another --out"


def _begun(uri: str) -> dict[str, Any]:
    """What job.json holds. Raises DatasetError where it is foreign."""
    begun = parse_json(read_bytes(uri), uri)
    numbers = [begun.get(name) for name in ("count", "block_size")] if isinstance(begun, dict) else [None]
    if not all(type(n) is int and n > 0 for n in numbers) or not isinstance(begun.get("job"), dict):
        raise DatasetError(f"{uri}: not a job's state; {_BEGIN_ANEW}")
    return dict(begun)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 80 else f"{text[:77]}..."


def _write_listing(images: Iterable[dict[str, Any]], block_size: int, stream: pa.NativeFile | None) -> tuple[int, str]:
    """Number and fingerprint of the rows; they are written in groups of blocks where there is a stream."""
    number, digest = 0, hashlib.sha256()
    rows = iter(images)
    with contextlib.ExitStack() as stack:
        parquet = None
        if stream is not None:
            parquet = stack.enter_context(pq.ParquetWriter(stream, LISTING, write_statistics=False))
        in_group = block_size * max(1, _GROUP_ROWS // block_size)
        while group := list(islice(rows, in_group)):
            number += len(group)
            for row in group:
                digest.update(json.dumps([row[name] for name in LISTING.names]).encode())
            if parquet is not None:
                parquet.write_table(pa.Table.from_pylist(group, schema=LISTING), row_group_size=in_group)
    return number, digest.hexdigest()[:16]
