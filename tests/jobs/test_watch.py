"""A run elsewhere is told from its files: a directory made by hand, which a thread goes on writing."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from event_files import scalars

from pipelines.watch import main
from udaseg.data.storage import join, remove, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError, TrainingError
from udaseg.jobs import watch as module
from udaseg.jobs.output import LEASE
from udaseg.jobs.run_directory import read_stages
from udaseg.jobs.watch import Watch
from udaseg.reports.progress import Board, progress_line


def row(stage: int, step: int, loss: float = 0.5) -> dict[str, Any]:
    speed = {"images_per_second": 8.0, "data_wait": 0.25, "step_seconds": 2.0, "host_seconds": 1.0, "memory_mib": 9.0}
    return {"stage": stage, "name": ["warm", "adapt"][stage], "step": step, "lr": 0.1, "source_ce": loss, **speed}


def write(run: str, name: str, content: Any) -> None:
    write_bytes(join(run, *name.split("/")), content if isinstance(content, bytes) else dump_json(content).encode())


def metrics(run: str, rows: list[dict[str, Any]]) -> None:
    write(run, "metrics.jsonl", "".join(dump_json(r) + "\n" for r in rows).encode())


def beat(run: str, number: int = 0) -> None:
    write(run, LEASE, {"token": "a", "pid": 7, "host": "head", "beat": number})


def begin(run: str) -> None:
    """A run of two stages of 40 steps, whose first is done and whose second is at step 10."""
    stages = [{"name": "warm", "steps": 40}, {"name": "adapt", "steps": 40}]
    write(run, "config.json", {"recipe": {"name": "dacs", "stages": stages}, "manifests": {}})
    write(run, "stages/0-warm/model/model.json", {})
    write(run, "stages/1-adapt/checkpoint_manager_snapshot.json",
          {"checkpoint_results": [{"checkpoint_dir_name": "checkpoint_0000008"}]})  # fmt: skip
    metrics(run, [row(0, 40), row(1, 10)])
    beat(run)


@pytest.fixture
def run(tmp_path: Path) -> str:
    begin(str(tmp_path / "run"))
    return str(tmp_path / "run")


def test_once_shows_stages_line_and_sign_of_life(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([run, "--once"]) == 0
    shown = capsys.readouterr().out
    lines = [" ".join(line.replace("│", " ").replace("┃", " ").split()) for line in shown.splitlines()]
    assert "0-warm 40/40 done" in lines and "1-adapt 10/40 checkpoint at 8" in lines
    assert "adapt 10/40 source_ce 0.500 8.0 images/s waiting 25% 1:00 left" in lines
    assert "under way: process 7 on head, last sign of life 0 s ago" in shown


@pytest.mark.parametrize("where", ["local", "s3"])
def test_a_run_is_followed_until_it_is_finished(
    where: str, tmp_path: Path, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]
) -> None:
    if where == "s3":
        bucket: Callable[[str, str], str] = request.getfixturevalue("s3")
        run = bucket("watched", "runs/a")
    else:
        run = str(tmp_path / "run")
    begin(run)

    def go_on() -> None:
        """A worker is lost at step 30, and what was done after step 10 is done again."""
        for last in (20, 30):
            time.sleep(0.15)
            metrics(run, [row(0, 40), *(row(1, step) for step in range(10, last + 1, 10))])
        time.sleep(0.15)
        again = [row(0, 40), row(1, 10), *(row(1, step, 0.25) for step in (20, 30, 40))]
        metrics(run, again[:3])
        time.sleep(0.15)
        metrics(run, again)
        write(run, "model/model.json", {})
        remove(join(run, LEASE))

    thread = threading.Thread(target=go_on)
    thread.start()
    Watch(run=run, tensorboard=str(tmp_path / "board")).follow(every=0.02)
    thread.join()
    shown = capsys.readouterr().out
    assert "adapt 40/40  source_ce 0.250" in shown and shown.endswith(f"finished: {join(run, 'model')}\n")
    assert scalars(tmp_path / "board" / "0-warm", "source_ce") == [(40, 0.5)]
    assert scalars(tmp_path / "board" / "1-adapt", "source_ce") == [(10, 0.5), (20, 0.25), (30, 0.25), (40, 0.25)]
    assert scalars(tmp_path / "board" / "1-adapt", "data_wait") == [(step, 0.25) for step in (10, 20, 30, 40)]


def test_a_run_that_failed_says_what_to_do(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    remove(join(run, LEASE))
    assert main([run]) == 1
    told = capsys.readouterr().err
    assert "ended before it was finished" in told and "--resume" in told


def test_a_dead_process_is_told_by_its_silence(
    run: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SILENCE", 2)
    ended = threading.Event()

    def live() -> None:
        for number in range(1, 7):  # one sign in less than the silence that is allowed
            time.sleep(0.5)
            beat(run, number)
        ended.set()

    threading.Thread(target=live).start()
    with pytest.raises(TrainingError, match=r"no sign of life of process 7 on head for \d+ s: .*--resume"):
        Watch(run=run).follow(every=0.02)
    assert ended.is_set(), "it was given up while it gave signs of life"
    os.utime(Path(run) / LEASE, (0, time.time() - 600))
    assert main([run, "--once"]) == 1
    assert "for 600 s" in capsys.readouterr().err


def test_pseudo_labels_are_counted_in_blocks(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    job = "pseudo_labels/1-adapt/job"
    write(run, f"{job}/job.json", {"job": {}, "count": 70, "block_size": 32})
    for number in range(3):
        write(run, f"{job}/predict/{number:08d}.parquet", b"")
    write(run, f"{job}/label/00000000.parquet", b"")
    Watch(run=run, once=True).follow()
    assert "pseudo-labels: 4 of 6 blocks" in capsys.readouterr().out


def test_so_is_the_translated_source(run: str, capsys: pytest.CaptureFixture[str]) -> None:
    write(run, "pseudo_labels/1-adapt/job/job.json", {"job": {}, "count": 70, "block_size": 32})
    write(run, "pseudo_labels/1-adapt/manifest.parquet", b"")
    write(run, "translated/1-adapt/job/job.json", {"job": {}, "count": 70, "block_size": 32})
    write(run, "translated/1-adapt/job/translate/00000001.parquet", b"")
    Watch(run=run, once=True).follow()
    assert "translated source: 1 of 3 blocks" in capsys.readouterr().out


def test_what_is_no_run_says_so_and_names_the_runs_below(run: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no such directory"):
        read_stages(str(tmp_path / "nothing"))
    write(str(tmp_path), ".udaseg.json", {"command": "adapt"})
    with pytest.raises(ConfigError, match=r"is of `udaseg adapt` \(adaptation\), not a run; its runs are .*/run$"):
        read_stages(str(tmp_path))
    (tmp_path / "images").mkdir()
    with pytest.raises(ConfigError, match="holds no run of `udaseg train`; give"):
        read_stages(str(tmp_path / "images"))
    write(run, "config.json", {"recipe": {"stages": 3}})
    with pytest.raises(ConfigError, match=r"config\.json: not the configuration of a run"):
        read_stages(run)
    with pytest.raises(ConfigError, match="local folder"):
        Watch(run=run, tensorboard="s3://bucket/board").follow()


def test_a_run_that_has_only_begun_has_no_stages_yet(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(str(tmp_path), ".udaseg.json", {"command": "train"})
    beat(str(tmp_path))
    Watch(run=str(tmp_path), once=True).follow()
    assert "no step yet" in capsys.readouterr().out


def test_a_board_goes_on_in_another_process(tmp_path: Path) -> None:
    """As of a run that is resumed: what is there is not written again, what is done again is replaced."""
    rows = [row(1, step) for step in (10, 20, 30)]
    run = str(tmp_path / "run")
    first = Board(str(tmp_path), run)
    first.update(rows)
    first.close()
    second = Board(str(tmp_path), run, rows)
    second.update(rows[:1])
    second.update([rows[0], row(1, 20, 0.25)])
    second.close()
    assert scalars(tmp_path / "1-adapt", "source_ce") == [(10, 0.5), (20, 0.25)]


def test_a_loss_that_json_cannot_hold_is_shown() -> None:
    assert "source_ce nan" in progress_line(row(0, 1) | {"source_ce": None}, 40)
