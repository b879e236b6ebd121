"""`udaseg` itself: its version, its help, and words that are nearly right."""

from __future__ import annotations

import importlib.metadata
import sys

import pytest

from pipelines.__main__ import main
from udaseg.errors import ConfigError
from udaseg.recipes import named


def run(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["udaseg", *words])
    return main()


def test_the_version(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--version") == 0
    assert capsys.readouterr().out == f"udaseg {importlib.metadata.version('udaseg')}\n"


@pytest.mark.parametrize(
    ("word", "hint"),
    [("trian", "did you mean train?"), ("psuedo-label", "did you mean pseudo-label?"), ("x", "there are")],
)
def test_a_command_that_there_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], word: str, hint: str
) -> None:
    assert run(monkeypatch, word) == 2
    assert capsys.readouterr().err.startswith(f"error: no command {word!r}; {hint}")


def test_a_recipe_that_there_is_not() -> None:
    with pytest.raises(ConfigError, match=r"no recipe 'clswise_small'; did you mean classwise_small"):
        named("clswise_small")
    with pytest.raises(ConfigError, match=r"no recipe 'qqq'; there are .*\bdacs\b.*"):
        named("qqq")


def test_the_help_of_a_recipe_names_it(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run(monkeypatch, "train", "dacs_small", "--help")
    assert capsys.readouterr().out.startswith("usage: udaseg train dacs_small [-h]")


@pytest.mark.parametrize(
    "words",
    [
        ["train", "source_only_small", "--source", "a", "--source", "b", "--out", "c"],
        ["adapt", "--source", "a", "--source=b", "--target", "t", "--out", "c"],
    ],
    ids=lambda words: words[0],
)
def test_of_several_sources_none_is_taken_for_all(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last had been trained on alone."""
    assert run(monkeypatch, *words) == 2
    assert capsys.readouterr().err == "error: --source: given twice; `udaseg join` makes one dataset of several\n"
