"""The check of every image and label of a dataset to be: a Ray Data job that goes on where it was cut off.

What is found is kept in the dataset's directory, a file a block of images, until there is a dataset. The same check run
again looks anew at what has changed since, at what could not be used, and at label maps that were drawn for it.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import math
import os
import time
import zlib
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from udaseg.data.classes import Classes
from udaseg.data.folders import Pair
from udaseg.data.images import inspect
from udaseg.data.manifest import BROKEN
from udaseg.data.places import GRID, count_places
from udaseg.data.storage import exists, filesystem, join, read_bytes, version, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs.output import MARKER
from udaseg.jobs.ray_session import ensure_ray, track
from udaseg.types import DepthRange

CHECKED = ".checked"
"""The folder, in a dataset's directory, of what is kept until there is a dataset."""

FACTS = pa.schema(
    [
        ("row", pa.int64()),
        ("height", pa.int32()),
        ("width", pa.int32()),
        ("class_pixels", pa.list_(pa.int64())),
        ("places", pa.binary()),
        ("raw_ids", pa.list_(pa.int32())),
        ("problem", pa.string()),  # null where there is none
        ("versions", pa.list_(pa.int64())),  # of the image's file and the label's
    ]
)

_KEPT = 8
"""Images whose facts are kept together, on average."""

_TASK = 32
"""Images of a task: few for progress, not so few that their cost counts."""

_FORMAT = 1
"""Of what is kept; to be raised when `udaseg.data.images.inspect` finds other facts, of places too."""

_SETTLED = 2.0
"""Seconds after which a file that is written once more has another time of change, in stores that keep whole ones."""


def check_pairs(
    pairs: Sequence[Pair], classes: Classes, depth_range: DepthRange | None, *, out: str
) -> tuple[pa.Table, np.ndarray]:
    """`FACTS` of all pairs, in their order but without places, and these counted over those of the split "train".

    Raises UnreachableError where a file cannot be reached: nothing is known to be wrong with it.

    Args:
        pairs: images, with labels or without.
        classes: what labels hold.
        depth_range: see `udaseg.data.depth.scaled`.
        out: the dataset's directory, which is the command's own.
    """
    places = np.zeros((len(classes), GRID[0] * GRID[1]), np.int64)
    dropped = ["places", "versions"]
    if not pairs:
        return FACTS.empty_table().drop_columns(dropped), places
    ensure_ray()
    cpus = max(1, int(ray.cluster_resources().get("CPU", 1)))
    tasks = math.ceil(len(pairs) / min(_TASK, math.ceil(len(pairs) / cpus)))
    blocks = list(_blocks(pairs))
    plan = ray.data.from_arrow(
        pa.table(
            {
                "rows": pa.array(blocks, pa.list_(pa.int64())),
                "images": pa.array([[pairs[row].image_uri for row in block] for block in blocks]),
                "labels": pa.array(
                    [[pairs[row].label_uri for row in block] for block in blocks], pa.list_(pa.string())
                ),
            }
        ),
        override_num_blocks=min(tasks, len(blocks)),
    )
    check = partial(_check_blocks, classes=classes, depth_range=depth_range, out=out)
    checked = plan.map_batches(check, batch_size=None, batch_format="pyarrow")
    checked.context.enable_progress_bars = False
    checked.context.print_on_execution_start = False
    facts = []
    for block in track(checked.iter_batches(batch_size=None, batch_format="pyarrow"), len(pairs), "images checked"):
        found = zip(block["row"].to_pylist(), block["places"].to_pylist(), strict=True)
        training = [ids for row, ids in found if ids is not None and pairs[row].split == "train"]
        if training:
            places += count_places(np.frombuffer(b"".join(training), np.uint8).reshape(len(training), -1), len(classes))
        facts.append(block.drop_columns(dropped))  # of whose places the driver holds one block at a time
    return pa.concat_tables(facts).sort_by("row"), places


def _blocks(pairs: Sequence[Pair]) -> Iterator[list[int]]:
    """Numbers of consecutive pairs. A block ends where the hash of an image's address says so, whatever is before it.

    So an image more or less changes one block or two, and no other.
    """
    block: list[int] = []
    for row, pair in enumerate(pairs):
        block.append(row)
        if zlib.crc32(str(pair.image_uri).encode()) % _KEPT == 0 or len(block) == 4 * _KEPT:
            yield block
            block = []
    if block:
        yield block


def _check_blocks(plan: pa.Table, classes: Classes, depth_range: DepthRange | None, out: str) -> pa.Table:
    """Blocks, a row each, -> `FACTS`."""
    blocks = plan.to_pylist()
    kept = [_address(block, classes, depth_range, out) for block in blocks]
    numbers = [row for block in blocks for row in block["rows"]]
    images = [uri for block in blocks for uri in block["images"]]
    labels = [uri for block in blocks for uri in block["labels"]]
    check = partial(check_image, classes=classes, lookup=classes.lookup(), depth_range=depth_range)
    with ThreadPoolExecutor(8) as pool:  # one remote file at a time would starve the task
        before = pa.concat_tables(pool.map(_read, kept, [len(block["rows"]) for block in blocks]))
        found = zip(numbers, pool.map(check, images, labels, before.to_pylist()), strict=True)
        facts = pa.Table.from_pylist([{"row": row} | one for row, one in found], schema=FACTS)
        ends = np.cumsum([len(block["rows"]) for block in blocks]).tolist()
        changed = []
        for uri, start, end in zip(kept, [0, *ends], ends, strict=False):
            now, then = (table.slice(start, end - start).drop_columns("row") for table in (facts, before))
            changed += [] if now.equals(then) else [(uri, facts.slice(start, end - start))]
        with contextlib.suppress(OSError):  # what cannot be kept is checked again
            if changed and exists(join(out, MARKER)):  # else this machine does not see the directory
                list(pool.map(_keep, *zip(*changed, strict=True)))
    return facts


def _address(block: dict, classes: Classes, depth_range: DepthRange | None, out: str) -> str:
    """The file of what is kept of a block."""
    key = dump_json([_FORMAT, classes.to_json(), depth_range, block["images"], block["labels"]])
    return join(out, CHECKED, f"{hashlib.sha256(key.encode()).hexdigest()}.parquet")


def _keep(uri: str, facts: pa.Table) -> None:
    sink = pa.BufferOutputStream()
    pq.write_table(facts, sink, compression="zstd", write_statistics=False, write_page_checksum=True)
    write_bytes(uri, sink.getvalue().to_pybytes())


def _read(uri: str, rows: int) -> pa.Table:
    """What is kept of a block of so many rows; rows of nulls where that is not whole."""
    with contextlib.suppress(OSError, *BROKEN):
        facts = pq.read_table(io.BytesIO(read_bytes(uri)), schema=FACTS, page_checksum_verification=True)
        if facts.num_rows == rows:
            return facts
    return pa.Table.from_pylist(rows * [{}], schema=FACTS)


def check_image(
    image_uri: str,
    label_uri: str | None,
    known: dict | None = None,
    *,
    classes: Classes,
    lookup: np.ndarray,
    depth_range: DepthRange | None,
) -> dict:
    """A row of `FACTS`, but for its number; `known` is an earlier one, which holds where files show no change since."""
    try:
        versions = _versions([uri for uri in (image_uri, label_uri) if uri is not None])
        if versions and known is not None and known["problem"] is None and known["versions"] == versions:
            return {name: value for name, value in known.items() if name != "row"}
        return {**inspect(image_uri, label_uri, classes, lookup, depth_range)._asdict(), "versions": versions}
    except UnreachableError:
        raise  # nothing is wrong with the image: it must not be left out, now or for good
    except DatasetError as error:
        return {"problem": str(error)}


def _versions(uris: Sequence[str]) -> list[int] | None:
    """What is another for each file once its content is; None where a file does not show that."""
    found: list[int] = []
    for uri in uris:
        fs, path = filesystem(uri)
        if fs.type_name == "local" and os.path.exists(path):
            # copies may keep the time of change, which can be set, but not that of the entry
            status = os.stat(path)
            found += status.st_size, status.st_mtime_ns, status.st_ctime_ns, status.st_ino
        else:
            size, changed = version(uri)
            if time.time() - changed / 1e9 < _SETTLED or not changed:
                return None
            found += size, changed
    return found
