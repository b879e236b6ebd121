"""Results for people: tables, pictures and the HTML report."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import matplotlib
import numpy as np
from PIL import Image
from rich.table import Table

from udaseg.metrics import iou, mean_iou, pixel_accuracy

matplotlib.use("Agg")
from matplotlib.figure import Figure  # noqa: E402


def summary(counts: np.ndarray, names: Sequence[str]) -> dict[str, object]:
    """A confusion matrix's metrics as plain values; the IoU of a class that never occurs is None."""
    per_class = {name: None if np.isnan(v) else round(float(v), 6) for name, v in zip(names, iou(counts), strict=True)}
    return {
        "miou": round(mean_iou(counts), 6),
        "pixel_accuracy": round(pixel_accuracy(counts), 6),
        "iou": per_class,
        "confusion": counts.tolist(),
    }


def iou_table(counts: Mapping[str, np.ndarray], names: Sequence[str]) -> Table:
    """Per-class IoU in percent, one column a network, with mIoU and pixel accuracy below."""
    table = Table()
    table.add_column("class")
    for title in counts:
        table.add_column(title or "IoU %", justify="right")
    columns = [iou(c) for c in counts.values()]
    for k, name in enumerate(names):
        table.add_row(name, *(_percent(column[k]) for column in columns))
    table.add_section()
    table.add_row("mIoU", *(_percent(mean_iou(c)) for c in counts.values()))
    table.add_row("pixel accuracy", *(_percent(pixel_accuracy(c)) for c in counts.values()))
    return table


def share_table(names: Sequence[str], kept: np.ndarray, predicted: np.ndarray, thresholds: np.ndarray) -> Table:
    """What a pseudo-labelling kept: per class its threshold, share kept, and share of all labels."""
    table = Table("class", "threshold", "kept %", "of all labels %")
    for column in table.columns[1:]:
        column.justify = "right"
    for k, name in enumerate(names):
        table.add_row(
            name,
            f"{thresholds[k]:.4f}" if predicted[k] else "never predicted",
            _percent(kept[k] / max(1, predicted[k])),
            _percent(kept[k] / max(1, kept.sum())),
        )
    table.add_section()
    table.add_row("all", "", _percent(kept.sum() / max(1, predicted.sum())), "100.0")
    return table


def _percent(value: float) -> str:
    return "-" if np.isnan(value) else f"{100 * value:.1f}"


def confusion_picture(counts: np.ndarray, names: Sequence[str]) -> Image.Image:
    """A confusion matrix, each row (true class) in percent of its pixels."""
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    side = 2.2 + 0.45 * len(names)
    figure = Figure(figsize=(side + 0.6, side), layout="constrained")
    axes = figure.subplots()
    axes.imshow(share, cmap="Blues", vmin=0, vmax=1)
    axes.set_xticks(range(len(names)), names, rotation=60, ha="right")
    axes.set_yticks(range(len(names)), names)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    for i, j in np.ndindex(*share.shape):
        if share[i, j] >= 0.005:
            colour = "white" if share[i, j] > 0.5 else "black"
            axes.text(j, i, f"{100 * share[i, j]:.0f}", ha="center", va="center", fontsize=7, color=colour)
    return _to_image(figure)


def _to_image(figure: Figure) -> Image.Image:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=120)
    return Image.open(buffer)
