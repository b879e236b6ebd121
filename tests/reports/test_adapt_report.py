"""What `udaseg adapt` says of its verdict, on the terminal and as a page."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.evaluation.verdict import Change, Verdict, together
from udaseg.reports.adapt import ToLabel, adapt_page, frequency_rows, points, right_text, verdict_lines
from udaseg.reports.adaptation import Example

CLASSES = Classes(names=("road", "<b>sky</b>"), palette=((128, 64, 128), (70, 130, 180)))
UP, DOWN, NONE = Change(0.031, 0.012, 0.049), Change(-0.2, -0.25, -0.1), Change(0.0, -0.01, 0.01)
HELPED = Verdict("helped", UP, UP, None)
HARMED = Verdict("harmed", DOWN, UP, UP)


def test_points_have_their_range() -> None:
    assert points(UP) == "+3.1 (+1.2 to +4.9)" and points(None) == "-"


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        (Verdict("helped", UP, UP, UP), "the verdict is right"),
        (Verdict("harmed", DOWN, UP, DOWN), "the verdict is right"),
        (Verdict("helped", UP, UP, DOWN), "THE VERDICT IS WRONG"),
        (HARMED, "THE VERDICT IS WRONG"),
        (Verdict("unclear", NONE, UP, DOWN), "left open"),
    ],
)
def test_labels_say_how_right_it_was(verdict: Verdict, said: str) -> None:
    assert said in right_text(verdict)
    nothing = Change(float("nan"), float("nan"), float("nan"))  # labels of which all is ignored
    assert right_text(replace(verdict, truth=nothing)) == ""
    even = right_text(replace(verdict, truth=Change(0.0, -0.1, 0.1)))
    assert ("left open" if verdict.word == "unclear" else "tells neither") in even
    assert right_text(HELPED) == ""


def test_the_last_line_is_what_is_handed_back() -> None:
    lines = verdict_lines("b", {"a": HARMED, "b": HELPED}, CLASSES.names)
    assert lines[0] == "a: harmed" and lines[-1].startswith("verdict: helped (b). ")
    assert "SOURCE-ONLY" in verdict_lines("a", {"a": HARMED}, CLASSES.names)[-1]
    forgetful = Verdict("unclear", UP, UP, None, [0])
    assert any(line.endswith(" road") for line in verdict_lines("a", {"a": forgetful}, CLASSES.names))


def test_frequencies_are_compared() -> None:
    rows = frequency_rows(CLASSES.names, [None, [0.4, 0.6], np.array([0.2, 0.8])])
    assert rows[0] == {"name": "road", "cells": ["-", "40.0", "20.0"], "factor": "x 0.50"}
    assert frequency_rows(("road",), [[0.1], [0.0], [0.2]])[0]["factor"] == "-"


@pytest.mark.parametrize("word", ["helped", "unclear", "harmed"])
def test_page_is_whole(word: str) -> None:
    image = np.zeros((8, 12, 3), np.uint8)
    flat = np.zeros((8, 12), np.uint8)
    page = adapt_page(
        classes=CLASSES,
        winner="sdca_small",
        verdicts={"sdca_small": Verdict(word, UP, DOWN, UP)},  # type: ignore[arg-type]
        failed={"dacs_small": "a loss is not <finite>"},
        frequencies=[None, None, [0.4, 0.6], [0.2, 0.8]],
        examples=[Example(image, np.full((8, 12), 255, np.uint8), flat, flat, np.ones((8, 12)))],
        losses={"sdca_small": [{"stage": 0, "step": 1, "ce": 1.0}, {"stage": 0, "step": 2, "ce": 0.5}]},
        to_label=[ToLabel("a/<b>", 0.5, Image.fromarray(image))],
        choice={"crop": ("(32, 48)", "as told")},
        settings={"sdca_small": '{"name": "<x>"}'},
        seconds={"prepare": 1.0},
    )
    sections = ("verdict", "examples", "frequencies", "losses", "label-next", "choice", "time")
    assert all(f'id="{section}"' in page for section in sections)
    assert f"<h1>{word}</h1>" in page and 'src="http' not in page
    assert f"<td>{points(together(UP, DOWN))}</td>" in page and page.count("source-only trained for as many steps") == 1
    assert page.count("{") == page.count("}"), "its style sheet is whole"
    assert all(text in page for text in ("&lt;finite&gt;", "a/&lt;b&gt;", "&lt;x&gt;", "&lt;b&gt;sky"))
    assert page.count("data:image/png;base64,") == 3
