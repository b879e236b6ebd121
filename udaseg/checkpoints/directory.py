"""Model directories: a network as safetensors with its card, and a run's state; they load without executing code."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import typing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import typeguard
from torch import Tensor

from udaseg.checkpoints.tensor_files import read_header, read_safetensors, read_state, require_finite
from udaseg.config import Model
from udaseg.data.classes import Classes
from udaseg.data.depth import require_depth_range
from udaseg.data.storage import exists, join, read_bytes, to_uri, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import CheckpointError
from udaseg.models.build import build_segmenter
from udaseg.models.image_sizes import ImageSizes
from udaseg.models.inference import check_views
from udaseg.models.segmenter import Segmenter
from udaseg.types import DepthRange, Location, NetworkRole, Resample

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
    resample: Resample = "antialias"
    """How images are brought to that size, see `udaseg.config.Data`."""
    image_sizes: ImageSizes | None = None
    """Which sizes its backbone takes; None = to be found by trial."""
    depth_range: DepthRange | None = None
    """Which values of images of one band and more than 8 bits are black and white, see `udaseg.data.depth`; that of the
    images that it is for, the target's. None = they have 8 bits."""
    window: tuple[int, int] | None = None
    """Height and width in pixels of the windows that it is evaluated by, see `udaseg.models.inference.predict`; None =
    whole images."""
    overlap: float = 0.5
    """Share of a window that the next one covers again."""
    old_classes: int | None = None
    """How many of the classes, the first ones, the network had before the stage taught it new ones; None = all."""
    weights_sha256: str | None = None
    """Of the file of weights, in hexadecimal, as it was written; None = not compared."""

    def size(self) -> dict[str, Any]:
        """The arguments of `udaseg.models.inference.predict` that say in what size the network sees images."""
        return {"short_side": self.short_side, "resample": self.resample}

    def views(self, **told: Any) -> dict[str, Any]:
        """The arguments of `udaseg.models.inference.predict`: what is told, and its own for what is not or is None."""
        own = {**self.size(), "window": self.window, "overlap": self.overlap}
        return own | {name: value for name, value in told.items() if value is not None}


def save_model(directory: Path, network: Segmenter, card: ModelCard) -> None:
    """Write a network as safetensors, with its card, and what image sizes it takes."""
    directory.mkdir(parents=True, exist_ok=True)
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in network.state_dict().items()}
    safetensors.torch.save_file(tensors, directory / MODEL_FILE)
    digest = hashlib.sha256((directory / MODEL_FILE).read_bytes()).hexdigest()
    card = dataclasses.replace(card, image_sizes=network.image_sizes, weights_sha256=digest)
    (directory / CARD_FILE).write_text(dump_json(dataclasses.asdict(card), indent=1))


def read_card(uri: str) -> ModelCard:
    """The card of a model directory. Raises CheckpointError where there is none or it cannot be read."""
    if not exists(join(uri, CARD_FILE)) or not exists(join(uri, MODEL_FILE)):
        lacking = f"{CARD_FILE} and {MODEL_FILE}" if exists(uri) else "such directory"
        raise CheckpointError(
            f"{uri}: no {lacking}, so not a model directory; give a run's model/ or one of its checkpoints"
        )
    try:
        raw = json.loads(read_bytes(join(uri, CARD_FILE), limit=_MAX_CARD))
        model = Model(**_fields(raw.pop("model")))
        _check_types(model)
        sizes = raw.pop("image_sizes", None)
        if sizes is not None:
            sizes = ImageSizes(**_fields(sizes))
            _check_types(sizes)
            sizes.check()
        classes = Classes.from_json(json.dumps(raw.pop("classes")), uri)
        card = ModelCard(model=model, classes=classes, image_sizes=sizes, **_fields(raw))
        _check_types(card)
        require_depth_range(card.depth_range, "depth_range")
        check_views(window=card.window, overlap=card.overlap)
    except (AttributeError, KeyError, OSError, RecursionError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{join(uri, CARD_FILE)}: not a model card ({reason})") from error
    if not 1 <= card.short_side <= _MAX_SIDE:
        raise CheckpointError(f"{join(uri, CARD_FILE)}: short_side is {card.short_side}; 1 to {_MAX_SIDE} are possible")
    if card.old_classes is not None and not 1 <= card.old_classes < len(classes):
        raise CheckpointError(
            f"{join(uri, CARD_FILE)}: old_classes is {card.old_classes}; 1 to {len(classes) - 1} are possible"
        )
    if ":" in model.backbone:  # timm would fetch a network's description from a hub or a folder
        raise CheckpointError(f"{join(uri, CARD_FILE)}: backbone {model.backbone!r} is to be loaded from elsewhere")
    return card


def _fields(section: Any) -> dict[str, Any]:
    """A section of a card, whose tuples JSON has as lists."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in section.items()}


def _check_types(value: Any) -> None:
    """Raise ValueError where a field of a dataclass is not of its type: a card is a file that anyone may write."""
    for name, hint in typing.get_type_hints(type(value)).items():
        try:
            typeguard.check_type(getattr(value, name), hint)
        except typeguard.TypeCheckError as error:
            raise ValueError(f"{name}: {error}") from None


def read_weights(uri: str, part: NetworkRole = "predictor") -> dict[str, Tensor]:
    """The tensors of a model directory, or those of the student or teacher in a checkpoint, without executing code.

    Raises CheckpointError where they cannot be read, are not the bytes that the card was written for, hold anything but
    finite tensors, or lack the part.
    """
    if part == "predictor":
        file = join(uri, MODEL_FILE)
        tensors = read_safetensors(file, sha256=read_card(uri).weights_sha256)
    else:
        file = join(uri, STATE_FILE)
        if not exists(file):
            raise CheckpointError(
                f"{file}: missing; student and teacher are in a run's checkpoints, stages/<stage>/checkpoint_*"
            )
        prefixes = {"student": "student.", "teacher": "teacher.network."}
        if part not in prefixes:
            raise CheckpointError(f"no network {part!r}; there are predictor, {', '.join(prefixes)}")
        prefix = prefixes[part]
        state = read_state(file)["method"]
        tensors = {name.removeprefix(prefix): tensor for name, tensor in state.items() if name.startswith(prefix)}
        if not tensors:
            raise CheckpointError(f"{file}: its method has no {part}")
    require_finite(tensors, file)
    return tensors


def check_checkpoint(uri: str, part: NetworkRole = "predictor") -> ModelCard:
    """The card of a model directory, when the network it describes is sure to be the one whose tensors are there.

    Nothing of the network is built in memory. Raises CheckpointError, naming the file, for whatever `load_model` would.
    """
    return _checked(uri, part)[0]


def _checked(uri: str, part: NetworkRole) -> tuple[ModelCard, dict[str, Tensor]]:
    card = read_card(uri)
    with torch.device("meta"):  # a stranger's card may describe any number of gigabytes
        network = _build(uri, card)
    try:
        if part == "predictor":
            network.matched(read_header(join(uri, MODEL_FILE)))
        tensors = read_weights(uri, part)
        network.matched(tensors)
        own = network.state_dict()
        if wrong := [n for n, t in tensors.items() if n in own and t.is_floating_point() != own[n].is_floating_point()]:
            raise ValueError(f"{wrong[0]} is of {tensors[wrong[0]].dtype}, the network's of {own[wrong[0]].dtype}")
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{uri}: {error}") from error
    return card, tensors


def _build(uri: str, card: ModelCard) -> Segmenter:
    settings = dataclasses.asdict(dataclasses.replace(card.model, pretrained=False, weights=None))
    try:
        return build_segmenter(len(card.classes), image_sizes=card.image_sizes, **settings)
    except (ArithmeticError, RuntimeError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:500]
        raise CheckpointError(f"{join(uri, CARD_FILE)}: no network can be built from it: {reason}") from error


def load_model(uri: Location, part: NetworkRole = "predictor") -> tuple[Segmenter, ModelCard]:
    """The network of a model directory, in evaluation mode, and its card. Raises CheckpointError.

    A checkpoint of a run also has the student's and the teacher's.
    """
    uri = to_uri(uri)
    card, tensors = _checked(uri, part)
    network = _build(uri, card)
    network.load_network(tensors)
    return network.eval(), card


def copy_model(source: str, destination: str, **changed: Any) -> None:
    """Copy a model directory, which may be remote. The card comes last: its presence means a whole model.

    `changed` are fields of the copy's card that are other than the original's.
    """
    card = read_bytes(join(source, CARD_FILE))
    write_bytes(join(destination, MODEL_FILE), read_bytes(join(source, MODEL_FILE)))
    write_bytes(
        join(destination, CARD_FILE), dump_json(json.loads(card) | changed, indent=1).encode() if changed else card
    )
