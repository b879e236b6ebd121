"""A confusion matrix for people: IoU per class and the field's means, as values, a table and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.figure import Figure
from rich.table import Table

from udaseg.data.taxonomies import CITYSCAPES_CLASSES, SYNTHIA_16, SYNTHIA_MEANS
from udaseg.evaluation.metrics import iou, mean_iou, pixel_accuracy
from udaseg.reports.page import percent, picture, short
from udaseg.reports.tables import cell

_MOST_INCHES = 40
"""Of a picture's side: pictures of hundreds of classes would be larger than Pillow opens."""


def _synthia_means(counts: np.ndarray, names: Sequence[str]) -> dict[str, float]:
    """For the classes of Cityscapes, or the 16 of them that SYNTHIA has, the means over SYNTHIA's; else nothing."""
    if tuple(names) not in (CITYSCAPES_CLASSES.names, SYNTHIA_16):
        return {}
    return {title: mean_iou(counts, [names.index(name) for name in some]) for title, some in SYNTHIA_MEANS.items()}


def _incremental_means(counts: np.ndarray, old_classes: int | None) -> dict[str, float]:
    """Of a network that has learned new classes the means over the old ones and over the new; of others nothing."""
    if old_classes is None:
        return {}
    parts = {"mIoU-old": range(old_classes), "mIoU-new": range(old_classes, len(counts))}
    return {title: mean_iou(counts, some) for title, some in parts.items()}


def summary(counts: np.ndarray, names: Sequence[str], old_classes: int | None = None) -> dict[str, object]:
    """A confusion matrix's metrics as plain values; None where no pixel tells, as the IoU of an absent class.

    Args:
        counts: (K, K) pixels, see `udaseg.evaluation.metrics.confusion`.
        names: of the classes.
        old_classes: how many of them, the first, the network had before it learned the others; None = all.
    """

    def plain(value: float) -> float | None:
        return None if np.isnan(value) else round(float(value), 6)

    return {
        "miou": plain(mean_iou(counts)),
        **{title: plain(value) for title, value in _means(counts, names, old_classes).items()},
        "pixel_accuracy": plain(pixel_accuracy(counts)),
        "iou": {name: plain(value) for name, value in zip(names, iou(counts), strict=True)},
        "confusion": counts.tolist(),
    }


def _means(counts: np.ndarray, names: Sequence[str], old_classes: int | None) -> dict[str, float]:
    """The means over some of the classes, by their name."""
    return _synthia_means(counts, names) | _incremental_means(counts, old_classes)


def iou_table(counts: Mapping[str, np.ndarray], names: Sequence[str], old_classes: int | None = None) -> Table:
    """Per-class IoU in percent, one column a network, with the means and pixel accuracy below; see `summary`."""
    table = Table()
    table.add_column("class")
    for title in counts:
        table.add_column(cell(title or "IoU %"), justify="right")
    columns = [iou(c) for c in counts.values()]
    for k, name in enumerate(names):
        table.add_row(cell(name), *(percent(column[k]) for column in columns))
    table.add_section()
    means = [{"mIoU": mean_iou(c)} | _means(c, names, old_classes) for c in counts.values()]
    for title in means[0]:
        table.add_row(title, *(percent(mean[title]) for mean in means))
    table.add_row("pixel accuracy", *(percent(pixel_accuracy(c)) for c in counts.values()))
    return table


def part_table(titles: Sequence[str], counts: Mapping[str, np.ndarray]) -> Table:
    """mIoU in percent on each of several datasets, and its mean over them, one column a network.

    Args:
        titles: N names of networks; "" for one alone.
        counts: per dataset (N, K, K) pixels.
    """
    table = Table()
    table.add_column("dataset")
    for title in titles:
        table.add_column(cell(title or "mIoU %"), justify="right")
    values = [[mean_iou(of_network) for of_network in of] for of in counts.values()]
    for name, row in zip(counts, values, strict=True):
        table.add_row(cell(name), *map(percent, row))
    table.add_section()
    table.add_row("mean", *map(percent, np.mean(values, axis=0)))
    return table


@picture
def confusion_picture(counts: np.ndarray, names: Sequence[str]) -> Figure:
    """A confusion matrix, each row (true class) in percent of its pixels."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    wanted = 2.2 + 0.45 * len(names)
    side = min(wanted, _MOST_INCHES)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    shown = [short(name) for name in names]
    axes.set_xticks(range(len(names)), shown, rotation=60, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(names)), shown)
    axes.tick_params(labelsize=10 * side / wanted)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for i, j in np.ndindex(*share.shape):
        if share[i, j] >= 0.005:
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", size=7 * side / wanted, color=colour)
    return figure
