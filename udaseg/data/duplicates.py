"""Images that are there more than once, by their bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor

from udaseg.data.storage import read_bytes, version
from udaseg.errors import DatasetError


def duplicates(uris: Sequence[str]) -> list[list[int]]:
    """Groups of places in `uris` whose files have the same bytes, each of two or more; only files of one size are read.

    What cannot be read is like nothing else.
    """
    with ThreadPoolExecutor(16) as pool:
        sizes = list(pool.map(_size, uris))
        alike = [place for group in _groups(sizes) for place in group]
        return [[alike[i] for i in group] for group in _groups(list(pool.map(_digest, (uris[i] for i in alike))))]


def _groups(values: Iterable[object]) -> list[list[int]]:
    """The places of each value that is there twice or more; None is no value."""
    places: dict[object, list[int]] = {}
    for place, value in enumerate(values):
        if value is not None:
            places.setdefault(value, []).append(place)
    return [group for group in places.values() if len(group) > 1]


def _size(uri: str) -> int | None:
    try:
        return version(uri)[0] or None
    except (OSError, DatasetError):
        return None


def _digest(uri: str) -> bytes | None:
    try:
        return hashlib.sha256(read_bytes(uri)).digest()
    except (OSError, DatasetError):
        return None
