"""`udaseg prepare`: check folders of images and labels, and write a dataset directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from pipelines.cli import command


@command
def main(argv: Sequence[str]) -> None:
    from udaseg.jobs.prepare import prepare

    tyro.cli(prepare, args=argv, prog="udaseg prepare")


if __name__ == "__main__":
    sys.exit(main())
