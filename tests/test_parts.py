"""What docs/parts.md says of parts in other training loops: its loop runs and learns, and what it names is there."""

from __future__ import annotations

import ast
import importlib
import re
from pathlib import Path

import pytest

PAGE = (Path(__file__).parents[1] / "docs/parts.md").read_text()


def test_the_loop_that_is_shown_runs_and_learns(capsys: pytest.CaptureFixture[str]) -> None:
    import torch

    torch.manual_seed(0)
    (code,) = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    names: dict[str, object] = {}
    exec(compile(code.replace("range(3)", "range(24)"), "docs/parts.md", "exec"), names)
    *steps, last = capsys.readouterr().out.splitlines()
    losses = [ast.literal_eval(line) for line in steps]
    assert len(losses) == 24 and all(row.keys() == {"source_ce", "mixed_ce", "contrast"} for row in losses)
    assert losses[-1]["source_ce"] < 0.95 * losses[0]["source_ce"], "random labels, by heart"
    assert losses[-1]["contrast"] > 0 and re.fullmatch(r"mIoU 0\.\d{3}", last)


def test_what_the_table_names_is_there() -> None:
    rows = re.findall(r"^\| [\w-]+(?: \w+)? \| (.*`udaseg.*) \| (.*) \|$", PAGE, re.MULTILINE)
    assert len(rows) == 8
    for where, examples in rows:
        first = re.findall(r"`(udaseg[\w.]+)`", where)
        package = first[0].rpartition(".")[0]
        modules = [*first, *(f"{package}{name}" for name in re.findall(r"`(\.\w+)`", where))]
        known = {name for module in modules for name in vars(importlib.import_module(module))}
        named = re.findall(r"`(\w+)`", examples)
        assert named and not [name for name in named if name not in known]
