"""What `udaseg prepare` is given: files, options and class lists, as pairs of images and labels and their classes."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Sequence

from udaseg.data.classes import MAX_CLASSES_BYTES, Classes, ColorLabels, of_color_labels, of_reduced_labels
from udaseg.data.folders import (
    IMAGE_SUFFIXES,
    LABEL_SUFFIXES,
    Pair,
    Problem,
    composed,
    files,
    likely_suffixes,
    match,
    passed_over,
)
from udaseg.data.images import MAX_BYTES
from udaseg.data.layouts import LAYOUTS
from udaseg.data.storage import exists, join, read_bytes
from udaseg.data.strict_json import parse_json
from udaseg.data.taxonomies import CITYSCAPES_CLASSES, TRAIN_ID_CLASSES, remap
from udaseg.errors import DatasetError


def check_given(
    images: str | None,
    labels: str | None,
    layout: str | None,
    root: str | None,
    splits: str | None,
    split: str | None,
    image_suffix: str | None,
    label_suffix: str | None,
) -> None:
    """Raise DatasetError where arguments of `udaseg.jobs.prepare.prepare` contradict each other, or one is missing."""
    if images is not None and layout is None:
        if root is not None:
            raise DatasetError("--root belongs to --layout")
        if splits is not None and split is not None:
            raise DatasetError("give either --splits or --split")
        if label_suffix is not None and labels is None:
            raise DatasetError("--label-suffix belongs to --labels")
    elif layout is not None and images is None:
        if layout not in LAYOUTS:
            raise DatasetError(f"no layout {layout!r}; there are {', '.join(LAYOUTS)}")
        if root is None:
            raise DatasetError("--layout needs --root")
        if labels or splits or split:
            raise DatasetError("--labels, --splits and --split belong to --images; a layout has its own")
        if image_suffix or label_suffix:
            raise DatasetError("--image-suffix and --label-suffix belong to --images; a layout has its own")
    else:
        raise DatasetError("give either --images, or --layout and --root")


def find_pairs(
    images: str | None,
    labels: str | None,
    layout: str | None,
    root: str | None,
    split: str | None,
    image_suffix: str | None,
    label_suffix: str | None,
) -> tuple[list[Pair], list[str]]:
    """The images with their labels, for arguments that are checked, and what is to be warned of.

    Raises DatasetError where there is no image, or no label has an image's name; it then says what the names end in.
    """
    if layout is not None and root is not None:
        return list(LAYOUTS[layout].pairs(root)), []
    assert images is not None
    unread = Counter[str]()
    found = files(images, _endings(image_suffix, IMAGE_SUFFIXES), unread=unread)
    label_files = [] if labels is None else files(labels, _endings(label_suffix, LABEL_SUFFIXES))
    pairs = list(match(found, label_files, split or "train"))
    if label_files and not any(pair.image_uri and pair.label_uri for pair in pairs):
        raise DatasetError(f"{labels}: no label has the name of an image of {images}; {_hint(found, label_files)}")
    return pairs, passed_over(images, unread)


def split_folders(pairs: Sequence[Pair]) -> list[str]:
    """What is to be warned of where images of one split lie in folders by the names of several."""
    found = {"".join(pair.image_id.partition("/")[:2]) for pair in pairs if pair.image_uri}
    if len(found) < 2 or not found <= {f"{name}/" for name in _LIKE_SPLITS}:
        return []
    where = ", ".join(name.rstrip("/") for name in sorted(found))
    return [
        f"images lie in the folders {where}, and are all of split {pairs[0].split!r}; if these are splits, give them "
        "by --splits, or the folder above by --layout folders --root"
    ]


_LIKE_SPLITS = {"train", "val", "test", "training", "validation", "testing"}


def _endings(suffix: str | None, extensions: Sequence[str]) -> list[str]:
    """What names end in; a suffix may have its extension or not."""
    if suffix is None:
        return list(extensions)
    return [suffix] if suffix.lower().endswith(tuple(extensions)) else [suffix + extension for extension in extensions]


def _hint(images: Sequence[tuple[str, str]], labels: Sequence[tuple[str, str]]) -> str:
    ids = [[image_id for image_id, _ in found] for found in (images, labels)]
    likely = likely_suffixes(*ids)
    if likely is None and (pair := _in_other_folders(*ids)) is not None:
        return (
            f"their names pair and are unique, but folders differ, as of image {pair[0]!r} and label {pair[1]!r}; "
            f"give each label the folder of its image, so that this one is {pair[0]!r}"
        )
    if likely is None:
        return f"the first are {ids[0][0]!r} and {ids[1][0]!r}: name labels as their images, in the same folders"
    of_image = _whole(likely[0], images, IMAGE_SUFFIXES)
    flags = ("--image-suffix", of_image), ("--label-suffix", _whole(likely[1], labels, LABEL_SUFFIXES))
    return "they pair with " + " ".join(f"{flag} {suffix}" for flag, suffix in flags if suffix)


def _in_other_folders(images: Sequence[str], labels: Sequence[str]) -> tuple[str, str] | None:
    """The first ids of an image and its label where most have one name, none is there twice, and folders differ."""
    of_name = [{posixpath.basename(file_id): file_id for file_id in ids} for ids in (images, labels)]
    if [len(names) for names in of_name] != [len(images), len(labels)]:
        return None
    paired = [name for name in of_name[0] if name in of_name[1]]
    return (of_name[0][paired[0]], of_name[1][paired[0]]) if 2 * len(paired) > len(images) else None


def _whole(suffix: str, found: Sequence[tuple[str, str]], extensions: Sequence[str]) -> str:
    """A suffix of ids, with the files' extension where it would be taken for one: of a.tif.png .tif.png, not .tif."""
    if not suffix.lower().endswith(tuple(extensions)):
        return suffix
    return suffix + next(posixpath.splitext(uri)[1] for file_id, uri in found if file_id.endswith(suffix))


CLASS_LISTS = {"cityscapes": CITYSCAPES_CLASSES, "cityscapes_train_ids": TRAIN_ID_CLASSES}
"""Class lists by name: Cityscapes' 19, of labels that hold its label ids, or its train ids."""


def read_class_list(name: str) -> Classes:
    """One of `CLASS_LISTS`, or the class list in a file. Raises DatasetError where it is neither.

    That of joined datasets says how their labels show the classes, not how others do, and is taken for train ids.
    """
    if name in CLASS_LISTS:
        return CLASS_LISTS[name]
    if not exists(name):
        raise DatasetError(f"{name}: no such file, nor is it {' or '.join(CLASS_LISTS)}")
    found = Classes.from_json(read_bytes(name, limit=MAX_CLASSES_BYTES), name)
    return found.of_train_ids() if found.parts else found


def find_classes(
    classes: str | None,
    mapping: str | None,
    layout: str | None,
    root: str | None,
    label_colors: ColorLabels | None,
    *,
    reduce_zero_label: bool,
) -> Classes:
    """The class list of a file, else a layout's own, as the options and the mapping file say. Raises DatasetError."""
    own = None
    if layout is not None and root is not None:
        own = LAYOUTS[layout].classes
        if classes is None and own is None and exists(join(root, "classes.json")):
            classes = join(root, "classes.json")
    if classes is not None:
        own = read_class_list(classes)
    if layout is not None and root is not None and (read := LAYOUTS[layout].read_classes) is not None:
        own = read(root, own)
    if own is None:
        raise DatasetError("these images come without a class list; give one by --classes")
    own = of_reduced_labels(own) if reduce_zero_label else own
    own = own if label_colors is None else of_color_labels(own, label_colors)
    return own if mapping is None else remap(own, _read_json(mapping), mapping)


def assign_splits(pairs: Sequence[Pair], known: set[str], uri: str) -> tuple[list[Pair], list[Problem]]:
    """Give the pairs the splits of a file {split: [image ids]}; `known` are the ids of all images, usable or not."""
    content = parse_json(_read_json(uri), uri)
    if not isinstance(content, dict) or not all(
        isinstance(ids, list) and all(isinstance(i, str) for i in ids) for ids in content.values()
    ):
        raise DatasetError(f'{uri}: not a list of splits; it needs {{"train": ["a/b", ...], "val": [...]}}')
    split_of: dict[str, str] = {}
    for split, ids in content.items():
        for image_id in ids:
            name = composed(image_id)
            if split_of.setdefault(name, split) != split:
                raise DatasetError(f"{uri}: {image_id!r} is in split {split_of[name]!r} and in {split!r}")
    there = set(map(composed, known))
    problems = [Problem(i, f"{uri}: there is no image {i!r}") for i in split_of if i not in there]
    good = []
    for pair in pairs:
        if composed(pair.image_id) in split_of:
            good.append(pair._replace(split=split_of[composed(pair.image_id)]))
        else:
            problems.append(Problem(pair.image_id, f"{pair.image_uri}: in no split of {uri}"))
    return good, problems


def _read_json(uri: str) -> bytes:
    if not exists(uri):
        raise DatasetError(f"{uri}: no such file")
    return read_bytes(uri, limit=MAX_BYTES)
