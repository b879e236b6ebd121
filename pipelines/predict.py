"""`udaseg predict`: label maps of a few images, in this process."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli import command, parse_arguments


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Predict images and videos in this process: a label map of each, whose palette has the classes' colours.

    For many images, thresholds and confidences there is `udaseg pseudo-label`."""

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """A run's model directory, one of its checkpoints, or a model.onnx of `udaseg export`."""
    images: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="IMAGE...")]
    """Files of images or videos, folders of images or dataset directories."""
    out: str = "predictions"
    """Directory to write."""
    overlay: bool = False
    """Write the images and videos under their classes' colours too."""


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg predict", config=(tyro.conf.FlagCreatePairsOff,))
    from udaseg.errors import ConfigError

    if not arguments.images:
        raise ConfigError("give an image: udaseg predict MODEL IMAGE...")
    from udaseg.jobs.predict import predict_to

    predict_to(arguments.out, arguments.model, arguments.images, overlays=arguments.overlay)


if __name__ == "__main__":
    sys.exit(main())
