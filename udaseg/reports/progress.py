"""How far a run is: the line of the training loop, and TensorBoard's files; both are made of rows of metrics.jsonl."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

NOT_LOSSES = {
    *("stage", "name", "step", "lr", "grad_norm"),
    *("images_per_second", "data_wait", "step_seconds", "host_seconds", "memory_mib", "workers"),
}
"""What a row of metrics.jsonl holds beside the losses."""

Row = Mapping[str, Any]


def progress_line(row: Row, steps: int) -> str:
    """A row of a stage of so many steps: the losses, the speed and the minutes that are left."""
    losses = "  ".join(f"{name} {_number(value)}" for name, value in row.items() if name not in NOT_LOSSES)
    left = int((steps - row["step"]) * row["step_seconds"])
    return (
        f"{row['name']} {row['step']}/{steps}  {losses}  {row['images_per_second']:.1f} images/s  "
        f"waiting {row['data_wait']:.0%}  {left // 60}:{left % 60:02d} left"
    )


def _number(value: float | None) -> str:
    return "nan" if value is None else f"{value:.3f}"  # JSON has no word for it


class Board:
    """TensorBoard's event files, a folder for each stage, of a history that may be taken back and go on otherwise.

    Of what a lost worker's steps had written, and is done again, TensorBoard shows the latter alone.

    Args:
        folder: where to; local.
        written: rows that are there already.
    """

    def __init__(self, folder: str, written: Sequence[Row] = ()) -> None:
        self._folder = folder
        self._written = _by_stage(written)
        self._writers: dict[str, Any] = {}

    def update(self, rows: Sequence[Row]) -> None:
        """Bring the files up to these rows, all that there are."""
        for stage, own in _by_stage(rows).items():
            before = self._written.get(stage, [])
            same = 0
            while same < min(len(before), len(own)) and before[same] == own[same]:
                same += 1
            if same < len(before):
                self._close(stage)
            for row in own[same:]:
                for name, value in row.items():
                    if name not in ("stage", "step") and isinstance(value, int | float):
                        self._writer(stage, row["step"]).add_scalar(name, value, row["step"])
            self._written[stage] = own
        for writer in self._writers.values():
            writer.flush()

    def _writer(self, stage: str, step: int) -> Any:
        """A stage's open file; a new one takes back what others hold from a step on."""
        if stage not in self._writers:
            from tensorboardX import SummaryWriter  # which loads torch

            suffix = f".{time.time_ns()}"  # files of one second would share a name; TensorBoard reads them in its order
            self._writers[stage] = SummaryWriter(f"{self._folder}/{stage}", purge_step=step, filename_suffix=suffix)
        return self._writers[stage]

    def _close(self, stage: str) -> None:
        if stage in self._writers:
            self._writers.pop(stage).close()

    def close(self) -> None:
        """Write what is left."""
        for stage in list(self._writers):
            self._close(stage)


def _by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each stage's folder, `<number>-<name>`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['stage']}-{row['name']}", []).append(row)
    return found
