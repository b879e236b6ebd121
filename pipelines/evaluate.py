"""`udaseg evaluate`: per-class IoU, mIoU and pixel accuracy of checkpoints on a labelled dataset."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import tyro
from rich.console import Console

from udaseg.config import Inference
from udaseg.data.classes import read_classes
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.jobs.evaluate import evaluate
from udaseg.reports.adaptation import confusion_picture, iou_table, summary

FILES = ("metrics.json", "confusion.png")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate a checkpoint on a labelled dataset: a table, and as files if --out is given."""

    checkpoint: str
    """A run's model directory, or one of its checkpoints."""
    dataset: str
    """Dataset directory."""
    split: str = "val"
    out: str | None = None
    """Folder for metrics.json and confusion.png; neither may be there yet."""
    inference: Inference = Inference()
    format: Literal["table", "json"] = "table"
    """What is printed."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    a = tyro.cli(Arguments, args=argv, prog="udaseg evaluate", config=(tyro.conf.AvoidSubcommands,))
    folder = Path(a.out) if a.out is not None else None
    if folder is not None and (folder.is_file() or any((folder / name).exists() for name in FILES)):
        print(f"error: {folder}: holds results already; choose another --out", file=sys.stderr)
        return 2
    try:
        counts = evaluate([a.checkpoint], a.dataset, split=a.split, inference=a.inference)[0]
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    classes = read_classes(a.dataset)
    metrics = summary(counts, classes.names)
    if a.format == "json":
        print(json.dumps(metrics))
    else:
        Console().print(iou_table({"": counts}, classes.names))
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / FILES[0]).write_text(json.dumps(metrics, indent=1))
        confusion_picture(counts, classes.names).save(folder / FILES[1])
    return 0


if __name__ == "__main__":
    sys.exit(main())
