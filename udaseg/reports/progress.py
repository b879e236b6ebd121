"""How far a run is: the line of the training loop, and TensorBoard's files.

Both are made of the rows of a run's metrics.jsonl, the latter's images of pictures/<i>-<stage>/<step>.png.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from pathlib import PurePosixPath
from typing import Any

from udaseg.data.pictures import cut
from udaseg.data.storage import children, join, read_bytes

NOT_LOSSES = {
    *("stage", "name", "step", "lr", "grad_norm"),
    *("images_per_second", "data_wait", "step_seconds", "host_seconds", "memory_mib", "workers"),
}
"""What a row of metrics.jsonl holds beside the losses."""

PICTURES = "pictures"
"""The folder of a run's pictures."""

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
        run: run directory, a path or URI, whose pictures are shown.
        written: rows that are there already, and with them the pictures that the run has.
    """

    def __init__(self, folder: str, run: str, written: Sequence[Row] = ()) -> None:
        self._folder = folder
        self._run = run
        self._written = _by_stage(written)
        self._pictured = set(_sheets(run)) if written else set()
        self._writers: dict[str, Any] = {}

    def update(self, rows: Sequence[Row]) -> None:
        """Bring the files up to these rows, all that there are, and to the run's pictures."""
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
        for stage, step in _sheets(self._run):
            if (stage, step) not in self._pictured:
                self._add_pictures(stage, step)
                self._pictured.add((stage, step))
        for writer in self._writers.values():
            writer.flush()

    def _add_pictures(self, stage: str, step: int) -> None:
        for column, pictures in cut(read_bytes(join(self._run, PICTURES, stage, f"{step:07d}.png"))).items():
            for number, picture in enumerate(pictures):
                self._writer(stage, step + 1).add_image(f"target_{number}/{column}", picture, step, dataformats="HWC")

    def _writer(self, stage: str, step: int) -> Any:
        """A stage's open file; a new one takes back what others hold from a step on."""
        if stage not in self._writers:
            from tensorboardX import SummaryWriter  # which loads torch

            self._pictured -= {(name, at) for name, at in self._pictured if name == stage and at >= step}
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


def _sheets(run: str) -> list[tuple[str, int]]:
    """Stage and step of a run's pictures."""
    folder = join(run, PICTURES)
    stages = [info.base_name for info in children(folder) if not info.is_file]
    names = [(stage, PurePosixPath(info.base_name)) for stage in stages for info in children(join(folder, stage))]
    return sorted((stage, int(name.stem)) for stage, name in names if name.suffix == ".png" and name.stem.isdigit())


def _by_stage(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """The rows of each stage's folder, `<number>-<name>`."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(f"{row['stage']}-{row['name']}", []).append(row)
    return found
