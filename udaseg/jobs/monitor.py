"""The driver's view of a run: one live line, `metrics.jsonl` and TensorBoard."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import ray
from rich.console import Console
from rich.live import Live
from rich.text import Text

from udaseg.config import Stage
from udaseg.data.storage import join, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.jobs.resources import waits_told
from udaseg.jobs.run_directory import METRICS, read_metrics
from udaseg.reports.progress import Board, progress_line

_SECONDS_BETWEEN_LINES = 10.0
_ROWS_PER_SECOND = 200  # of metrics written, in the mean


class Monitor:
    """Takes the rows that rank 0 reports, shows and keeps them.

    What a lost worker did after the last checkpoint is done again, and what a lost driver had not written is in the
    checkpoint: the rows of a stage begin anew with those that its checkpoint holds, so that the file is the surviving
    history, each step once.
    """

    def __init__(
        self,
        out: str,
        on_score: Callable[[dict[str, Any]], None] | None = None,
        on_row: Callable[[int, dict[str, Any]], None] | None = None,
    ) -> None:
        self._uri = join(out, METRICS)
        self._rows = read_metrics(out)
        self._board = None if "://" in out else Board(join(out, "tensorboard"), out, self._rows)
        self._on_score = on_score
        self._on_row = on_row  # of a stage's number and what it has measured
        self._console = Console()
        self._live: Live | None = None
        self._last_line = 0.0

    @contextlib.contextmanager
    def stage(self, number: int, stage: Stage, progress: Any) -> Iterator[None]:
        """Follow one stage while the block runs."""
        stop = threading.Event()
        thread = threading.Thread(target=self._follow, args=(number, stage, progress, stop), daemon=True)
        live = Live(console=self._console, refresh_per_second=2) if self._console.is_terminal else None
        with live or contextlib.nullcontext(), waits_told(f"stage {stage.name}") as self._came:
            self._live = live
            thread.start()
            try:
                yield
                stop.set()
                thread.join(timeout=30)
                self._write()  # and if now it cannot be, that is told
            finally:
                stop.set()
                thread.join(timeout=30)
                self._live = None
                if self._board is not None:
                    self._board.close()

    def _follow(self, number: int, stage: Stage, progress: Any, stop: threading.Event) -> None:
        written, began, last_words = time.monotonic(), False, ""
        while True:
            stopping = stop.wait(0.5)
            rows = ray.get(progress.take.remote())
            for row in rows:
                self._came()
                event = row.pop("event")
                if event == "failed":
                    last_words = f": {row['text']}"
                    continue
                if event == "start":
                    if began:  # after a loss, or with other workers
                        say = self._console.print if self._live is not None else partial(print, flush=True)
                        what = f"{row['workers']} workers begin again at step {row['step']}"
                        say(f"stage {stage.name}: {what}{last_words}")
                    began, last_words = True, ""
                    known = [{k: v for k, v in r.items() if k != "event"} for r in row["history"]]
                    self._rows = [r for r in self._rows if r["stage"] != number]
                    self._rows += [{"stage": number, "name": stage.name, **r} for r in known]
                    continue
                self._rows.append({"stage": number, "name": stage.name, **row})
                if self._on_row is not None:
                    self._on_row(number, row)
                if event == "step":
                    self._show(self._rows[-1], stage.steps)
                else:
                    self._try_to_write()
                    if self._on_score is not None:
                        self._on_score(self._rows[-1])
            # all is written each time: of a long run less often, so that a store is not sent the same again and again
            pause = 5 + len(self._rows) / _ROWS_PER_SECOND
            if rows and (stopping or time.monotonic() - written > pause):
                self._try_to_write()
                written = time.monotonic()
            if stopping:
                break
        self._try_to_write()

    def _show(self, row: dict[str, Any], steps: int) -> None:
        line = progress_line(row, steps)
        if self._live is not None:
            self._live.update(Text(line))
        elif row["step"] == steps or time.monotonic() - self._last_line > _SECONDS_BETWEEN_LINES:
            print(line, flush=True)
            self._last_line = time.monotonic()

    def _try_to_write(self) -> None:
        """Each time all is written, so that what a full disk or a store that is down keeps back comes with the next."""
        with contextlib.suppress(OSError):
            self._write()

    def _write(self) -> None:
        write_bytes(self._uri, "".join(dump_json(row) + "\n" for row in self._rows).encode())
        if self._board is not None:
            self._board.update(self._rows)
