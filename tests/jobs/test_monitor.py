"""The driver's view of a run, where what it writes cannot always be written."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_recipe

from udaseg.data.storage import write_bytes
from udaseg.jobs import monitor as module
from udaseg.jobs.monitor import Monitor

STAGE = tiny_recipe("dacs_small").stages[0]


class Progress:
    """A `ProgressLog` that is asked as Ray's actor is: a row each time, until there are no more."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    @property
    def take(self) -> Progress:
        return self

    def remote(self) -> list[dict[str, Any]]:
        return [self.rows.pop(0)] if self.rows else []


def follow(out: Path, monkeypatch: pytest.MonkeyPatch, *, failing: int) -> list[dict[str, Any]]:
    """The scores that a run tells of whose first so many writes fail; all of it is written, or OSError."""
    rows = [{"event": "score", "step": step, "entropy": 0.5} for step in (2, 4)]
    writes, told = [], []

    def flaky(uri: str, content: bytes) -> None:
        writes.append(uri)
        if len(writes) <= failing:
            raise OSError(5, "Input/output error")
        write_bytes(uri, content)

    monkeypatch.setattr(module.ray, "get", lambda found: found)
    monkeypatch.setattr(module, "write_bytes", flaky)
    progress = Progress(rows)
    with Monitor(str(out), told.append).stage(0, STAGE, progress):
        while rows:
            time.sleep(0.01)
    return told


def test_a_write_that_fails_is_made_good_by_the_next(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = follow(tmp_path, monkeypatch, failing=2)
    written = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in written] == [row["step"] for row in told] == [2, 4]


def test_one_that_fails_to_the_end_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(OSError, match="Input/output error"):
        follow(tmp_path, monkeypatch, failing=99)


def test_it_is_told_when_workers_were_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def start(step: int) -> dict[str, Any]:
        return {"event": "start", "step": step, "workers": 2, "history": []}

    words = {"event": "failed", "text": "rank 1 at step 7: RuntimeError: peer is gone (on node 10.0.0.3)"}
    rows = [start(0), words, start(4), start(4)]
    monkeypatch.setattr(module.ray, "get", lambda found: found)
    progress = Progress(rows)
    with Monitor(str(tmp_path)).stage(0, STAGE, progress):
        while rows:
            time.sleep(0.01)
    again = f"stage {STAGE.name}: 2 workers begin again at step 4"
    told = [line for line in capsys.readouterr().out.splitlines() if "again" in line]
    assert told == [f"{again}: {words['text']}", again]
