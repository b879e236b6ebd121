"""`udaseg watch`: a run that trains elsewhere, from what it writes; in this process, without Ray."""

from __future__ import annotations

import contextlib
import json
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from udaseg.data.storage import absolute, exists, join, read_bytes, version
from udaseg.errors import ConfigError, TrainingError, UnreachableError
from udaseg.jobs.output import HEARTBEAT, LEASE
from udaseg.jobs.run_directory import (
    METRICS,
    StageSteps,
    is_done,
    is_finished,
    made_before,
    read_metrics,
    read_registered,
    read_stages,
)
from udaseg.reports.progress import progress_line
from udaseg.reports.tables import cell

if TYPE_CHECKING:
    from udaseg.reports.progress import Board

SILENCE = 4 * HEARTBEAT
"""Seconds without a sign of life after which a process counts as dead, as for one that would take its place."""
_SECONDS_BETWEEN_LINES = 10.0
_GO_ON = "run the same command with --resume, which goes on from the last checkpoint"


class Sign(NamedTuple):
    """Of the process that works in a run's directory."""

    who: str
    silent: float
    """Seconds since its last sign of life."""


class Look(NamedTuple):
    """What a run's directory says at a moment."""

    stages: list[StageSteps]
    done: list[bool]
    """Whether each stage is."""
    rows: list[dict[str, Any]]
    """Of metrics.jsonl."""
    note: str
    """What is told of the stage that is under way."""
    sign: Sign | None
    """None where no process works in it."""
    finished: bool

    @property
    def current(self) -> int:
        """The stage that is under way; the last one where all are done."""
        return self.done.index(False) if False in self.done else len(self.stages) - 1

    def step(self, stage: int) -> int:
        """The last step of a stage that is told."""
        return max((row["step"] for row in self.rows if row["stage"] == stage), default=0)


@dataclass(kw_only=True)
class Watch:
    """Watch a run that trains elsewhere, until it has ended: its stages, losses and speed, as they are written.

    Exit status: 0 when it is finished, or as long as it is under way with --once; 1 when it failed or is lost.
    """

    run: str
    """Run directory, a path or URI."""
    once: bool = False
    """Say how far it is, and end."""
    tensorboard: str | None = None
    """Local folder for TensorBoard's files of what the run writes."""

    def follow(self, *, every: float = HEARTBEAT) -> None:
        """Show the run, every so many seconds, until it has ended or Ctrl-C is pressed.

        Raises:
            ConfigError: there is no run.
            TrainingError: it ended without being finished, or its process gives no sign of life.
        """
        if self.tensorboard is not None and "://" in self.tensorboard:
            raise ConfigError(f"--tensorboard {self.tensorboard}: give a local folder")
        eyes = _Eyes(absolute(self.run))
        look = eyes.look()
        board = None if self.tensorboard is None else _board(self.tensorboard, eyes.run)
        console = Console(markup=False, emoji=False, highlight=False)
        live = Live(console=console, auto_refresh=False) if console.is_terminal and not self.once else None
        told, last = "", 0.0
        with contextlib.closing(board) if board else contextlib.nullcontext(), live or contextlib.nullcontext():
            while True:
                if board is not None:
                    with contextlib.suppress(UnreachableError):
                        board.update(look.rows)
                ended, state = self._state(look, eyes)
                line = _line(look)
                if live is not None:
                    live.update(Group(_table(look), Text(line), Text(state)), refresh=True)
                elif self.once:
                    console.print(_table(look))
                elif line != told and (ended or time.monotonic() - last > _SECONDS_BETWEEN_LINES):
                    print(line, flush=True)
                    told, last = line, time.monotonic()
                if ended or self.once:
                    break
                try:
                    time.sleep(every)
                    with contextlib.suppress(UnreachableError):  # the store may answer again; meanwhile it is silent
                        look = eyes.look()
                except KeyboardInterrupt:
                    print("no longer watched; the run goes on")
                    return
        if ended and not look.finished:
            raise TrainingError(state)
        if live is None:
            print("\n".join(filter(None, [line if self.once else "", state])), flush=True)

    def _state(self, look: Look, eyes: _Eyes) -> tuple[bool, str]:
        """Whether the run has ended, and how it is in words."""
        if look.finished:
            return True, f"finished: {join(self.run, 'model')}"
        if look.sign is None:
            return True, (
                f"{self.run}: ended before it was finished, as it failed or was stopped. What its command printed says "
                f"why (`ray job logs` on a cluster); {_GO_ON}"
            )
        who, silent = look.sign.who, max(look.sign.silent, eyes.unseen())
        if silent > SILENCE and (self.once or eyes.unseen() > SILENCE):  # clocks of two machines may differ
            return True, (
                f"{self.run}: no sign of life of {who} for {silent:.0f} s: it was killed, its machine is gone, or it "
                f"cannot write to the run. Where it is gone, {_GO_ON}"
            )
        return False, f"under way: {who}, last sign of life {max(silent, 0):.0f} s ago"


class _Eyes:
    """Reads a run's directory again and again, and no file twice that has not changed."""

    def __init__(self, run: str) -> None:
        self.run = run
        self._stages: list[StageSteps] = []
        self._done: set[str] = set()
        self._metrics: tuple[tuple[int, int], list[dict[str, Any]]] = ((0, 0), [])
        self._lease = b""
        self._seen = time.monotonic()  # when it last was another

    def unseen(self) -> float:
        """Seconds for which the lease has been seen to stay as it is."""
        return time.monotonic() - self._seen

    def look(self) -> Look:
        """Raises ConfigError where there is no run, UnreachableError where the store does not answer."""
        sign = self._sign()  # before the rest, so that a run which ends meanwhile is not taken for failed
        self._stages = self._stages or read_stages(self.run)
        self._done |= {s.folder for s in self._stages if s.folder not in self._done and is_done(self.run, s.folder)}
        done = [stage.folder in self._done for stage in self._stages]
        note = "" if all(done) else self._note(self._stages[done.index(False)].folder)
        return Look(self._stages, done, self._rows(), note, sign, is_finished(self.run))

    def _sign(self) -> Sign | None:
        uri = join(self.run, LEASE)
        try:
            changed = version(uri)[1]
            content = read_bytes(uri)
        except FileNotFoundError:
            return None
        if content != self._lease:
            self._lease, self._seen = content, time.monotonic()
        who = "its process"
        with contextlib.suppress(ValueError, TypeError, KeyError):  # half of it is written
            lease = json.loads(content)
            who = f"process {lease['pid']} on {lease['host']}"
        return Sign(who, time.time() - changed / 1e9)

    def _rows(self) -> list[dict[str, Any]]:
        uri = join(self.run, METRICS)
        if exists(uri) and (now := version(uri)) != self._metrics[0]:
            with contextlib.suppress(ValueError):  # a store's object that was replaced while it was read
                self._metrics = now, read_metrics(self.run)
        return self._metrics[1]

    def _note(self, stage: str) -> str:
        if making := made_before(self.run, stage):
            return making
        with contextlib.suppress(FileNotFoundError, IndexError, ValueError):  # none yet, or half of the list is written
            step, _ = read_registered(join(self.run, "stages", stage))[-1]
            return f"checkpoint at {step}"
        return ""


def _board(folder: str, run: str) -> Board:
    from udaseg.reports.progress import Board

    return Board(folder, run)


def _table(look: Look) -> Table:
    """The stages, with their steps."""
    table = Table("stage", "steps", "")
    for number, (stage, done) in enumerate(zip(look.stages, look.done, strict=True)):
        note = "done" if done else look.note if number == look.current else ""
        table.add_row(cell(stage.folder), f"{look.step(number)}/{stage.steps}", cell(note))
    return table


def _line(look: Look) -> str:
    """The training loop's line for the last row that has a speed; those of scores have none."""
    rows = [row for row in look.rows if "step_seconds" in row and row["stage"] < len(look.stages)]
    return progress_line(rows[-1], look.stages[rows[-1]["stage"]].steps) if rows else "no step yet"
