"""`udaseg import`: a checkpoint of another repository as a model directory."""

from __future__ import annotations

import tempfile
from pathlib import Path

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, copy_model, save_model
from udaseg.checkpoints.importers import Imported, import_checkpoint
from udaseg.data.classes import MAX_CLASSES_BYTES, Classes
from udaseg.data.storage import exists, join, read_bytes, to_uri
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.errors import ConfigError, DatasetError
from udaseg.jobs.output import keep_apart, own_directory
from udaseg.types import Location


def import_model(
    checkpoint: Location, *, classes: Location, out: Location, format: str | None = None, short_side: int | None = None
) -> Imported:
    """Write a model directory with the network of another repository's checkpoint.

    Args:
        checkpoint: path or URI of the file, of torch or safetensors.
        classes: "cityscapes", or the path or URI of a class list.
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
    class_list = _classes(classes)
    with own_directory(out, "import"):
        if exists(join(out, CARD_FILE)):
            raise ConfigError(f"{out}: holds a model already; choose another --out")
        found = import_checkpoint(checkpoint, class_list, format=format, short_side=short_side)
        with tempfile.TemporaryDirectory() as folder:
            save_model(Path(folder), found.network, found.card)
            copy_model(folder, out)
    return found


def _classes(name: str) -> Classes:
    if name == "cityscapes":
        return CITYSCAPES_CLASSES
    if not exists(name):
        raise DatasetError(f"--classes {name}: no such file, nor is it cityscapes")
    return Classes.from_json(read_bytes(name, limit=MAX_CLASSES_BYTES), name)
