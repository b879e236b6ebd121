"""`udaseg prepare`: check folders of images and labels, and write a dataset directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from udaseg.errors import DatasetError
from udaseg.jobs.prepare import prepare


def main(argv: Sequence[str] | None = None) -> int:
    """The command line. Returns the exit status: 2 where the input is refused."""
    try:
        tyro.cli(prepare, args=argv, prog="udaseg prepare")
    except (DatasetError, OSError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
