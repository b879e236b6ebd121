"""Model directories: a network as safetensors with its card, and a run's state; they load without executing code."""

from __future__ import annotations

import dataclasses
import io
import json
import pickle
import typing
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typeguard
from torch import Tensor

from udaseg.config import Model
from udaseg.data.classes import Classes
from udaseg.data.storage import exists, join, read_bytes, write_bytes
from udaseg.errors import CheckpointError
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import Segmenter
from udaseg.types import NetworkRole

MODEL_FILE, CARD_FILE, STATE_FILE = "model.safetensors", "model.json", "state.pt"


_MAX_CARD = 1 << 20  # bytes


_MAX_SIDE = 1 << 14  # pixels


@dataclass(frozen=True, kw_only=True)
class ModelCard:
    """What must be known to use a saved network."""

    model: Model
    classes: Classes
    short_side: int
    """Pixels of the short side that images had in training."""
    recipe: str
    stage: str
    step: int


def save_model(directory: Path, network: Segmenter, card: ModelCard) -> None:
    """Write a network as safetensors, with its card."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, directory / MODEL_FILE)
    (directory / CARD_FILE).write_text(json.dumps(dataclasses.asdict(card), indent=1))


def read_card(uri: str) -> ModelCard:
    """The card of a model directory. Raises CheckpointError where there is none or it cannot be read."""
    if not exists(join(uri, CARD_FILE)) or not exists(join(uri, MODEL_FILE)):
        raise CheckpointError(
            f"{uri}: no {CARD_FILE} and {MODEL_FILE}, so not a model directory; "
            "give a run's model/ or one of its checkpoints"
        )
    try:
        raw = json.loads(read_bytes(join(uri, CARD_FILE), limit=_MAX_CARD))
        settings: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in raw.pop("model").items()}
        model = Model(**settings)
        card = ModelCard(model=model, classes=Classes.from_json(json.dumps(raw.pop("classes")), uri), **raw)
        _check_types(model)
        _check_types(card)
    except (ValueError, TypeError, KeyError, AttributeError, typeguard.TypeCheckError) as error:
        raise CheckpointError(f"{join(uri, CARD_FILE)}: not a model card ({error})") from error
    if not 1 <= card.short_side <= _MAX_SIDE:
        raise CheckpointError(f"{join(uri, CARD_FILE)}: short_side is {card.short_side}; 1 to {_MAX_SIDE} are possible")
    if ":" in model.backbone:  # timm would fetch a network's description from a hub or a folder
        raise CheckpointError(f"{join(uri, CARD_FILE)}: backbone {model.backbone!r} is to be loaded from elsewhere")
    return card


def _check_types(value: Any) -> None:
    """Raise TypeCheckError where a field of a dataclass is not of its type: a card is a file that anyone may write."""
    for name, hint in typing.get_type_hints(type(value)).items():
        typeguard.check_type(getattr(value, name), hint)


def read_weights(uri: str, part: NetworkRole = "predictor") -> dict[str, Tensor]:
    """The tensors of a model directory, or those of the student or teacher in a checkpoint, without executing code.

    Raises CheckpointError where they cannot be read, hold anything but tensors, or lack the part.
    """
    if part != "predictor":
        return _part_of_state(join(uri, STATE_FILE), part)
    try:
        return safetensors.torch.load(read_bytes(join(uri, MODEL_FILE)))
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{join(uri, MODEL_FILE)}: cannot be read ({error})") from error


def _part_of_state(uri: str, part: NetworkRole) -> dict[str, Tensor]:
    if not exists(uri):
        raise CheckpointError(
            f"{uri}: missing; student and teacher are in a run's checkpoints, stages/<stage>/checkpoint_*"
        )
    content = read_bytes(uri)
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:  # torch.save compresses nothing; a bomb is compressed
            if any(entry.compress_type != zipfile.ZIP_STORED for entry in archive.infolist()):
                raise CheckpointError(f"{uri}: compressed, which torch.save's files are not")
        state = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)["method"]
        prefix = {"student": "student.", "teacher": "teacher.network."}[part]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
    except (zipfile.BadZipFile, RuntimeError, KeyError, TypeError, EOFError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{uri}: not a checkpoint of tensors ({str(error).splitlines()[0]})") from error
    if not tensors:
        raise CheckpointError(f"{uri}: its method has no {part}")
    return tensors


def load_model(uri: str, part: NetworkRole = "predictor") -> tuple[Segmenter, ModelCard]:
    """The network of a model directory, in evaluation mode, and its card. Raises CheckpointError.

    A checkpoint of a run also has the student's and the teacher's.
    """
    card = read_card(uri)
    settings = dataclasses.asdict(dataclasses.replace(card.model, pretrained=False, weights=None))
    network = build_segmenter(len(card.classes), **settings)
    try:
        network.load_network(read_weights(uri, part))
    except ValueError as error:
        raise CheckpointError(f"{uri}: {error}") from error
    return network.eval(), card


def copy_model(source: str, destination: str) -> None:
    """Copy a model directory, which may be remote. The card comes last: its presence means a whole model."""
    for name in (MODEL_FILE, CARD_FILE):
        write_bytes(join(destination, name), read_bytes(join(source, name)))
