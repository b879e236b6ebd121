"""What `udaseg adapt` says: the verdict in lines, and a page with what it rests on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.evaluation.verdict import Change, Verdict, together
from udaseg.reports.adaptation import Example, loss_picture, sheet_picture
from udaseg.reports.page import data_uri, percent, render

MEANING = {
    "helped": "The adapted network is better on the target than source-only; it is in model/.",
    "unclear": "Nothing tells the adapted network from source-only with certainty. It is in model/; look at the sheet.",
    "harmed": "THE ADAPTED NETWORK IS WORSE THAN SOURCE-ONLY, SO MODEL/ IS THE SOURCE-ONLY NETWORK.",
}


class ToLabel(NamedTuple):
    """An image whose label would help."""

    image_id: str
    entropy: float
    picture: Image.Image


def points(change: Change | None) -> str:
    """A change of mean IoU in points, with its range: "+3.1 (+1.2 to +4.9)"; "-" where there is none."""
    if change is None or np.isnan(change.mean):
        return "-"
    mean, low, high = (f"{100 * value:+.1f}" for value in change)
    return f"{mean} ({low} to {high})"


def right_text(verdict: Verdict) -> str:
    """How right a word was, by the labels that the held-out target images have; "" without any, or without a pixel."""
    if verdict.truth is None or np.isnan(verdict.truth.mean):
        return ""
    truth = verdict.truth.mean
    if verdict.word == "unclear":
        how = "which the verdict left open"
    elif truth == 0:
        how = "which tells neither from the other"
    else:
        how = "the verdict is right" if (truth > 0) == (verdict.word == "helped") else "THE VERDICT IS WRONG"
    return f"by the target's labels the change of mIoU is {points(verdict.truth)}: {how}"


def verdict_lines(winner: str, verdicts: Mapping[str, Verdict], names: Sequence[str]) -> list[str]:
    """The verdict for a terminal: each candidate's figures, then what is handed back. `names` are the classes'."""
    lines = []
    for name, verdict in verdicts.items():
        lines.append(f"{name}: {verdict.word}")
        if verdict.likeness is not None:
            lines.append(f"  source images in the look of the target  {points(verdict.likeness)}")
        lines.append(f"  two views of a target image               {points(verdict.steadiness)}")
        if verdict.likeness is not None:
            lines.append(
                f"  both together                             {points(together(verdict.likeness, verdict.steadiness))}"
            )
        if verdict.faded:
            faded = ", ".join(names[k] for k in verdict.faded)
            lines.append(f"  seldom predicted, look at the sheet       {faded}")
        if verdict.truth is not None:
            lines.append(f"  {right_text(verdict)}")
    return [*lines, f"verdict: {verdicts[winner].word} ({winner}). {MEANING[verdicts[winner].word]}"]


def frequency_rows(names: Sequence[str], shares: Sequence[Sequence[float] | np.ndarray | None]) -> list[dict[str, Any]]:
    """Per class its share of pixels in percent in each column, and the last by the one before it, e.g. "x 0.50"."""
    rows = []
    for k, name in enumerate(names):
        values = [None if column is None else float(column[k]) for column in shares]
        before, after = values[-2], values[-1]
        factor = "-" if not before or after is None else f"x {after / before:.2f}"
        rows.append({"name": name, "cells": ["-" if v is None else percent(v) for v in values], "factor": factor})
    return rows


def adapt_page(
    *,
    classes: Classes,
    winner: str,
    verdicts: Mapping[str, Verdict],
    failed: Mapping[str, str],
    frequencies: Sequence[Sequence[float] | np.ndarray | None],
    examples: Sequence[Example],
    losses: Mapping[str, Sequence[Mapping[str, Any]]],
    to_label: Sequence[ToLabel],
    choice: Mapping[str, tuple[str, str]],
    settings: Mapping[str, str],
    seconds: Mapping[str, float],
) -> str:
    """An adaptation as one HTML page that needs no other file.

    Args:
        classes: names and colours.
        winner: the best candidate.
        verdicts: of each candidate.
        failed: why others could not be trained.
        frequencies: (K,) shares of pixels: in the source's labels, as expected in the target (None without a source),
            as source-only predicts, as the winner.
        examples: held-out target images, predicted by source-only and the winner.
        losses: per run its rows of metrics.jsonl with "step" counted over all its stages.
        to_label: the images to label next.
        choice: what was chosen, and why.
        settings: per run its configuration as JSON.
        seconds: wall time per phase.
    """
    word = verdicts[winner].word
    return render(
        "adapt",
        word=word,
        winner=winner,
        meaning=MEANING[word],
        rows=[
            (name, v.word, *map(points, (v.likeness, v.steadiness, together(v.likeness, v.steadiness), v.truth)))
            for name, v in verdicts.items()
        ],
        sourceless=verdicts[winner].likeness is None,
        right=right_text(verdicts[winner]),
        failed=failed,
        palette=dict(zip(classes.names, classes.palette, strict=True)),
        frequencies=frequency_rows(classes.names, frequencies),
        sheet=data_uri(sheet_picture(examples, classes)),
        losses=data_uri(loss_picture(losses)),
        to_label=[(item.image_id, f"{item.entropy:.2f}", data_uri(item.picture)) for item in to_label],
        choice=choice,
        settings=settings,
        seconds={name: f"{value:.1f} s" for name, value in seconds.items()},
    )
