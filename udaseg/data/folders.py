"""Finding images and labels in folders, and which of them belong together."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import pyarrow.fs as pafs

from udaseg.data.storage import children, filesystem, join
from udaseg.errors import DatasetError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


LABEL_SUFFIXES = (".png",)


class Pair(NamedTuple):
    """An image and its label. A label without image is a Pair too, so that it can be told."""

    image_id: str
    image_uri: str | None
    label_uri: str | None
    split: str


class Problem(NamedTuple):
    """Why an image cannot be used; the text names the file."""

    image_id: str
    text: str


def _children(folder: str) -> list[pafs.FileInfo]:
    fs, path = filesystem(folder)
    if fs.get_file_info(path).type != pafs.FileType.Directory:
        raise DatasetError(f"{folder}: no such folder")
    try:
        return children(folder)
    except OSError as error:  # a folder that may not be read, a chain of links without an end
        raise DatasetError(f"{folder}: cannot be listed: {error}") from None


def walk(folder: str, suffixes: Sequence[str], *, _above: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """(path below `folder` less its suffix, URI) of each file in or below it that ends in one of `suffixes`.

    One folder after the other is listed, so that a walk holds the names of one folder, however many there are below
    (on `gs://` those of all folders below it, see `udaseg.data.storage.children`).
    The order is fixed: the files of a folder by name, then its folders by name. Links to folders are followed; hidden
    files and folders, whose names begin with a dot, are passed over.

    Raises DatasetError where the folder is missing or a link leads back to a folder above it.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    fs, path = filesystem(folder)
    real = os.path.realpath(path) if isinstance(fs, pafs.LocalFileSystem) else path
    if real in _above:
        raise DatasetError(f"{folder}: a symbolic link that leads back to {real}, in which it lies; remove it")
    visible = [i for i in _children(folder) if not i.base_name.startswith(".")]
    found = []
    for info in visible:
        suffix = next((s for s in suffixes if info.base_name.lower().endswith(s.lower())), None)
        if info.is_file and suffix:
            found.append((info.base_name[: -len(suffix)], info.base_name))
    yield from ((name, join(folder, base_name)) for name, base_name in sorted(found))
    for below in sorted(i.base_name for i in visible if i.type == pafs.FileType.Directory):
        for name, uri in walk(join(folder, below), suffixes, _above=(*_above, real)):
            yield f"{below}/{name}", uri


def files(folder: str, suffixes: Sequence[str]) -> list[tuple[str, str]]:
    """What `walk` finds, sorted. Raises DatasetError, too, where that is nothing."""
    found = sorted(walk(folder, suffixes))
    if not found:
        raise DatasetError(f"{folder}: no file in this folder or below ends in {' or '.join(suffixes)}")
    return found


def folders(folder: str) -> list[str]:
    """The sorted names of the folders in `folder`. Raises DatasetError where it is missing."""
    return sorted(i.base_name for i in _children(folder) if i.type == pafs.FileType.Directory)


def match(images: Iterable[tuple[str, str]], labels: Iterable[tuple[str, str]], split: str) -> Iterator[Pair]:
    """Join images and labels, both (id, URI), by id. What stands alone, or twice, is kept for `sort_out` to find."""
    labels_of: dict[str, list[str | None]] = {}
    for image_id, uri in labels:
        labels_of.setdefault(image_id, []).append(uri)
    matched = set()
    for image_id, uri in images:
        matched.add(image_id)
        for label_uri in labels_of.get(image_id, [None]):
            yield Pair(image_id, uri, label_uri, split)
    for image_id, label_uris in labels_of.items():
        if image_id not in matched:
            for label_uri in label_uris:
                yield Pair(image_id, None, label_uri, split)


def sort_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Problem]]:
    """The usable pairs, in order, and the problems of the others.

    Refused: an image without label in a split that has labels, a label without image, and all images of an id that is
    not unique, since none of them is known to be the right one.
    """
    labelled = {pair.split for pair in pairs if pair.label_uri}
    times = Counter(pair.image_id for pair in pairs)
    good, problems = [], []
    for pair in pairs:
        if times[pair.image_id] > 1:
            where = " and ".join(filter(None, (pair.image_uri, pair.label_uri)))
            problems.append(Problem(pair.image_id, f"{where}: its id {pair.image_id!r} is not unique"))
        elif pair.image_uri is None:
            problems.append(Problem(pair.image_id, f"{pair.label_uri}: label without image"))
        elif pair.label_uri is None and pair.split in labelled:
            problems.append(Problem(pair.image_id, f"{pair.image_uri}: image without label"))
        else:
            good.append(pair)
    return good, problems
