"""What is in datasets: counts, sizes, the balance of classes, pictures under their labels, and what is doubtful."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
from PIL import Image
from rich.table import Table

from udaseg.data.classes import Classes
from udaseg.data.manifest import pixels_of_classes
from udaseg.reports.page import data_uri, render
from udaseg.reports.tables import cell

_SIZES = 5  # that are listed


class Contents(NamedTuple):
    """A dataset as its page shows it."""

    directory: str
    manifest: pa.Table
    """Rows of `udaseg.data.manifest.MANIFEST`."""
    classes: Classes
    warnings: Sequence[str]
    sheet: Sequence[tuple[str, Image.Image]]
    """Image ids, and small images under their labels."""


def dataset_page(datasets: Sequence[Contents], warnings: Sequence[str]) -> str:
    """One HTML page that needs no other file. `warnings` are of all datasets together."""
    return render(
        "dataset",
        title=", ".join(contents.directory for contents in datasets),
        warnings=warnings,
        datasets=[
            {
                "directory": contents.directory,
                "images": contents.manifest.num_rows,
                "labelled": contents.manifest.num_rows - contents.manifest["label_uri"].null_count,
                "splits": _splits(contents.manifest),
                "sizes": _sizes(contents.manifest),
                "balance": balance(contents.manifest, contents.classes),
                "warnings": contents.warnings,
                "sheet": [(image_id, data_uri(picture)) for image_id, picture in contents.sheet],
            }
            for contents in datasets
        ],
    )


def balance(manifest: pa.Table, classes: Classes) -> list[dict[str, object]]:
    """Per class its name, colour, percent of the labelled pixels and images that it is in; none without labels."""
    pixels = pixels_of_classes(manifest, len(classes))
    shares = 100 * pixels.sum(0) / max(1, pixels.sum())
    rows = zip(classes.names, classes.palette, shares, (pixels > 0).sum(0), strict=True)
    return [
        {"name": name, "colour": colour, "percent": f"{share:.2f}", "width": f"{share:.1f}", "images": int(count)}
        for name, colour, share, count in rows
        if len(pixels)
    ]


def _splits(manifest: pa.Table) -> list[tuple[str, int]]:
    return [(row["values"], row["counts"]) for row in pc.value_counts(manifest["split"]).to_pylist()]


def _sizes(manifest: pa.Table) -> list[tuple[str, int]]:
    """The most frequent sizes, width x height, and the rest in one row."""
    counts = Counter(zip(manifest["width"].to_pylist(), manifest["height"].to_pylist(), strict=True)).most_common()
    rows = [(f"{width} x {height}", count) for (width, height), count in counts[:_SIZES]]
    if rest := counts[_SIZES:]:
        rows.append((f"{len(rest)} other sizes", sum(count for _, count in rest)))
    return rows


def contents_table(manifest: pa.Table, classes: Classes, title: str) -> Table:
    """A table of the images and the classes' shares of pixels per split."""
    splits = sorted(set(manifest["split"].to_pylist()))
    table = Table("", title=cell(title))
    images, labelled, shares = [], [], []
    for split in splits:
        table.add_column(cell(split))
        rows = manifest.filter(pc.equal(manifest["split"], split))
        pixels = pixels_of_classes(rows, len(classes))
        images.append(str(rows.num_rows))
        labelled.append(str(len(pixels)))
        shares.append(pixels.sum(0) / max(1, pixels.sum()) if len(pixels) else None)
    table.add_row("images", *images)
    table.add_row("labelled", *labelled, end_section=True)
    for class_id, class_name in enumerate(classes.names):
        percents = ("" if share is None else f"{100 * share[class_id]:.2f} %" for share in shares)
        table.add_row(cell(class_name), *percents)
    return table
