"""No mistake of a user's ends in a traceback, or touches a file of theirs: rc 2, one line, and nothing written."""

from __future__ import annotations

import collections
import importlib
import os
import shutil
from pathlib import Path

import pytest
import ray
from bad_input import CASES, Case, make_files


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_files(folder)
    return folder


def tree(folder: Path) -> dict[str, object]:
    """What lies below a folder: the content of small files, of others the size and the time of the last change."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        big = path.is_file() and stat.st_size > 100_000
        content = (stat.st_size, stat.st_mtime_ns, stat.st_ino) if big else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = content
    return found


def run(command: str, words: list[str]) -> int | str | None:
    """The exit code of a command in this process."""
    try:
        code: int = importlib.import_module(f"pipelines.{command.replace('-', '_')}").main(words)
    except SystemExit as stop:
        return stop.code
    return code


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before Ray is started."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id, marks=pytest.mark.full if c.full else ()) for c in CASES])
def test_bad_input_is_refused_in_one_line(
    case: Case,
    good: Path,
    tmp_path: Path,
    no_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = tmp_path / "d"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, files, copy_function=os.link)
    case.damage(files)
    before = tree(files)
    words = case.words.format(d=files).split()
    words += ["--out", str(tmp_path / "out")] if case.out else []
    code = run(case.command, words)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    first, *more = error.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith(("problems: ", "  ")) for line in more), error  # `prepare` lists what it found
    for named in [case.named] if isinstance(case.named, str) else case.named:
        assert named in error.replace("-", "_") or named in error
    assert tree(files) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"d", "out"}
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {".udaseg.json"}


def test_the_table_covers_all_commands() -> None:
    counts = collections.Counter(case.command for case in CASES)
    assert set(counts) == {"prepare", "train", "evaluate", "sweep", "pseudo-label", "demo"}
    assert len(CASES) >= 150 and min(counts.values()) >= 5
