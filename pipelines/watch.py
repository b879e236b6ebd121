"""`udaseg watch`: a run elsewhere, as it goes."""

from __future__ import annotations

import sys
from collections.abc import Sequence

import tyro

from pipelines.cli import command, parse_arguments


@command
def main(argv: Sequence[str]) -> None:
    from udaseg.jobs.watch import Watch

    how = (tyro.conf.PositionalRequiredArgs, tyro.conf.FlagCreatePairsOff)
    parse_arguments(Watch, argv, prog="udaseg watch", config=how).follow()


if __name__ == "__main__":
    sys.exit(main())
