"""`udaseg import`: a checkpoint of another repository as a model directory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, copy_model, save_model
from udaseg.checkpoints.importers import Imported, import_checkpoint
from udaseg.data.dataset_input import read_class_list
from udaseg.data.storage import exists, join, to_uri
from udaseg.errors import ConfigError
from udaseg.jobs.output import keep_apart, own_directory
from udaseg.types import Location


def import_model(
    checkpoint: Location, *, classes: Location, out: Location, format: str | None = None, short_side: int | None = None
) -> Imported:
    """Write a model directory with the network of another repository's checkpoint.

    Args:
        checkpoint: path or URI of the file, of torch or safetensors.
        classes: "cityscapes" or the like, or a file, see `udaseg.data.dataset_input.read_class_list`.
        out: the model directory to write.
        format: see `import_checkpoint`, as for `short_side`.

    Raises ConfigError, DatasetError or CheckpointError, and writes nothing, where anything does not fit.
    """
    checkpoint, classes, out = to_uri(checkpoint), to_uri(classes), to_uri(out)
    keep_apart({"CHECKPOINT": checkpoint, "--classes": classes}, out, [MODEL_FILE, CARD_FILE])
    if not exists(checkpoint):
        raise ConfigError(f"{checkpoint}: no such file")
    if short_side is not None and not 1 <= short_side <= 1 << 14:
        raise ConfigError(f"--short-side is {short_side}; 1 to {1 << 14} are possible")
    class_list = read_class_list(classes)
    with own_directory(out, "import"):
        if exists(join(out, CARD_FILE)):
            raise ConfigError(f"{out}: holds a model already; choose another --out")
        found = import_checkpoint(checkpoint, class_list, format=format, short_side=short_side)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), found.network, found.card)
            copy_model(folder, out)
    return found
