"""`udaseg export`: a model as one file that runs without udaseg."""

from __future__ import annotations

import sys

from udaseg.checkpoints.directory import load_model
from udaseg.checkpoints.exporting import Exported, Format, export_network
from udaseg.data.storage import absolute, exists, join, to_uri, write_bytes
from udaseg.errors import CheckpointError, ConfigError
from udaseg.jobs.output import own_directory
from udaseg.types import Location

FILES: dict[Format, str] = {"torch-export": "model.pt2", "onnx": "model.onnx"}


def export_model(
    model: Location, *, out: Location, format: Format = "torch-export", size: tuple[int, int] | None = None
) -> Exported:
    """Write a model with all that is done before and after it as one file, and check it against the original.

    Args:
        model: model directory.
        out: the directory to write, for model.pt2 or model.onnx.
        format: torch-export: `torch.export.load` reads it, in Python, and AOTInductor compiles it for C++; onnx:
            ONNX Runtime and what else reads ONNX, which needs `udaseg[onnx]`.
        size: height and width of the only images that it shall take; None = any where the network lets it be.

    Raises ConfigError or CheckpointError, and writes nothing, where it cannot be exported or differs from the original.
    """
    if size is not None and not all(1 <= side <= 1 << 14 for side in size):
        raise ConfigError(f"--size is {size[0]} {size[1]}; 1 to {1 << 14} pixels are possible")
    if format not in FILES:
        raise ConfigError(f"no format {format!r}; there are {', '.join(FILES)}")
    model, out = to_uri(model), to_uri(out)
    file = join(absolute(out), FILES[format])
    with own_directory(out, "export"):
        if exists(file):
            raise ConfigError(f"{out}: holds an exported model already; choose another --out")
        network, card = load_model(model)
        try:
            exported = export_network(network, card, size, format)
        except CheckpointError as error:
            raise CheckpointError(f"{model}: {error}") from error
        if card.window is not None:
            windows = "{} x {}".format(*card.window)
            print(f"warning: {model}: predicts in windows of {windows}; the file sees whole images", file=sys.stderr)
        write_bytes(file, exported.content)
    return exported
