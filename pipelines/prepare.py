"""`udaseg prepare`: check folders of images and labels, and write a dataset directory."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Sequence
from typing import Any

from pipelines.cli import command, parse_arguments


@command
def main(argv: Sequence[str]) -> None:
    from udaseg.jobs.prepare import prepare

    @functools.wraps(prepare)  # its arguments and their help
    def prepared(**arguments: Any) -> Callable[[], Any]:
        return functools.partial(prepare, **arguments)

    parse_arguments(prepared, argv, prog="udaseg prepare")()


if __name__ == "__main__":
    sys.exit(main())
