"""What is allowed in labels and yet mostly a mistake: classes that never occur, pixels that are mostly ignored."""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from udaseg.data.classes import Classes
from udaseg.data.manifest import pixels_of_classes

_NAMED = 3  # images


def label_warnings(manifest: pa.Table, classes: Classes, raw_ids: Collection[int] | None = None) -> list[str]:
    """A sentence for each doubt about the labels of a dataset; none where it has no labels.

    Args:
        manifest: rows of `udaseg.data.manifest.MANIFEST`.
        classes: those of the dataset.
        raw_ids: all values in its labels, where they are known.
    """
    labelled = manifest.filter(pc.is_valid(manifest["label_uri"]))
    if not labelled.num_rows:
        return []
    class_pixels = pixels_of_classes(labelled, len(classes))
    found = [_binary(classes)] if _is_binary(classes, raw_ids) else []
    if never := [name for name, pixels in zip(classes.names, class_pixels.sum(0), strict=True) if not pixels]:
        share = f"0.00 % of the pixels of {labelled.num_rows} labels"
        found.append(f"{len(never)} of {len(classes)} classes never occur, {share}: {_listed(never)}")
    area = np.multiply(labelled["height"].to_numpy(), labelled["width"].to_numpy(), dtype=np.int64)
    nothing = "ignored, or of several classes" if classes.unions else "ignored"
    known, split = class_pixels.sum(1), np.array(labelled["split"].to_pylist(), object)
    ids = np.array(labelled["image_id"].to_pylist(), object)
    for name in dict.fromkeys(split.tolist()):
        here = split == name
        ignored = 1 - known[here].sum() / area[here].sum()
        if ignored > 0.5:
            found.append(f"split {name!r}: {100 * ignored:.2f} % of the pixels of its labels are {nothing}")
        empty = here & (known == 0)
        if empty.any() and ignored < 1:
            share = f"{empty.sum()} of {here.sum()} images ({100 * empty.sum() / here.sum():.2f} %)"
            pixel = "pixel of one class alone" if classes.unions else "labelled pixel"
            found.append(f"split {name!r}: {share} have not one {pixel}: {_listed(ids[empty].tolist(), _NAMED)}")
    return found


def _is_binary(classes: Classes, raw_ids: Collection[int] | None) -> bool:
    """Whether labels are masks of 0 and 255, as ids or as greys, whose 255 is ignored."""
    found = set(raw_ids or ())
    if not classes.color_to_train:
        return found == {0, 255} and classes.raw_to_train.get(255, 255) == 255
    are_greys = all(len(set(color.split(","))) == 1 for color in classes.color_to_train)
    return are_greys and found == {0, 0xFFFFFF} and classes.color_to_train.get("255,255,255") == 255


def _binary(classes: Classes) -> str:
    if classes.raw_to_train.get(0) == 255:  # as by --reduce-zero-label, which refuses a list with raw_to_train
        doubt = "both are ignored; if they are classes, leave out --reduce-zero-label, where it is given, and "
    else:
        doubt = "255 is ignored; if it is a class, "
    text = f"0 and 255 are the only values in the labels, and {doubt}"
    line = 'put "raw_to_train": {"0": 0, "255": 1} into the class list'
    if len(classes) < 2:
        return f"{text}name two in the class list, that of 0 and that of 255, and {line}"
    return f"{text}{line}: 0 is then {classes.names[0]!r} and 255 {classes.names[1]!r}"


def _listed(names: list[str], most: int = 20) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more
