"""The whole steps that the authors' own code returned, and what their tests share.

tests/assets/steps.json holds the values, with the authors' files and commits; GOLDEN_STEPS names another such file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
from authors import Planes
from torch import Tensor

FILE = Path(os.environ.get("GOLDEN_STEPS") or Path(__file__).parents[1] / "assets" / "steps.json")
GOLDEN: dict[str, Any] = json.loads(FILE.read_text())
CASES: dict[str, dict[str, Any]] = GOLDEN["cases"]
PLANES = Planes(GOLDEN)
"""T and Y with the constants of the file."""


def near(value: float) -> Any:
    return pytest.approx(value, rel=1e-4)


def norm_of(tensor: Tensor) -> float:
    """The norm of a tensor's gradient."""
    assert tensor.grad is not None
    return float(tensor.grad.norm())


def waves_in(text: str, shape: tuple[int, ...]) -> dict[str, Tensor]:
    """What a case's inputs name as "name=3T(a,b)" or "name=T((shape),a,b)": the planes, which want gradients."""
    pattern = r"(\w+)=(\d*)T\((?:\(([\d,]+)\),)?([-.\d]+)(?:,([-.\d]+))?\)"
    planes = {}
    for name, factor, own, a, b in re.findall(pattern, text):
        size = tuple(int(n) for n in own.split(",") if n) if own else shape
        planes[name] = (int(factor or 1) * PLANES.waves(size, float(a), float(b or 0))).requires_grad_()
    return planes


def shape_in(text: str, word: str) -> tuple[int, ...]:
    """The shape that stands in brackets after a word."""
    found = re.search(rf"{re.escape(word)} ?\(([\d,]+)\)", text)
    assert found is not None, word
    return tuple(map(int, found[1].split(",")))


def number_after(text: str, word: str) -> float:
    """The number that follows a word."""
    found = re.search(rf"{word} (\d*\.?\d+)", text)
    assert found is not None, word
    return float(found[1])
