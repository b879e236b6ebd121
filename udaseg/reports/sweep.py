"""Results of a sweep for people: a table, pictures and one HTML page."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from matplotlib import colormaps
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator
from rich.table import Table

from udaseg.evaluation.model_selection import spearman
from udaseg.reports.page import clear, data_uri, percent, picture, render, short
from udaseg.reports.tables import cell

_BEST = "#d1491f"


State = Literal["finished", "stopped", "failed"]


@dataclass(frozen=True)
class Trial:
    """What became of one set of values."""

    id: str
    values: Mapping[str, Any]
    state: State
    """At its end; before it by the scheduler; by an error."""
    curve: Sequence[tuple[int, Mapping[str, float]]]
    """(step, scores) of its checkpoints; the last is its result."""
    error: str | None = None

    @property
    def step(self) -> int:
        """Steps it was scored after last; 0 = never."""
        return self.curve[-1][0] if self.curve else 0

    @property
    def scores(self) -> Mapping[str, float]:
        """Its last scores."""
        return self.curve[-1][1] if self.curve else {}

    def last(self, metric: str) -> float:
        """Its last score in a metric, NaN where it has none."""
        return self.scores.get(metric, math.nan)


def rank_correlations(
    trials: Sequence[Trial], modes: Mapping[str, Literal["min", "max"]]
) -> dict[str, tuple[float, int, int]]:
    """How well each unsupervised metric ranks the trials: (Spearman's rho with mIoU, step, number of trials).

    1 = as mIoU does, -1 = the other way round, whether the metric is to be small or large. All trials are compared at
    the last step that each of them reached, since scores of different steps would rank the steps. Empty where there is
    no mIoU or no such step.

    Args:
        trials: failed ones are left out, and of each metric those where it is NaN.
        modes: the metrics, and whether their smallest or largest value is the best.
    """
    curves = [dict(trial.curve) for trial in trials if trial.state != "failed" and trial.curve]
    common = set.intersection(*(set(curve) for curve in curves)) if curves else set()
    if not common or "miou" not in curves[0][max(common)]:
        return {}
    step = max(common)
    truth = [curve[step]["miou"] for curve in curves]
    sign = {name: 1 if mode == "max" else -1 for name, mode in modes.items() if name != "miou"}
    found = {}
    for name, s in sign.items():
        scores = [s * curve[step][name] for curve in curves]
        known = sum(not (math.isnan(a) or math.isnan(b)) for a, b in zip(scores, truth, strict=True))
        found[name] = spearman(scores, truth), step, known
    return found


def trial_table(trials: Sequence[Trial], best: Trial, metric: str) -> Table:
    """A row a trial: its values, how far it came, its last score, and its mIoU where there is one; the best is bold."""
    names = dict.fromkeys([metric, *("miou" for trial in trials if "miou" in trial.scores)])
    head, rows = _cells(trials, list(names))
    table = Table()
    for name in head:
        table.add_column(cell(name), overflow="fold")
    table.columns[0].no_wrap = True
    for trial, row in zip(trials, rows, strict=True):
        table.add_row(*map(cell, row), style="bold" if trial is best else "dim" if trial.state != "finished" else "")
    return table


def _cells(trials: Sequence[Trial], scores: Sequence[str]) -> tuple[list[str], list[list[str]]]:
    names = list(trials[0].values)
    rows = [
        [t.id, *(_text(t.values[n]) for n in names), t.state, str(t.step), *(_text(t.last(n)) for n in scores)]
        for t in trials
    ]
    return ["trial", *names, "", "step", *scores], rows


def _text(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


class _Axis:
    """Values of a parameter as places in [0, 1]: linear, logarithmic, or at even distances for what is no number."""

    def __init__(self, values: Sequence[Any], logarithmic: bool) -> None:
        self.numbers = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        self.logarithmic = logarithmic and self.numbers
        self.order: list[Any] = sorted(set(values)) if self.numbers else list(dict.fromkeys(map(str, values)))

    def place(self, value: Any) -> float:
        if not self.numbers:
            return self.order.index(str(value)) / max(1, len(self.order) - 1)
        low, high, x = (math.log(v) if self.logarithmic else v for v in (self.order[0], self.order[-1], value))
        return (x - low) / (high - low) if high > low else 0.5


@picture
def parallel_picture(trials: Sequence[Trial], best: Trial, metric: str, logarithmic: AbstractSet[str]) -> Figure:
    """A line a trial through its values and its result; colour is the result, dotted what did not finish."""
    shown = [trial for trial in trials if math.isfinite(trial.last(metric))]
    results = [trial.last(metric) for trial in shown]
    names = list(best.values)
    axes_of = {name: _Axis([t.values[name] for t in shown], name in logarithmic) for name in names}
    axes_of[metric] = _Axis(results, False)
    figure = Figure(figsize=(max(5.0, 2.2 * len(axes_of)), 4), layout="constrained")
    axes = figure.subplots()
    colour = Normalize(min(results), max(results))
    for trial, result in zip(shown, results, strict=True):
        heights = [axes_of[name].place(trial.values[name]) for name in names] + [axes_of[metric].place(result)]
        line = axes.plot(heights, ls="-" if trial.state == "finished" else ":", lw=1.5)[0]
        line.set_color(colormaps["viridis"](colour(result)))
        if trial is best:
            line.set(color=_BEST, linewidth=3, zorder=3)
    for x, axis in enumerate(axes_of.values()):
        axes.axvline(x, color="#b4bcc5", lw=1, zorder=0)
        ends = [axis.order[0], axis.order[-1]] if axis.numbers else axis.order
        for value in dict.fromkeys(ends):
            axes.text(x, axis.place(value), f" {short(_text(value))}", fontsize=8, va="bottom")
    axes.set_xticks(range(len(axes_of)), [short(name) for name in axes_of])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.margins(y=0.08)
    return figure


@picture
def curve_picture(trials: Sequence[Trial], best: Trial, metric: str) -> Figure:
    """The metric of every checkpoint over steps."""
    figure = Figure(figsize=(5.8, 4), layout="constrained")
    axes = figure.subplots()
    for trial in trials:
        points = [(step, scores[metric]) for step, scores in trial.curve if metric in scores]
        if points:
            colour, width = (_BEST, 2.5) if trial is best else ("#56606b", 1.2)
            faint = 1.0 if trial.state == "finished" else 0.4
            axes.plot(*zip(*points, strict=True), color=colour, lw=width, marker="o", ms=3, alpha=faint)
    axes.set_xlabel("steps")
    axes.set_ylabel(metric)
    clear(axes)
    return figure


@picture
def effect_picture(trials: Sequence[Trial], best: Trial, metric: str, logarithmic: AbstractSet[str]) -> Figure:
    """A panel a parameter: the last score over its value; hollow what did not finish."""
    names = list(best.values)
    figure = Figure(figsize=(max(5.0, 3.2 * len(names)), 3.6), layout="constrained")
    panels = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axes, name in zip(panels, names, strict=True):
        numbers = all(isinstance(trial.values[name], int | float) for trial in trials)
        for trial in trials:
            colour = _BEST if trial is best else "#1f6fd1"
            x = trial.values[name] if numbers else short(str(trial.values[name]))
            face = colour if trial.state == "finished" else "none"
            axes.plot([x], [trial.last(metric)], "o", color=colour, markerfacecolor=face)
        if name in logarithmic:
            axes.set_xscale("log")
            axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axes.xaxis.set_major_formatter("{x:g}")
            axes.xaxis.set_minor_formatter("")
        axes.set_xlabel(short(name))
        clear(axes)
    panels[0].set_ylabel(metric)
    return figure


def sweep_page(
    *,
    title: str,
    trials: Sequence[Trial],
    best: Trial,
    metric: str,
    mode: Literal["min", "max"],
    logarithmic: AbstractSet[str],
    correlations: Mapping[str, tuple[float, int, int]],
    settings: str,
) -> str:
    """A sweep as one HTML page that needs no other file.

    Args:
        title: which space and recipe.
        trials: in the order they began.
        best: the one of them that was chosen.
        metric: what they are ranked by.
        mode: whether its smallest or largest value is the best.
        logarithmic: the parameters that are drawn on a logarithmic scale.
        correlations: see `rank_correlations`.
        settings: the best recipe as JSON.
    """
    head, rows = _cells(trials, list(dict.fromkeys([metric, *(name for trial in trials for name in trial.scores)])))
    mious = [trial.last("miou") for trial in trials if trial.state == "finished"]
    return render(
        "sweep",
        title=title,
        result=f"{metric} {_text(best.last(metric))}",
        metric=metric,
        smallest="smallest" if mode == "min" else "largest",
        values={name: _text(value) for name, value in best.values.items()},
        counts={state: sum(t.state == state for t in trials) for state in ("finished", "stopped", "failed")},
        head=head,
        rows=[(row, trial is best, trial.error) for trial, row in zip(trials, rows, strict=True)],
        chosen=f"{percent(best.last('miou'))} %",
        possible=f"{percent(float(np.nanmax(mious)))} %" if np.isfinite(mious).any() else None,
        correlations={name: (f"{rho:.2f}", step, count) for name, (rho, step, count) in correlations.items()},
        parallel=data_uri(parallel_picture(trials, best, metric, logarithmic)),
        curves=data_uri(curve_picture(trials, best, metric)),
        effects=data_uri(effect_picture(trials, best, metric, logarithmic)),
        settings=settings,
    )
