"""How good pseudo-labels are: shares, balance, confidence, examples and, where truth is known, reliability."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from PIL import Image
from rich.table import Table

from udaseg.data.classes import Classes
from udaseg.data.confidence import CODES_PER_NAT, HISTOGRAM_BINS, decode_confidence
from udaseg.data.images import read_image
from udaseg.data.storage import join, read_bytes
from udaseg.evaluation.calibration import calibration_error
from udaseg.reports.page import clear, data_uri, percent, picture, render, short
from udaseg.reports.tables import cell
from udaseg.types import DepthRange

_SIDE = 480  # pixels of the long side of an example


class Shares(NamedTuple):
    """What a pseudo-labelling kept, per class."""

    kept: np.ndarray
    """(K,) pixels."""
    predicted: np.ndarray
    """(K,) pixels."""
    thresholds: np.ndarray
    """(K,) confidences."""


class Quality(NamedTuple):
    """The numbers of a pseudo-labelling."""

    shares: Shares
    histogram: np.ndarray
    """(K, 8192) of confidence; see `udaseg.data.confidence.confidence_histogram`."""
    source: np.ndarray | None
    """(K,) labelled pixels of the source, where it was given."""
    right: np.ndarray
    """Pixels with a true label: kept and right, kept, dropped and right, dropped; all 0 where truth was not read."""
    reliability: np.ndarray
    """(20, 3): pixels, right ones, summed confidence of each bin of confidence."""
    images: int
    failed: Sequence[tuple[str, str, str]]
    """Id, URI and reason."""

    def to_json(self, names: Sequence[str]) -> dict[str, Any]:
        """All of it but the histogram, as plain values."""
        kept_right, kept, dropped_right, dropped = self.right.tolist()
        return {
            "classes": list(names),
            "images": self.images,
            "kept": self.shares.kept.tolist(),
            "predicted": self.shares.predicted.tolist(),
            "thresholds": self.shares.thresholds.astype(float).tolist(),
            "source": None if self.source is None else self.source.tolist(),
            "accuracy_kept": kept_right / kept if kept else None,
            "accuracy_dropped": dropped_right / dropped if dropped else None,
            "calibration_error": calibration_error(self.reliability),
            "failed": [list(row) for row in self.failed[:1000]],
            "failed_images": len(self.failed),
        }


class Sample(NamedTuple):
    """An example image, made small."""

    image_id: str
    certainty: float
    """Mean over the image."""
    image: np.ndarray
    """(h, w, 3) uint8."""
    label: np.ndarray
    """(h, w) train ids or 255."""
    confidence: np.ndarray
    """(h, w) in [0, 1]."""


def sample(out: str, image_id: str, image_uri: str, certainty: float, depth_range: DepthRange | None = None) -> Sample:
    """An example of the pseudo-labels in the directory `out`; `depth_range` as in `udaseg.data.images.rgb`."""
    image = Image.fromarray(read_image(image_uri, depth_range))
    label, code = (
        Image.open(io.BytesIO(read_bytes(join(out, d, f"{image_id}.png")))) for d in ("labels", "confidence")
    )
    factor = min(1.0, _SIDE / max(image.size))
    size = max(1, round(image.width * factor)), max(1, round(image.height * factor))
    nearest = Image.Resampling.NEAREST
    return Sample(
        image_id=image_id,
        certainty=certainty,
        image=np.asarray(image.resize(size)),
        label=np.asarray(label.resize(size, nearest)),
        confidence=decode_confidence(np.asarray(code.resize(size, nearest))),
    )


def share_table(names: Sequence[str], shares: Shares) -> Table:
    """What a pseudo-labelling kept: per class its threshold, share kept, and share of all labels."""
    *classes, everything = share_rows(names, shares)
    table = Table("class", "threshold", "kept %", "of all labels %")
    for column in table.columns[1:]:
        column.justify = "right"
    for row in classes:
        table.add_row(*map(cell, row))
    table.add_section()
    table.add_row(*everything)
    return table


def share_rows(names: Sequence[str], shares: Shares) -> list[tuple[str, str, str, str]]:
    """The cells of `share_table`, one row a class and one for all."""
    kept, predicted, thresholds = shares
    rows = [
        (
            name,
            f"{thresholds[k]:.4f}" if predicted[k] else "never predicted",
            percent(kept[k] / max(1, predicted[k])),
            percent(kept[k] / max(1, kept.sum())),
        )
        for k, name in enumerate(names)
    ]
    return [*rows, ("all", "", percent(kept.sum() / max(1, predicted.sum())), "100.0")]


def failure_table(failed: Sequence[Sequence[str]]) -> Table:
    """The images that could not be read, and why; the first ten of many."""
    table = Table("image", "why it has no label", title=f"{len(failed)} could not be read; all are in failed.json")
    for image_id, _, reason in failed[:10]:
        table.add_row(cell(image_id), cell(reason))
    return table


@picture
def confidence_picture(histogram: np.ndarray, thresholds: np.ndarray, classes: Classes) -> Figure:
    """Per class the share of its predicted pixels over confidence, on the scale it is stored on, and its threshold."""
    bins = 64
    counts = histogram.reshape(len(histogram), bins, -1).sum(2)
    nats = (np.arange(bins) + 0.5) * HISTOGRAM_BINS / bins * 8 / CODES_PER_NAT
    figure = Figure(figsize=(5.8, 4.4), layout="constrained")
    axes = figure.subplots()
    for k in range(len(classes)):
        if counts[k].sum():
            colour = np.array(classes.palette[k]) / 255
            axes.plot(nats, 100 * counts[k] / counts[k].sum(), color=colour, lw=1.5)
            if 0 < thresholds[k] < 1:
                axes.axvline(-np.log1p(-float(thresholds[k])), color=colour, lw=0.9, ls=":")
    ticks = [0, 0.5, 0.9, 0.99, 0.999, 0.9999, 0.99999, 0.999999]
    axes.set_xticks([-np.log(1 - t) for t in ticks], [f"{t:g}" for t in ticks], rotation=45)
    axes.set_xlim(0, max(1.0, float(nats[counts.sum(0) > 0].max()) if counts.any() else 1.0))
    axes.set_xlabel("confidence")
    axes.set_ylabel("% of the class's pixels")
    clear(axes)
    return figure


@picture
def balance_picture(kept: np.ndarray, predicted: np.ndarray, source: np.ndarray | None, classes: Classes) -> Figure:
    """Share of each class in what is kept, in what is predicted and in the source's labels, on a logarithmic scale."""
    rows = {"predicted": (predicted, "#b4bcc5"), "kept": (kept, "#1f6fd1")}
    if source is not None:
        rows["source labels"] = (source, "#128a5c")
    figure = Figure(figsize=(5.8, 1.4 + 0.32 * len(classes)), layout="constrained")
    axes = figure.subplots()
    height = 0.8 / len(rows)
    for n, (title, (counts, colour)) in enumerate(rows.items()):
        places = np.arange(len(classes)) + (n - (len(rows) - 1) / 2) * height
        axes.barh(places, 100 * counts / max(1, counts.sum()), height, color=colour, label=title)
    axes.set_yticks(range(len(classes)), [short(name) for name in classes.names])
    axes.invert_yaxis()
    axes.set_xscale("symlog", linthresh=0.1)
    axes.xaxis.set_major_formatter("{x:g}")
    axes.set_xlabel("% of all labelled pixels")
    axes.legend(frameon=False, ncols=len(rows), loc="lower center", bbox_to_anchor=(0.5, 1.0))
    clear(axes)
    return figure


@picture
def reliability_picture(reliability: np.ndarray) -> Figure:
    """Accuracy over confidence, in bins; on the diagonal confidence is what it says."""
    count, right, confidence = reliability.T
    seen = count > 0
    figure = Figure(figsize=(5.8, 4.4), layout="constrained")
    axes = figure.subplots()
    axes.plot([0, 1], [0, 1], color="#b4bcc5", lw=1, ls="--")
    axes.bar(
        (np.arange(len(count)) + 0.5) / len(count), count / max(1, count.sum()), 0.9 / len(count), color="#e2e6ea",
        label="share of pixels",
    )  # fmt: skip
    axes.plot(confidence[seen] / count[seen], right[seen] / count[seen], color="#1f6fd1", marker="o", label="accuracy")
    axes.set_xlim(0, 1)
    axes.set_ylim(0, 1)
    axes.set_xlabel("confidence")
    axes.legend(frameon=False)
    clear(axes)
    return figure


@picture
def examples_picture(examples: Sequence[Sample], classes: Classes) -> Figure:
    """Image, pseudo-label and confidence of each example, in rows."""
    colours = np.full((256, 3), 255, np.uint8)  # what is not kept is white
    colours[: len(classes)] = classes.palette
    cell = 3.2
    heights = [cell * e.label.shape[0] / e.label.shape[1] for e in examples]
    heights = [min(height, 2 * cell) for height in heights]
    figure = Figure(figsize=(3 * cell, sum(heights) + 0.3 * len(examples)), layout="constrained")
    grid = figure.subplots(len(examples), 3, squeeze=False, gridspec_kw={"height_ratios": heights})
    for axes, example in zip(grid, examples, strict=True):
        axes[0].imshow(example.image)
        axes[1].imshow(colours[example.label])
        axes[2].imshow(example.confidence, cmap="viridis", vmin=0, vmax=1)
        title = f"{short(example.image_id, 60)}, mean certainty {example.certainty:.3f}"
        axes[0].set_title(title, loc="left", fontsize=9)
        for each in axes:
            each.set_axis_off()
    return figure


def label_page(*, classes: Classes, quality: Quality, examples: Sequence[Sample], rules: Mapping[str, Any]) -> str:
    """The quality of pseudo-labels as one HTML page that needs no other file.

    Args:
        classes: names and colours.
        quality: the numbers.
        examples: the least certain images first, the most certain ones last.
        rules: what was kept, by name.
    """
    shares, numbers = quality.shares, quality.to_json(classes.names)
    accuracy = [numbers[name] for name in ("accuracy_kept", "accuracy_dropped")]
    return render(
        "pseudo_label",
        images=quality.images,
        kept=percent(shares.kept.sum() / max(1, shares.predicted.sum())),
        rows=share_rows(classes.names, shares),
        palette=dict(zip(classes.names, classes.palette, strict=True)),
        rules=rules,
        accuracy=["-" if value is None else percent(value) for value in accuracy] if any(quality.right) else None,
        calibration=None if numbers["calibration_error"] is None else f"{numbers['calibration_error']:.3f}",
        reliability=data_uri(reliability_picture(quality.reliability)) if any(quality.right) else None,
        confidence=data_uri(confidence_picture(quality.histogram, shares.thresholds, classes)),
        balance=data_uri(balance_picture(shares.kept, shares.predicted, quality.source, classes)),
        sheet=data_uri(examples_picture(examples, classes)),
        failed=[(image_id, reason) for image_id, _, reason in quality.failed[:100]],
        failed_images=len(quality.failed),
    )
