"""`udaseg evaluate`: per-class IoU, mIoU and pixel accuracy of checkpoints on a labelled dataset."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Literal

import tyro

from pipelines.cli import command, parse_arguments
from udaseg.errors import ConfigError
from udaseg.job_config import Inference


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Evaluate checkpoints on a labelled dataset: a table, and as files if --out is given."""

    checkpoint: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL...")]
    """A run's model directory, or one of its checkpoints; several are columns of one table."""
    dataset: str
    """Dataset directory."""
    split: str = "val"
    out: str | None = None
    """Folder for metrics.json and confusion.png, of several confusion_1.png and so on; none may be there yet."""
    inference: Inference = field(default_factory=Inference)
    format: Literal["table", "json"] = "table"
    """What is printed."""


@command
def main(argv: Sequence[str]) -> None:
    a = parse_arguments(Arguments, argv, prog="udaseg evaluate", config=(tyro.conf.AvoidSubcommands,))
    times = sum(word.partition("=")[0] == "--checkpoint" for word in argv)  # of which tyro takes the last
    if times > 1 or len({uri.rstrip("/") for uri in a.checkpoint}) < max(1, len(a.checkpoint)):
        raise ConfigError("--checkpoint: give one, or several that differ, one after the other: --checkpoint A B")
    from udaseg.jobs.evaluate import evaluate_to

    evaluate_to(a.out, a.checkpoint, a.dataset, split=a.split, inference=a.inference, print_json=a.format == "json")


if __name__ == "__main__":
    sys.exit(main())
