"""`udaseg adapt`: choose, adapt, and say whether it helped."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli import command, parse_arguments
from udaseg.job_config import Adapt


@dataclass(frozen=True, kw_only=True)
class Arguments(Adapt):
    """Adapt a network to a target without labels: udaseg adapt --source DIR --target DIR --out DIR.

    It chooses what to train, trains a warm start, adapts it, judges the result without labels of the target against
    source-only, and never hands back a network that it has reason to believe is worse.
    """

    checkpoint: Annotated[str | None, tyro.conf.arg(name="from")] = None
    """Model directory to adapt in place of a warm start on the source; without a source it is adapted without one."""


@command
def main(argv: Sequence[str]) -> None:
    a = parse_arguments(Arguments, argv, prog="udaseg adapt")
    asked = tuple(name for given in a.candidates for name in given.split(",") if name)
    from udaseg.jobs.adapt.job import adapt

    adapt(dataclasses.replace(a, candidates=asked))


if __name__ == "__main__":
    sys.exit(main())
