"""The index of a dataset: its rows and per-class row lists, memory-mapped."""

from __future__ import annotations

import fcntl
import functools
import hashlib
import os
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs

from udaseg.data.classes import Classes, read_classes
from udaseg.data.confidence import distribution_size
from udaseg.data.depth import depth_range_of
from udaseg.data.images import read_codes, read_image, read_label, read_raw_label, unknown_text
from udaseg.data.manifest import (
    ANEW,
    BROKEN,
    check_class_places,
    check_class_rows,
    check_index,
    check_rows,
    manifest_of,
    reason_of,
)
from udaseg.data.places import GRID, spatial_prior
from udaseg.data.storage import absolute, exists, filesystem, join, reach, resolve, version
from udaseg.data.strict_json import parse_json
from udaseg.errors import DatasetError, UnreachableError

_OPENING = threading.Lock()


class DatasetIndex:
    """A dataset's rows and per-class row lists, memory-mapped: no process holds them as Python objects."""

    def __init__(self, directory: str) -> None:
        manifest_of(directory)
        self.directory = directory
        self.table = _read(join(directory, "index.arrow"))
        self._class_rows = _read(join(directory, "class_rows.arrow"))
        self.classes = read_classes(directory)
        self.depth_range = depth_range_of(self.table, join(directory, "index.arrow"))
        """With which its images are read."""
        plain = self.classes.lookup()
        # of colours a table has 2^24 entries
        self._lookup = {False: plain, True: self.classes.lookup(unions=True) if self.classes.unions else plain}
        self._lookup_of_part = {name: part.lookup() for name, part in self.classes.parts.items()}
        self.splits = self._checked()
        self.manifest = self.table.schema.metadata[b"manifest"].decode()
        """The digest of its manifest."""

    def _checked(self) -> dict[str, list[int]]:
        """The ranges of rows of the splits. Raises DatasetError where files are foreign or do not belong together."""
        uri = join(self.directory, "index.arrow")
        check_rows(self.table, uri, classes=len(self.classes))
        check_index(self.table, self.directory)
        splits = parse_json((self.table.schema.metadata or {}).get(b"splits", b"null"), f"{uri}: splits")
        end, of = 0, self.table["split"]
        try:
            for name, (start, stop) in splits.items():
                if start != end or not pc.all(pc.equal(of.slice(start, stop - start), name)).as_py():
                    raise ValueError
                end = stop
            if end != len(of):
                raise ValueError
        except (AttributeError, TypeError, ValueError, pa.ArrowException):
            raise DatasetError(f"{uri}: its ranges of rows are not those of its splits; {ANEW}") from None
        uri = join(self.directory, "class_rows.arrow")
        check_class_rows(self._class_rows, uri, self.table, splits, len(self.classes))
        return dict(splits)

    def rows(self, split: str) -> tuple[int, int]:
        """The range of rows of a split. Raises DatasetError where it has none."""
        if split not in self.splits:
            raise DatasetError(f"{self.directory}: no rows of split {split!r}; it has {', '.join(self.splits)}")
        start, stop = self.splits[split]
        return start, stop

    def lacks(self, split: str, column: str) -> bool:
        """Whether images of a split have no value in a column, or there is no such column."""
        start, stop = self.rows(split)
        return column not in self.table.column_names or bool(self.table[column].slice(start, stop - start).null_count)

    def uri(self, row: int, column: str) -> str:
        """The address in a URI column of a row."""
        value = self.table[column][row].as_py()
        if value is None:
            raise DatasetError(f"{self.directory}: image {self.table['image_id'][row]} has no {column}")
        return resolve(value, self.directory)

    def image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a row.

        Raises DatasetError, naming the file, where it cannot be read or its size is no longer that of the row.
        """
        uri = self.uri(row, "image_uri")
        return self._of_size(row, read_image(uri, self.depth_range), uri)

    def train_ids(self, row: int, *, unions: bool = False) -> np.ndarray:
        """(H, W) uint8 train ids of a row's label; with those of pixels of several classes, see `Classes.unions`.

        Raises DatasetError as `image` does, and on an id outside the class list.
        """
        uri = self.uri(row, "label_uri")
        classes = self.classes_of(row)
        raw = self._of_size(row, read_raw_label(uri, classes), uri)
        mapped = self._lookup_of_part.get(self.dataset_of(row), self._lookup[unions])[raw]
        if (mapped < 0).any():
            values, pixels = np.unique(raw[mapped < 0], return_counts=True)
            raise DatasetError(f"{uri}: {unknown_text(values, pixels, classes)}")
        return mapped.astype(np.uint8)

    def classes_of(self, row: int) -> Classes:
        """The classes as the labels of a row's dataset show them, see `Classes.parts`."""
        return self.classes.of(self.dataset_of(row))

    def confidence(self, row: int) -> np.ndarray:
        """(H, W) uint16 confidence codes of a row's pseudo-label."""
        uri = self.uri(row, "confidence_uri")
        return self._of_size(row, read_label(uri), uri)

    def distribution(self, row: int) -> np.ndarray:
        """(K, h, w) uint16 codes of the probability that the labeller gave each class, at an eighth of a row's size.

        Raises DatasetError as `image` does.
        """
        uri = self.uri(row, "distribution_uri")
        size = distribution_size(*self._size(row))
        shape = len(self.classes) * size[0], size[1]
        codes = read_codes(uri, shape)
        if codes.shape != shape:
            raise DatasetError(
                f"{uri}: {codes.shape[1]} x {codes.shape[0]} (width x height), not {len(self.classes)} classes of "
                f"{size[1]} x {size[0]}; label the images anew"
            )
        return codes.reshape(len(self.classes), *size)

    @property
    def datasets(self) -> list[str]:
        """The names of the datasets that were joined, or of the one that there is."""
        names: list[str] = pc.unique(self.table["dataset"]).to_pylist()
        return names

    def dataset_of(self, row: int) -> str:
        """The name of the dataset that a row is of."""
        name: str = self.table["dataset"][row].as_py()
        return name

    def _size(self, row: int) -> tuple[int, int]:
        height, width = (self.table[name][row].as_py() for name in ("height", "width"))
        return height, width

    def _of_size(self, row: int, pixels: np.ndarray, uri: str) -> np.ndarray:
        height, width = self._size(row)
        if pixels.shape[:2] != (height, width):
            raise DatasetError(
                f"{uri}: {pixels.shape[1]} x {pixels.shape[0]} pixels (width x height), but {width} x {height} when "
                "the dataset was made; put it back, or make the dataset anew with `udaseg prepare --overwrite`"
            )
        return pixels

    @functools.lru_cache(maxsize=64)  # noqa: B019 - an index lives as long as its process
    def rare_classes(
        self, split: str, temperature: float, min_pixels: int, classes: tuple[int, ...] = ()
    ) -> tuple[np.ndarray, list[np.ndarray]]:
        """P(c) and the rows that hold at least `min_pixels` of c, for the classes that have such rows.

        P(c) ~ exp((1 - f_c) / T) with f_c the class's share of labelled pixels (DAFormer, eq. 6-7), of `classes` alone
        where some are given.
        """
        rows, pixels = self._rows_of_classes(split)
        enough = [r[: int(np.searchsorted(-p, -min_pixels, side="right"))] for r, p in zip(rows, pixels, strict=True)]
        totals = np.array([p.sum() for p in pixels], np.float64)
        drawn = np.array([len(r) > 0 and (not classes or k in classes) for k, r in enumerate(enough)])
        if not drawn.any():
            raise DatasetError(
                f"{self.directory}: no image of split {split!r} has {min_pixels} pixels of any class"
                f"{f' of {list(classes)}' if classes else ''}"
            )
        logit = np.where(drawn, (1 - totals / totals.sum()) / temperature, -np.inf)
        probability = np.exp(logit - logit.max())
        return probability / probability.sum(), enough

    @functools.lru_cache(maxsize=64)  # noqa: B019 - an index lives as long as its process
    def balanced_classes(self, split: str) -> tuple[np.ndarray, list[np.ndarray]]:
        """P(c) and the rows that show c, where P(c) ~ 1 / ln(1.01 + s_c).

        s_c is the share of c in what is then drawn, an image counting once for each of its classes; P is where this
        comes to rest. Source: core/datasets of BIT-DA/SDCA, BinhuiXie/SPCL and jiangzhengkai/ProCA, whose loaders draw
        so image by image, beginning anew after 3,000.
        """
        rows, _ = self._rows_of_classes(split)
        start, stop = self.rows(split)
        shows = np.zeros((stop - start, len(rows)))
        for k, those in enumerate(rows):
            shows[those - start, k] = 1
        there = shows.any(0)
        if not there.any():
            raise DatasetError(f"{self.directory}: no image of split {split!r} has a pixel of any class")
        beside = shows.T @ shows / np.maximum(shows.sum(0), 1)[:, None]  # share of the images of a row's class
        probability = there / there.sum()
        for _ in range(100):
            share = probability @ beside
            weight = there / np.log(1.01 + share / share.sum())
            probability = weight / weight.sum()
        return probability, rows

    def _rows_of_classes(self, split: str) -> tuple[list[np.ndarray], list[np.ndarray]]:
        """Of each class the rows that show it, and how many pixels of it each has, most first."""
        here = self._class_rows.filter(pc.equal(self._class_rows["split"], split))
        rows = [here["rows"][k].values.to_numpy() for k in range(len(self.classes))]
        return rows, [here["pixels"][k].values.to_numpy() for k in range(len(self.classes))]

    @functools.lru_cache(maxsize=1)  # noqa: B019 - an index lives as long as its process
    def spatial_prior(self) -> np.ndarray:
        """(K, 64, 128) float32 `udaseg.data.places.spatial_prior` of the training images' labels.

        Raises DatasetError where the dataset was made without, or the file is foreign or broken.
        """
        if (places := self.class_places()) is None:
            raise DatasetError(
                f"{self.directory}: no class_places.arrow, which says where its classes lie; make the dataset anew, "
                "from labelled images, with `udaseg prepare --overwrite`"
            )
        return spatial_prior(places)

    def class_places(self) -> np.ndarray | None:
        """(K, P) int64 `udaseg.data.places.count_places`; None where the dataset was made without.

        Raises DatasetError where the file is foreign or broken.
        """
        uri, classes = join(self.directory, "class_places.arrow"), len(self.classes)
        if not exists(uri):
            return None
        table = _read(uri)
        check_class_places(table, uri, self.table, classes, GRID[0] * GRID[1])
        return np.asarray(table["images"].combine_chunks().flatten()).reshape(classes, -1)


def open_index(directory: str) -> DatasetIndex:
    """The index of a dataset directory, opened once a process, and again where the dataset was made anew.

    Raises DatasetError where it is no dataset, or a file of it is broken.
    """
    uri = join(directory, "manifest.parquet")  # it is written last
    with _OPENING:  # threads that read together would each fetch it
        return _open(directory, _version_of(uri, int(time.monotonic())) if "://" in uri else version(uri))


@functools.lru_cache(maxsize=16)
def _version_of(uri: str, second: int) -> tuple[int, int]:
    """A store is asked once a second, as each sample of a plan opens its indices."""
    return version(uri)


@functools.lru_cache(maxsize=16)
def _open(directory: str, version: tuple[int, int]) -> DatasetIndex:
    return DatasetIndex(directory)


def first_image(directory: str) -> str:
    """The address of one training image of a dataset directory."""
    index = open_index(absolute(directory))
    return index.uri(index.rows("train")[0], "image_uri")


def _read(uri: str) -> pa.Table:
    """A memory-mapped table. Raises DatasetError, naming it, where it is missing or not whole."""
    try:
        table = pa.ipc.open_file(_memory_map(uri)).read_all()
        table.validate(full=True)
        return table
    except FileNotFoundError:
        raise DatasetError(f"{uri}: missing; {ANEW}") from None
    except UnreachableError:
        raise
    except BROKEN as error:
        raise DatasetError(f"{uri}: not a whole Arrow file ({reason_of(error)}); {ANEW}") from None


def _memory_map(uri: str) -> pa.MemoryMappedFile:
    """Map a file; a remote one is first copied to this machine, under a name made of its address and version."""
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        size, changed = version(uri)
        name = hashlib.sha256(f"{uri} {size} {changed}".encode()).hexdigest()[:24]
        local = Path(tempfile.gettempdir()) / f"udaseg-index-{os.getuid()}" / name
        local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with open(local.with_suffix(".lock"), "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # of all processes of this machine one fetches
            if not local.exists() or local.stat().st_size != size:
                partial = str(local.with_suffix(".partial"))
                reach(uri, lambda: pafs.copy_files(path, partial, fs, pafs.LocalFileSystem()))  # in pieces
                os.replace(partial, local)
        path = str(local)
    return reach(uri, lambda: pa.memory_map(path))
