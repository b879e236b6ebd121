"""`udaseg demo`: the whole chain on an embedded pair of domains, with a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

import tyro

from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from udaseg.jobs.demo import demo


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adapt a small network on an embedded pair of domains, from rendered images to a report, within minutes."""

    out: str = "runs/demo"
    """A new directory."""
    seed: int = 0
    """Of the images and the runs."""
    resume: bool = False
    """Go on with the demo in --out."""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    a = tyro.cli(Arguments, args=argv, prog="udaseg demo")
    try:
        demo(a.out, seed=a.seed, resume=a.resume)
    except (ConfigError, DatasetError, CheckpointError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
