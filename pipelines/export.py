"""`udaseg export`: a model as one file that runs without udaseg."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Write a model, with all that is done before and after it, as one file, and check it against the original."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's model directory, or one of its checkpoints."""
    out: str
    """Directory to write, for model.pt2 or model.onnx."""
    format: Literal["torch-export", "onnx"] = "torch-export"
    """torch-export: what torch.export.load reads; onnx: what ONNX Runtime reads, and much else."""
    size: tuple[int, int] | None = None
    """Height and width of the only images that it shall take; any where it is not given and the network lets it be."""


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg export", config=(tyro.conf.AvoidSubcommands,))
    from udaseg.jobs.export import FILES, export_model

    done = export_model(arguments.model, out=arguments.out, format=arguments.format, size=arguments.size)
    if done.size is None:
        takes = "batches of images of any size"
    else:
        takes = "one image of {} x {} pixels (height x width)".format(*done.size)
    print(f"{arguments.out}/{FILES[arguments.format]}: takes {takes}; {len(done.content) / 2**20:.1f} MiB")
    print(
        f"max difference to the original: {done.difference:.1e} in a probability; {done.other_classes} of {done.pixels}"
        " pixels have another class"
    )


if __name__ == "__main__":
    sys.exit(main())
