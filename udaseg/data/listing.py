"""The images that a job is to do: rows of a dataset directory, or of a bare folder."""

from __future__ import annotations

import posixpath
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pyarrow.compute as pc

from udaseg.data.folders import IMAGE_SUFFIXES, none_found, walk
from udaseg.data.manifest import read_manifest
from udaseg.data.storage import exists, filesystem, join, resolve
from udaseg.errors import DatasetError

_KINDS = {
    "images": {"images", "image", "imgs", "img", "img_dir", "leftimg8bit", "jpegimages", "rgb"},
    "labels": {"labels", "label", "masks", "mask", "annotations", "ann_dir", "gt", "gtfine", "segmentationclass"},
}
"""What folders of images and of labels are called that lie side by side, in small letters."""


def list_images(
    images: str, split: str | None = None, *, unread: Counter[str] | None = None
) -> Iterator[dict[str, Any]]:
    """Rows of `udaseg.jobs.ledger.LISTING` of a dataset directory, or of a bare folder whose images are its "train".

    `unread` counts what of a bare folder is passed over, see `udaseg.data.folders.walk`.

    Raises DatasetError where there are none, two have the same id, or one would lead out of the output folder.
    """
    _, path = filesystem(images)
    if path.lower().endswith((".zip", ".tar", ".tgz", ".tar.gz", ".7z")):
        raise DatasetError(f"{images}: an archive; unpack it, where you can see what it holds, and give the folder")
    count = 0
    unread = Counter() if unread is None else unread
    made = exists(join(images, "manifest.parquet"))
    for row in _manifest_rows(images, split) if made else _folder_rows(images, unread):
        _check_id(row["image_id"], images)
        if row["split"] in ("", ".", "..") or not row["split"].isprintable() or "/" in row["split"]:
            raise DatasetError(f"{images}: split {row['split']!r} would lead out of the output folder")
        count += 1
        yield row
    if not count:
        raise none_found(images, IMAGE_SUFFIXES, unread)


def _manifest_rows(images: str, split: str | None) -> Iterator[dict[str, Any]]:
    rows = read_manifest(images, split)
    counts = pc.value_counts(rows["image_id"].combine_chunks())
    if len(counts) < rows.num_rows:
        twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"].as_py()
        raise DatasetError(f"{images}: two images are called {twice!r}; an id must be unique")
    for batch in rows.to_batches(max_chunksize=1024):
        for row in batch.to_pylist():
            label = row["label_uri"]
            yield {
                "image_id": row["image_id"],
                "image_uri": resolve(row["image_uri"], images),
                "label_uri": None if label is None else resolve(label, images),
                "dataset": row["dataset"],
                "split": row["split"],
            }


def _folder_rows(images: str, unread: Counter[str]) -> Iterator[dict[str, Any]]:
    last = None
    kinds: dict[str, dict[str, str]] = {}  # of the folders in a folder
    name = posixpath.basename(filesystem(images)[1])
    for image_id, uri in walk(images, IMAGE_SUFFIXES, unread=unread):
        if image_id == last:  # the files of a folder come in order
            raise DatasetError(
                f"{images}: two images are called {image_id!r}; an id must be unique without its extension"
            )
        last = image_id
        above = ""
        for part in image_id.split("/")[:-1]:
            for kind in (kind for kind, known in _KINDS.items() if part.lower() in known):
                kinds.setdefault(above, {})[kind] = part
            if len(both := kinds.get(above, {})) == 2:
                where = join(images, above) if above else images
                raise DatasetError(
                    f"{where}: holds {both['images']}/ and {both['labels']}/, and label maps are no photographs; "
                    f"give its {both['images']}/, or make a dataset with `udaseg prepare`"
                )
            above = f"{above}/{part}" if above else part
        yield {"image_id": image_id, "image_uri": uri, "label_uri": None, "dataset": name, "split": "train"}


def _check_id(image_id: str, images: str) -> None:
    """An id becomes a path: it must stay below the output folder and be a name that filesystems take."""
    parts = image_id.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise DatasetError(f"{images}: image id {image_id!r} would lead out of the output folder")
    if not image_id.isprintable() or any(len(part.encode()) > 200 for part in parts):
        raise DatasetError(
            f"{images}: image id {image_id[:80]!r} cannot be a file's name: it is too long or not printable"
        )
    if any(part.endswith(".png") for part in parts[:-1]):
        raise DatasetError(f"{images}: image id {image_id!r} has a folder that another image's file may be called")
