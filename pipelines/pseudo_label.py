"""`udaseg pseudo-label`: label images with a checkpoint."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field

import tyro

from pipelines.cli import command, parse_arguments
from udaseg.config import DEFAULT_RULES, PseudoLabel
from udaseg.data.export import ExportFormat
from udaseg.job_config import Inference


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pseudo-label images with a checkpoint. The same command again goes on with a job that was killed."""

    checkpoint: str
    """A run's model directory, or one of its checkpoints."""
    images: str
    """A dataset directory, or a folder or URI of images."""
    out: str
    """Dataset directory to write."""
    split: str | None = None
    """Split of a dataset directory; all its images without it."""
    agree_with: tuple[str, ...] = ()
    """Other model directories; a pixel that they do not all find the same class for is not kept."""
    source: str | None = None
    """Labelled dataset directory, whose class balance the report compares with and prototypes are made from."""
    truth: bool = False
    """Compare with the true labels that the images have, in the report alone."""
    layouts: tuple[ExportFormat, ...] = ()
    """Folders for other tools: cityscapes, coco_stuff; submission for servers of Cityscapes, ACDC and Dark Zurich."""
    max_failed: float | None = None
    """Stop when more images than this cannot be read; below 1 a share of all. Without it they are listed alone."""
    block_size: int = 32
    """Images that are committed together: what a kill costs at most, for each process that predicts."""
    rules: PseudoLabel = DEFAULT_RULES
    inference: Inference = field(default_factory=Inference)


@command
def main(argv: Sequence[str]) -> None:
    arguments = parse_arguments(Arguments, argv, prog="udaseg pseudo-label", config=(tyro.conf.AvoidSubcommands,))
    from udaseg.errors import UnreachableError
    from udaseg.jobs.pseudo_label.job import pseudo_label, unreachable_images

    pseudo_label(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)})
    print(f"pseudo-labels: {arguments.out}")
    if left := unreachable_images(arguments.out):
        raise UnreachableError(
            f"{arguments.out}: {left} images could not be reached and have no label, see failed.json; run the same "
            "command again when they can"
        )


if __name__ == "__main__":
    sys.exit(main())
