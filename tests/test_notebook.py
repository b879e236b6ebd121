"""The notebook of examples/: it uses what there is, and runs."""

from __future__ import annotations

import ast
import importlib
import inspect
import json
from pathlib import Path
from typing import Any

import pytest

import udaseg

NOTEBOOK = Path(__file__).parents[1] / "examples/adapt.ipynb"


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_it_is_stored_without_outputs() -> None:
    assert not [cell for cell in code_cells() if cell["outputs"] or cell["execution_count"]]


def test_it_uses_names_and_arguments_that_there_are() -> None:
    tree = ast.parse("\n".join("".join(cell["source"]) for cell in code_cells()))
    used = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("udaseg"):
            module = importlib.import_module(str(node.module))
            assert not [alias.name for alias in node.names if not hasattr(module, alias.name)]
        if isinstance(node, ast.Attribute) and ast.unparse(node.value) == "udaseg":
            assert node.attr in udaseg.__all__
            used.add(node.attr)
        if isinstance(node, ast.Call) and ast.unparse(node.func).removeprefix("udaseg.") in udaseg.__all__:
            taken = inspect.signature(getattr(udaseg, ast.unparse(node.func).removeprefix("udaseg."))).parameters
            assert {word.arg for word in node.keywords if word.arg} <= taken.keys(), ast.unparse(node)
    assert used >= {"prepare", "adapt", "evaluate", "load", "pseudo_label"}


@pytest.mark.full
def test_it_runs_from_the_first_cell_to_the_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import nbformat
    from nbclient import NotebookClient

    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parents[1]))
    text = NOTEBOOK.read_text()
    assert "IMAGES, STEPS = 60, 150" in text
    notebook = nbformat.reads(text.replace("IMAGES, STEPS = 60, 150", "IMAGES, STEPS = 12, 4"), as_version=4)
    NotebookClient(notebook, timeout=1800, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 6
    printed = "".join(output.get("text", "") for output in outputs)
    assert "handed back" in printed and "of its pixels kept" in printed
    assert (tmp_path / "adapt_example/run/report.html").exists()
