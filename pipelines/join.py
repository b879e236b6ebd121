"""`udaseg join`: one dataset of several, such as several sources."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write one dataset with the images of several, each below its dataset's name; files stay where they are."""

    datasets: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATASET...")]
    """Dataset directories with the same classes in the same order; ids or colours of labels may differ."""
    out: str
    """The dataset directory to write."""
    overwrite: bool = False
    """Replace the joined dataset that is in the directory already."""


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg join")
    from udaseg.jobs.join_datasets import join_datasets

    join_datasets(arguments.datasets, out=arguments.out, overwrite=arguments.overwrite)


if __name__ == "__main__":
    sys.exit(main())
