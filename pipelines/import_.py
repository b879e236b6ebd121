"""`udaseg import`: a checkpoint of another repository as a model directory."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a model directory with the network of another repository's checkpoint, for evaluate, pseudo-label and
    `--stages.0.init-from` of train. No code in the file is executed."""

    checkpoint: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="CHECKPOINT")]
    """The file, of torch or safetensors."""
    classes: str
    """cityscapes, or a class list, as of prepare."""
    out: str
    """Model directory to write."""
    format: Annotated[
        Literal["daformer", "hrda", "mic", "dlv2-mmseg", "deeplabv2", "proda", "segformer", "deeplabv3"] | None,
        tyro.conf.arg(name="from"),
    ] = None
    """Whose it is; guessed by the names of its tensors where it is not given."""
    short_side: int | None = None
    """Pixels of an image's short side that the network sees; as its authors evaluate where it is not given."""


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg import")
    from udaseg.jobs.import_ import import_model

    found = import_model(
        arguments.checkpoint,
        classes=arguments.classes,
        out=arguments.out,
        format=arguments.format,
        short_side=arguments.short_side,
    )
    for note in found.notes:
        print(note)
    seen = "as a whole" if found.card.window is None else "in windows of {} x {}".format(*found.card.window)
    print(f"model: {arguments.out}; images are seen at a short side of {found.card.short_side} pixels, {seen}")


if __name__ == "__main__":
    sys.exit(main())
