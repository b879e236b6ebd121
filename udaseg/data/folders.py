"""Finding images and labels in folders, and which of them belong together."""

from __future__ import annotations

import bisect
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from typing import Literal, NamedTuple

import pyarrow.fs as pafs

from udaseg.data.storage import children, exists, filesystem, join, reach, utf8
from udaseg.errors import DatasetError, UnreachableError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff")


UNREAD_SUFFIXES = (
    ".gif", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".ppm", ".pgm", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".exr",
    ".hdr", ".npy", ".mp4", ".mov", ".avi", ".mkv", ".webm",
)  # fmt: skip
"""Of files that hold pictures, but are not read where a folder is given."""


LABEL_SUFFIXES = (".png", ".tif", ".tiff", ".bmp")  # which keep each id


_SAMPLE = 500
"""Images whose names are looked at for what they end in."""


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


class _Entry(NamedTuple):
    """What stands in a folder."""

    name: str
    kind: Literal["file", "folder", "unreadable"]
    """Unreadable: a link to nothing, or a name that is not UTF-8, of what would be looked at."""


def _entries(folder: str) -> list[_Entry]:
    """What stands in a folder. Raises DatasetError where it is missing or cannot be listed."""
    fs, path = filesystem(folder)
    if not isinstance(fs, pafs.LocalFileSystem):
        if reach(folder, lambda: fs.get_file_info(path)).type != pafs.FileType.Directory:
            raise DatasetError(f"{folder}: no such folder")
        return [_Entry(i.base_name, "file" if i.is_file else "folder") for i in children(folder)]
    if not os.path.isdir(path):
        raise DatasetError(f"{folder}: {why_missing(path, 'folder')}")
    try:
        return reach(folder, lambda: [e for e in map(_local, os.scandir(path)) if e is not None])
    except UnreachableError:
        raise
    except OSError as error:  # a folder that may not be read
        raise DatasetError(f"{folder}: cannot be listed: {error}") from None


def _local(entry: os.DirEntry[str]) -> _Entry | None:
    """None for what is neither a file nor a folder: a pipe, a socket."""
    name = utf8(entry.name)
    if name != entry.name or (entry.is_symlink() and not os.path.exists(entry.path)):
        return _Entry(name, "unreadable")
    return _Entry(name, "folder") if entry.is_dir() else _Entry(name, "file") if entry.is_file() else None


def why_missing(path: str, kind: str = "file") -> str:
    """Why there is nothing to read at a local path."""
    if os.path.islink(path):
        return f"a link to {utf8(os.readlink(path))}, where there is nothing"
    raw = re.sub(rb"\\x([0-9a-f]{2})", lambda code: bytes.fromhex(code[1].decode()), os.fsencode(path))
    if raw != os.fsencode(path) and os.path.lexists(raw):
        return "its name is not UTF-8; rename it"
    return "a file, where a folder is to be named" if os.path.isfile(path) else f"no such {kind}"


def has_folder(folder: str) -> bool:
    """Whether there is a folder. Raises DatasetError for a link to nothing: a store that is not mounted."""
    fs, path = filesystem(folder)
    if isinstance(fs, pafs.LocalFileSystem) and os.path.islink(path) and not os.path.exists(path):
        raise DatasetError(f"{folder}: {why_missing(path)}")
    return exists(folder)


def walk(
    folder: str, suffixes: Sequence[str], *, unread: Counter[str] | None = None, _above: tuple[str, ...] = ()
) -> Iterator[tuple[str, str]]:
    r"""(path below `folder` less its suffix, URI) of each file in or below it that ends in one of `suffixes`.

    One folder after the other is listed, so that a walk holds the names of one folder, however many there are below
    (on `gs://` those of all folders below it, see `udaseg.data.storage.children`).
    The order is fixed: the files of a folder by name, then its folders by name. Links to folders are followed; hidden
    files and folders, whose names begin with a dot, are passed over.

    What reading will refuse is among the files, so that no part of a dataset is missed without a word: links to
    nothing, and names that are not UTF-8 (with \xe9 for a byte). Where their names have no ending at all they may
    have been folders, and are among them too. `unread` counts the pictures of `UNREAD_SUFFIXES`, which are passed over.

    Raises DatasetError where the folder is missing or a link leads back to a folder above it.
    """
    folder = folder if "://" in folder else os.path.abspath(folder)
    fs, path = filesystem(folder)
    real = os.path.realpath(path) if isinstance(fs, pafs.LocalFileSystem) else path
    if real in _above:
        raise DatasetError(f"{folder}: a symbolic link that leads back to {real}, in which it lies; remove it")
    visible = [entry for entry in _entries(folder) if not entry.name.startswith(".")]
    found = []
    for name, kind in visible:
        suffix = next((s for s in suffixes if name.lower().endswith(s.lower())), None)
        if suffix and kind != "folder":
            found.append((name[: -len(suffix)], name))
        elif kind == "unreadable" and not os.path.splitext(name)[1]:
            found.append((name, name))
        elif (
            unread is not None
            and kind != "folder"
            and (ending := posixpath.splitext(name)[1].lower()) in UNREAD_SUFFIXES
        ):
            unread[ending] += 1
    yield from ((name, join(folder, base_name)) for name, base_name in sorted(found))
    for below in sorted(name for name, kind in visible if kind == "folder"):
        for name, uri in walk(join(folder, below), suffixes, unread=unread, _above=(*_above, real)):
            yield f"{below}/{name}", uri


def files(folder: str, suffixes: Sequence[str], *, unread: Counter[str] | None = None) -> list[tuple[str, str]]:
    """What `walk` finds, sorted. Raises DatasetError, too, where that is nothing."""
    found = sorted(walk(folder, suffixes, unread=unread))
    if not found:
        raise none_found(folder, suffixes, unread)
    return found


def raw_labels(folder: str) -> list[tuple[str, str]]:
    """The labels of a folder, less those in train ids that mmsegmentation's converters, as DAFormer's, put beside."""
    found = [(name, uri) for name, uri in files(folder, [".png"]) if not name.endswith("_labelTrainIds")]
    if not found:
        raise DatasetError(f"{folder}: all labels end in _labelTrainIds.png; unpack those that they were made from")
    return found


def none_found(folder: str, suffixes: Sequence[str], unread: Counter[str] | None) -> DatasetError:
    """That `walk` found nothing, but what it counted."""
    but = f", but there are {_counted(unread)}; convert them" if unread else ""
    return DatasetError(f"{folder}: no file in this folder or below ends in {' or '.join(suffixes)}{but}")


def _counted(unread: Counter[str]) -> str:
    return ", ".join(f"{count} of {ending}" for ending, count in sorted(unread.items()))


def passed_over(folder: str, unread: Counter[str]) -> list[str]:
    """A warning of the pictures that `walk` counted in a folder of images, or none."""
    endings = " or ".join(IMAGE_SUFFIXES)
    return [f"{folder}: passed over, as images end in {endings}: {_counted(unread)}"] if unread else []


def folders(folder: str) -> list[str]:
    """The sorted names of the folders in `folder`, less those of hidden ones, as in `walk`.

    Raises DatasetError where it is missing, or holds what may be a folder but cannot be read, see `walk`.
    """
    found = sorted(entry for entry in _entries(folder) if not entry.name.startswith("."))
    if wrong := [name for name, kind in found if kind == "unreadable" and not os.path.splitext(name)[1]]:
        raise DatasetError(f"{join(folder, wrong[0])}: {why_missing(filesystem(join(folder, wrong[0]))[1])}")
    return [name for name, kind in found if kind == "folder"]


def match(images: Iterable[tuple[str, str]], labels: Iterable[tuple[str, str]], split: str) -> Iterator[Pair]:
    """Join images and labels, both (id, URI), by id. What stands alone, or twice, is kept for `sort_out` to find.

    Ids are one where they look alike: archives made on macOS write é as two letters, e and its accent.
    """
    labels_of: dict[str, list[tuple[str, str]]] = {}
    for image_id, uri in labels:
        labels_of.setdefault(composed(image_id), []).append((image_id, uri))
    matched = set()
    for image_id, uri in images:
        name = composed(image_id)
        matched.add(name)
        if name not in labels_of:
            yield Pair(image_id, uri, None, split)
        for _, label_uri in labels_of.get(name, []):
            yield Pair(image_id, uri, label_uri, split)
    for name, alone in labels_of.items():
        if name not in matched:
            for image_id, label_uri in alone:
                yield Pair(image_id, None, label_uri, split)


def composed(name: str) -> str:
    """A name in the one of its Unicode forms that has fewest letters, NFC."""
    return unicodedata.normalize("NFC", name)


def likely_suffixes(images: Sequence[str], labels: Sequence[str]) -> tuple[str, str] | None:
    """The endings of ids, one of images' and one of labels', without which most images have a label; None if few do.

    Of several that fit alike it is that with the word "label", then the shortest.
    """
    names, votes = sorted(labels), Counter[tuple[str, str]]()
    for image in images[:_SAMPLE]:
        at = bisect.bisect(names, image)  # beside it lie those that begin as it does
        for label in names[max(0, at - 8) : at + 8]:
            stem = os.path.commonprefix([image, label]).rstrip("_-. ")  # noqa: RUF071 - of letters
            of_image, of_label = image[len(stem) :], label[len(stem) :]
            if stem and "/" not in stem[-1] + of_image + of_label:  # what is left of a name must be a name
                votes[of_image, of_label] += 1

    def worth(suffixes: tuple[str, str]) -> tuple[int, bool, int]:
        of_image, of_label = suffixes
        stems = {name.removesuffix(of_image) for name in images if name.endswith(of_image)}
        paired = stems & {name.removesuffix(of_label) for name in names if name.endswith(of_label)}
        return len(paired), "label" in of_label.lower(), -len(of_label)

    best = max((pair for pair, _ in votes.most_common(20)), key=worth, default=None)
    return best if best is not None and 2 * worth(best)[0] > len(images) else None


def sort_out(pairs: Sequence[Pair]) -> tuple[list[Pair], list[Problem]]:
    """The usable pairs, in order, and the problems of the others.

    Refused: an image without label in a split that has labels, a label without image, and all images of an id that is
    not unique, since none of them is known to be the right one.
    """
    labelled = {pair.split for pair in pairs if pair.label_uri}
    times = Counter(composed(pair.image_id) for pair in pairs)
    good, problems = [], []
    for pair in pairs:
        if times[composed(pair.image_id)] > 1:
            where = " and ".join(filter(None, (pair.image_uri, pair.label_uri)))
            problems.append(Problem(pair.image_id, f"{where}: its id {pair.image_id!r} is not unique"))
        elif pair.image_uri is None:
            problems.append(Problem(pair.image_id, f"{pair.label_uri}: label without image"))
        elif pair.label_uri is None and pair.split in labelled:
            problems.append(Problem(pair.image_id, f"{pair.image_uri}: image without label"))
        else:
            good.append(pair)
    return good, problems
