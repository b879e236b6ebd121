"""An adaptation for people: curves, a sheet of examples and one HTML page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator

from udaseg.data.classes import Classes
from udaseg.evaluation.metrics import gap_closed, iou, mean_iou, pixel_accuracy
from udaseg.reports.page import clear, data_uri, percent, picture, render, short
from udaseg.reports.progress import NOT_LOSSES
from udaseg.reports.pseudo_label import Shares, share_rows
from udaseg.reports.scores import confusion_picture
from udaseg.types import IGNORE

_MOST_RATIO = 3
"""Of the height of an image to its width in a sheet: higher ones are shown narrower."""
_COLOURS = ("#56606b", "#1f6fd1", "#128a5c")  # source-only, adapted, oracle


class Example(NamedTuple):
    """An image that two networks have predicted, all (H, W)."""

    image: np.ndarray
    """uint8, with a third axis of RGB."""
    truth: np.ndarray
    """Train ids or 255, as the two predictions are."""
    before: np.ndarray
    after: np.ndarray
    confidence: np.ndarray
    """In [0, 1], of `after`."""


@picture
def loss_picture(runs: Mapping[str, Sequence[Mapping[str, Any]]]) -> Figure:
    """Losses over steps, one panel a run, from its rows of metrics.jsonl with "step" counted over all its stages."""
    figure = Figure(figsize=(4 * len(runs), 4), layout="constrained")
    panels = figure.subplots(1, len(runs), sharey=True, squeeze=False)[0]
    for axes, (run, rows) in zip(panels, runs.items(), strict=True):
        names = dict.fromkeys(name for row in rows for name in row if name not in NOT_LOSSES | {"coverage"})
        lines = {}
        for n, name in enumerate(names):
            for stage in sorted({row["stage"] for row in rows}):  # a line of its own: stages do not join
                points = [(row["step"], row[name]) for row in rows if row["stage"] == stage and name in row]
                if points:
                    lines[name], *_ = axes.plot(*zip(*points, strict=True), color=f"C{n}", lw=1.3)
        below = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.14)}
        axes.legend(lines.values(), map(short, lines), frameon=False, ncols=2, **below)
        axes.set_title(short(run), loc="left")
        axes.set_xlabel("steps")
        clear(axes)
    panels[0].set_yscale("log")
    panels[0].yaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    panels[0].yaxis.set_major_formatter("{x:g}")
    panels[0].yaxis.set_minor_formatter("")
    panels[0].set_ylim(bottom=max(0.01, panels[0].get_ylim()[0]))  # a contrast of nearly 0 would take up the panel
    return figure


@picture
def miou_picture(curves: Mapping[str, Sequence[tuple[int, float]]], begins: Mapping[str, int]) -> Figure:
    """mIoU over total steps.

    Args:
        curves: per network its (step, mIoU), in the order source-only, adapted, oracle.
        begins: per stage of the adapted network the step that it begins at.
    """
    figure = Figure(figsize=(5.8, 5.4), layout="constrained")
    axes = figure.subplots()
    for (name, points), colour in zip(curves.items(), _COLOURS, strict=True):
        steps, values = zip(*points, strict=True)
        label = f"{name}, {percent(values[-1])} at last"
        axes.plot(steps, [100 * value for value in values], color=colour, lw=2, marker="o", ms=4.5, label=label)
    for stage, step in begins.items():
        axes.axvline(step, color="#b4bcc5", lw=1, ls="--", zorder=0)
        axes.text(step, 1.01, f" {short(stage)}", transform=axes.get_xaxis_transform(), fontsize=9, color="#66717c")
    axes.set_xlim(left=0)
    axes.set_xlabel("steps, of all stages together")
    axes.set_ylabel("target mIoU, %")
    axes.legend(frameon=False)
    clear(axes)
    return figure


@picture
def sheet_picture(examples: Sequence[Example], classes: Classes) -> Figure:
    """Images in rows: image, truth where one of them has labels, before, after, and the confidence of the last."""
    colours = np.full((256, 3), 255, np.uint8)  # pixels without a label are white
    colours[: len(classes)] = classes.palette
    labelled = any((example.truth != IGNORE).any() for example in examples)
    titles = ("image", *(["truth"] if labelled else []), "before", "after", "confidence")
    head, foot, cell = 0.3, 0.45, 2.4  # inches
    ratios = [example.truth.shape[0] / example.truth.shape[1] for example in examples]
    rows = [cell * min(ratio, _MOST_RATIO) for ratio in ratios]
    inches = head + sum(rows) + foot
    figure = Figure(figsize=(cell * len(titles), inches))
    spaces = {"left": 0, "right": 1, "top": 1 - head / inches, "bottom": foot / inches, "wspace": 0.02, "hspace": 0.04}
    grid = figure.subplots(len(examples), len(titles), squeeze=False, gridspec_kw=spaces | {"height_ratios": rows})
    for axes, example, ratio in zip(grid, examples, ratios, strict=True):
        aspect: Literal["equal", "auto"] = "equal" if ratio > _MOST_RATIO else "auto"  # "auto" leaves no gaps
        truth = [example.truth] if labelled else []
        labels = (colours[label] for label in (*truth, example.before, example.after))
        for cell_axes, pixels in zip(axes[:-1], (example.image, *labels), strict=True):
            cell_axes.imshow(pixels, aspect=aspect)
        shown = axes[-1].imshow(example.confidence, cmap="viridis", vmin=0, vmax=1, aspect=aspect)
    for cell_axes in grid.flat:
        cell_axes.set_axis_off()
    for cell_axes, title in zip(grid[0], titles, strict=True):
        cell_axes.set_title(title)
    left = grid[-1, -1].get_position().x0 + 0.01
    scale = figure.add_axes((left, (foot - 0.2) / inches, 0.98 - left, 0.1 / inches))
    figure.colorbar(shown, cax=scale, orientation="horizontal")
    return figure


def gap_text(before: float, adapted: float, oracle: float) -> str:
    """How much of the gap between source-only and oracle the adaptation closed, e.g. "gap closed 0.62"."""
    return f"gap closed {round(gap_closed(before, adapted, oracle), 2) + 0.0:.2f}"  # + 0.0: never "-0.00"


def html_report(
    *,
    classes: Classes,
    about: str,
    curves: Mapping[str, Sequence[tuple[int, np.ndarray]]],
    begins: Mapping[str, int],
    losses: Mapping[str, Sequence[Mapping[str, Any]]],
    examples: Sequence[Example],
    shares: Shares,
    settings: Mapping[str, str],
    facts: Mapping[str, str],
    seconds: Mapping[str, float],
) -> str:
    """An adaptation as one HTML page that needs no other file.

    Args:
        classes: names and colours.
        about: what was done, in a sentence.
        curves: of the networks "source-only", "adapted" and "oracle", in this order, the (step, confusion matrix on the
            target) of their checkpoints; the last is the network's result.
        begins: per stage of the adapted network the step that it begins at.
        losses: per run its rows of metrics.jsonl with "step" counted over all its stages.
        examples: images of the target, predicted by the source-only and the adapted network.
        shares: what the target's last pseudo-labels keep.
        settings: per run its configuration as JSON.
        facts: seed, versions and the like.
        seconds: wall time per phase.
    """
    source_only, adapted, oracle = (points[-1][1] for points in curves.values())
    results = [mean_iou(counts) for counts in (source_only, adapted, oracle)]
    columns = [iou(counts) for counts in (source_only, adapted, oracle)]
    rows = [_iou_row(name, [column[k] for column in columns]) for k, name in enumerate(classes.names)]
    totals = [
        _iou_row("mIoU", results),
        _iou_row("pixel accuracy", [pixel_accuracy(counts) for counts in (source_only, adapted, oracle)]),
    ]
    miou = {name: [(step, mean_iou(counts)) for step, counts in points] for name, points in curves.items()}
    return render(
        "adaptation",
        about=about,
        gap=gap_text(*results),
        has_gap=results[2] > results[0],
        networks=list(curves),
        results=[percent(value) for value in results],
        colours=_COLOURS,
        closed=float(np.clip(np.nan_to_num(gap_closed(*results)), 0, 1)),
        palette=dict(zip(classes.names, classes.palette, strict=True)),
        rows=rows,
        totals=totals,
        losses=data_uri(loss_picture(losses)),
        miou=data_uri(miou_picture(miou, begins)),
        confusion=data_uri(confusion_picture(adapted, classes.names)),
        sheet=data_uri(sheet_picture(examples, classes)),
        shares=share_rows(classes.names, shares),
        settings=settings,
        facts=facts,
        seconds={name: f"{value:.1f} s" for name, value in seconds.items()},
        total=f"{sum(seconds.values()):.1f} s",
    )


def _iou_row(name: str, values: Sequence[float]) -> dict[str, Any]:
    """A row's cells: the three networks' values and what adaptation changed, in percent."""
    change = round(100 * (values[1] - values[0]), 1)
    tone = "better" if change > 0 else "worse" if change < 0 else ""
    text = "-" if np.isnan(change) else f"{change + 0.0:+.1f}"
    return {"name": name, "values": [percent(value) for value in values], "change": text, "tone": tone}
