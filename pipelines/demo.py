"""`udaseg demo`: the whole chain on an embedded pair of domains, with a report."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adapt a small network on an embedded pair of domains, from rendered images to a report, within minutes."""

    out: str = "runs/demo"
    """A new directory."""
    seed: int = 0
    """Of the images and the runs."""
    resume: bool = False
    """Go on with the demo in --out."""


@command
def main(argv: Sequence[str]) -> None:
    a = parse_arguments(Arguments, argv, prog="udaseg demo")
    from udaseg.jobs.demo import demo

    demo(a.out, seed=a.seed, resume=a.resume)


if __name__ == "__main__":
    sys.exit(main())
