"""Commands that the documentation shows are commands, and errors that it explains are errors that the code has."""

from __future__ import annotations

import ast
import importlib
import keyword
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pipelines.__main__ import COMMANDS

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *(p for p in sorted((ROOT / "docs").rglob("*.md")) if p.stem != "log")]


class Parsed(Exception):
    """Takes a command no further than its arguments."""


def commands(text: str) -> Iterator[list[str]]:
    """The words of each `udaseg` command of a page's shell blocks."""
    for block in re.findall(r"^```sh\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", " ").splitlines():
            if line.startswith("udaseg "):
                yield shlex.split(line, comments=True)[1:]


SHOWN = {shlex.join(words): words for path in PAGES for words in commands(path.read_text())}


@pytest.mark.parametrize("words", SHOWN.values(), ids=SHOWN)
def test_every_command_that_is_shown_is_one(words: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    name, *options = words
    assert name in COMMANDS
    file = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    module = importlib.import_module(f"pipelines.{file}")
    real = module.parse_arguments

    def parse(*given: Any, **how: Any) -> None:
        real(*given, **how)
        raise Parsed

    monkeypatch.setattr(module, "parse_arguments", parse)
    if "--config" in options:
        from udaseg.recipes.bcl import bcl_small

        monkeypatch.setattr(module, "from_file", lambda uri: bcl_small())
    with pytest.raises(Parsed):
        pytest.fail(f"status {module.main(options)}, see the error above")


def said() -> list[str]:
    """All texts of the package, with values that are put into them left out."""
    texts = []
    for path in [*(ROOT / "udaseg").rglob("*.py"), *(ROOT / "pipelines").rglob("*.py")]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.JoinedStr):
                texts.append("".join(part.value for part in node.values if isinstance(part, ast.Constant)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return texts


FROM_ELSEWHERE = {"CUDA out of memory", "core_worker.cc: ... has constructor arguments in the object store"}


def test_every_error_that_is_explained_is_one() -> None:
    page = (ROOT / "docs/how/errors.md").read_text()
    explained = set(re.findall(r"^\| `(.+?)` \|", page, re.MULTILINE)) - FROM_ELSEWHERE
    texts = said()
    assert len(explained) > 30
    for error in explained:
        parts = error.split("...")
        assert any(all(part in text for part in parts) for text in texts), error
