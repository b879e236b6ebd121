"""`udaseg inspect`: what is in datasets, and what is doubtful about them."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a page about datasets: counts, sizes, classes, images under their labels, and what is doubtful."""

    datasets: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATASET...")]
    """Dataset directories; of several, as a source and a target, it is told how they differ and what they share."""
    out: str = "inspection"
    """Directory to write."""


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg inspect")
    from udaseg.errors import ConfigError

    if not arguments.datasets:
        raise ConfigError("give a dataset directory: udaseg inspect DATASET...")
    from udaseg.jobs.inspect_dataset import PAGE, inspect_datasets

    for warning in inspect_datasets(arguments.out, arguments.datasets):
        print(f"warning: {warning}", file=sys.stderr)
    print(f"{arguments.out}/{PAGE}")


if __name__ == "__main__":
    sys.exit(main())
