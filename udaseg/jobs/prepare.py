"""`udaseg prepare`: check folders of images and labels, and write the dataset directory that all other jobs read."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc

from udaseg.data.classes import ColorLabels
from udaseg.data.coco import Segments, drawn
from udaseg.data.dataset_input import assign_splits, check_given, find_classes, find_pairs, split_folders
from udaseg.data.depth import require_depth_range
from udaseg.data.folders import Pair, Problem, sort_out
from udaseg.data.label_warnings import label_warnings
from udaseg.data.layouts import LAYOUTS
from udaseg.data.manifest import DATASET_FILES, MANIFEST, write_dataset
from udaseg.data.storage import (
    absolute,
    exists,
    filesystem,
    join,
    read_bytes,
    remove,
    remove_folder,
    to_uri,
    write_bytes,
)
from udaseg.data.strict_json import dump_json
from udaseg.errors import DatasetError
from udaseg.jobs.checking import CHECKED, check_pairs
from udaseg.jobs.output import keep_apart, own_directory, require_own
from udaseg.reports.dataset import contents_table
from udaseg.reports.tables import show
from udaseg.types import DepthRange

SKIPPED = "skipped.json"

_LISTED = 20  # problems that are shown


def prepare(
    *,
    out: str,
    images: str | None = None,
    labels: str | None = None,
    classes: str | None = None,
    mapping: str | None = None,
    layout: str | None = None,
    root: str | None = None,
    splits: str | None = None,
    split: str | None = None,
    image_suffix: str | None = None,
    label_suffix: str | None = None,
    label_colors: ColorLabels | None = None,
    reduce_zero_label: bool = False,
    depth_range: DepthRange | None = None,
    name: str | None = None,
    on_error: Literal["refuse", "skip"] = "refuse",
    strict: bool = False,
    overwrite: bool = False,
) -> list[Problem]:
    """Check every image and label, and write a dataset directory. Images stay where they are.

    Give either --images (and --labels for a labelled set), or --layout and --root. Paths may be URIs such as s3://...
    Returns what was skipped. Raises DatasetError or ConfigError, and writes no dataset, where anything is wrong. What
    was checked until then, or until it was stopped, is kept in --out: run again, it looks anew at what has changed.

    Args:
        out: The dataset directory to write.
        images: A folder of images, searched recursively.
        labels: A folder of label maps in PNG, TIFF or BMP: image a/b.jpg has label a/b.png.
        classes: A JSON file {"names": [...], "palette": [[r, g, b], ...], "raw_to_train": {"raw id": train id}}; or
            cityscapes or cityscapes_train_ids, its 19 classes in labels of label ids or train ids.
        mapping: A JSON file that gives the dataset other classes, such as another dataset's: {"names": [...],
            "palette": [[r, g, b], ...], "map": {"class of the dataset": "one of names", several of them where its
            pixels may be of any, which only methods between taxonomies use, or null to ignore it}}.
        layout: How a known dataset lies on disk: folders (ROOT/<split>/images and .../labels, or ROOT/images/<split>
            and ROOT/labels/<split>), cityscapes, gta5, synthia, acdc, dark_zurich, bdd100k, cross_city, idd, camvid,
            mapillary, synscapes, foggy_cityscapes, rainy_cityscapes, nightcity, nightcity_fine, urbansyn, muses,
            nighttime_driving, railsem19, carla (as folders, in the colours of its CityScapesPalette), loveda,
            loveda_rural, loveda_urban, potsdam, potsdam_irrg, vaihingen, coco_panoptic, coco_stuff, coco_stuff164k,
            ade20k, voc (Pascal VOC 2012) or cvat (CVAT's "Segmentation mask 1.1").
        root: The root folder of the layout.
        splits: A JSON file {split: [image paths below --images, without extension]}; else all rows are of --split.
        split: The split of all images of --images; train where it is not given.
        image_suffix: What the names of --images end in before their extension and labels lack, as _leftImg8bit; files
            without it are passed over.
        label_suffix: The same of --labels, as _gtFine_labelIds.
        label_colors: Labels are colours: those of the palette, grey of three equal channels that hold the id, or red
            that is the id, as CARLA writes its tags, whatever the other channels hold.
        reduce_zero_label: Labels hold 0 where they are ignored, and 1 for the first class.
        depth_range: LOW and HIGH for images of one band and more than 8 bits, such as depths or temperatures, or of
            floating-point numbers: LOW and less become black, HIGH and more white, what lies between linearly grey.
            Images of 8 bits stay as they are. The dataset keeps it, and models that are trained on it do.
        name: The dataset's name; that of the directory where it is not given.
        on_error: Whether an image that cannot be used makes it refuse, or is skipped and listed in skipped.json.
        strict: Refuse what is only warned of otherwise: a class that never occurs, a split whose pixels are mostly
            ignored, images without a labelled pixel, masks of 0 and 255.
        overwrite: Replace the dataset that is in the directory already.
    """
    out, images, labels, root = to_uri(out), to_uri(images), to_uri(labels), to_uri(root)
    classes, mapping, splits = to_uri(classes), to_uri(mapping), to_uri(splits)
    require_own(out, "prepare")
    check_given(images, labels, layout, root, splits, split, image_suffix, label_suffix)
    require_depth_range(depth_range, "--depth-range")
    given = {"--classes": classes, "--mapping": mapping, "--splits": splits}
    if root is not None and classes is None and layout in LAYOUTS and LAYOUTS[layout].classes is None:
        given["--root"] = join(root, "classes.json")  # which is read
    keep_apart(given, out, [*DATASET_FILES, SKIPPED])
    if exists(join(out, "manifest.parquet")) and not overwrite:
        raise DatasetError(f"{out}: there is a dataset in this directory already; replace it by --overwrite")
    with own_directory(out, "prepare"), contextlib.ExitStack() as undo:
        if not _is_own_list(join(out, SKIPPED)):
            raise DatasetError(f"{join(out, SKIPPED)}: not written by `udaseg prepare`, which would; move it elsewhere")
        class_list = find_classes(classes, mapping, layout, root, label_colors, reduce_zero_label=reduce_zero_label)
        pairs, passed = find_pairs(images, labels, layout, root, split, image_suffix, label_suffix)
        if splits is None and split is None and images is not None:
            passed += split_folders(pairs)
        good, problems = sort_out(pairs)
        if splits is not None:
            good, more = assign_splits(good, {pair.image_id for pair in pairs if pair.image_uri}, splits)
            problems += more
        if layout is not None and root is not None and (segments := LAYOUTS[layout].segments) is not None:
            good, more = _drawn(good, segments(root), join(out, "labels"), undo)
            problems += more
        facts, places = check_pairs(good, class_list, depth_range, out=absolute(out))
        broken = pc.is_valid(facts["problem"])
        problems += [Problem(good[f["row"]].image_id, f["problem"]) for f in facts.filter(broken).to_pylist()]
        if problems and on_error == "refuse":
            listing = _listing(problems)
            raise DatasetError(f"no dataset was written; leave such images out by --on-error skip\n{listing}")
        facts = facts.filter(pc.invert(broken))
        if facts.num_rows == 0:
            raise DatasetError(f"no dataset was written, as no image can be used\n{_listing(problems)}")

        manifest = _manifest([good[row] for row in facts["row"].to_pylist()], facts, out, name)
        warnings = label_warnings(manifest, class_list, pc.unique(pc.list_flatten(facts["raw_ids"])).to_pylist())
        warnings += passed
        if warnings and strict:
            reason = "no dataset was written, as --strict refuses what is warned of"
            raise DatasetError("\n  ".join([reason, *warnings]))
        skipped = join(out, SKIPPED)
        if problems:
            write_bytes(skipped, dump_json([problem._asdict() for problem in problems], indent=1).encode())
        else:
            remove(skipped)  # of an overwritten dataset
        write_dataset(out, manifest, class_list, places if places.any() else None, depth_range=depth_range)
        undo.pop_all()
        with contextlib.suppress(OSError):  # there is a dataset
            remove_folder(join(out, CHECKED))
        if problems:
            print(f"skipped, as {skipped} lists\n{_listing(problems)}")
        show(contents_table(manifest, class_list, title=out))
        for warning in warnings:
            print(f"warning: {warning}", file=sys.stderr)
        return problems


def _drawn(
    pairs: Sequence[Pair], segments: Segments, folder: str, undo: contextlib.ExitStack
) -> tuple[list[Pair], list[Problem]]:
    """Draw label maps, whose folder is named by what they are drawn from, so that no dataset loses its own.

    `undo` removes what is new. Returns the pairs with these labels, and the problems of the others.
    """
    home, done = join(folder, segments.digest), list[str]()

    def remove_all() -> None:
        for uri in done:
            remove(uri)

    if not exists(home):
        undo.callback(remove_all)
    return drawn(pairs, segments, home, done)


def _is_own_list(uri: str) -> bool:
    """Whether a file is such a list of problems as this module writes, or missing."""
    if not exists(uri):
        return True
    try:
        content = json.loads(read_bytes(uri))
        return all(set(problem) == set(Problem._fields) for problem in content)
    except (ValueError, TypeError):
        return False


def _manifest(pairs: Sequence[Pair], facts: pa.Table, out: str, name: str | None) -> pa.Table:
    """The manifest's rows; `facts` are those of `pairs`, in the same order."""
    columns = {
        "image_id": [pair.image_id for pair in pairs],
        "image_uri": _relative([pair.image_uri for pair in pairs], out),
        "label_uri": _relative([pair.label_uri for pair in pairs], out),
        "dataset": [name or filesystem(out)[1].rsplit("/", 1)[-1]] * len(pairs),
        "split": [pair.split for pair in pairs],
    } | {column: facts[column].combine_chunks() for column in ("height", "width", "class_pixels")}
    return pa.table({field.name: columns[field.name] for field in MANIFEST}, schema=MANIFEST)


def _relative(uris: Iterable[str | None], directory: str) -> list[str | None]:
    """URIs below a directory as paths relative to it, the others as they are."""
    home_fs, home = filesystem(directory)

    def relative(uri: str | None) -> str | None:
        if uri is None:
            return None
        fs, path = filesystem(uri)
        return path[len(home) + 1 :] if path.startswith(f"{home}/") and fs == home_fs else uri

    return [relative(uri) for uri in uris]


def _listing(problems: Sequence[Problem]) -> str:
    more = [f"  and {len(problems) - _LISTED} more"] if len(problems) > _LISTED else []
    return "\n".join([f"problems: {len(problems)}", *(f"  {problem.text}" for problem in problems[:_LISTED]), *more])
