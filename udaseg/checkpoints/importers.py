"""Checkpoints of other repositories: which format a file is, the network it describes, and the names of its tensors."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from udaseg.checkpoints.directory import ModelCard
from udaseg.checkpoints.format import Format, Misfit, State
from udaseg.checkpoints.formats import FORMATS
from udaseg.checkpoints.tensor_files import read_safetensors, read_torch, require_finite
from udaseg.config import Model
from udaseg.data.classes import Classes
from udaseg.data.storage import filesystem
from udaseg.errors import CheckpointError, ConfigError
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import Segmenter


@dataclass(frozen=True, kw_only=True)
class Imported:
    """A network with the tensors of a file."""

    network: Segmenter
    """On the device meta but for its state."""
    card: ModelCard
    format: str
    notes: tuple[str, ...]
    """What was guessed or left out, for people."""


def import_checkpoint(
    uri: str, classes: Classes, *, format: str | None = None, short_side: int | None = None
) -> Imported:
    """Read a checkpoint of another repository, without executing code.

    Args:
        uri: a file of torch or safetensors.
        classes: what its K outputs are.
        format: one of `FORMATS`; None = guessed by the names of its tensors.
        short_side: pixels of an image's short side that the network sees; None = as its authors evaluate.

    Raises CheckpointError, naming the first tensor that does not fit, and the format that the file may be instead.
    """
    state = read_network(uri)
    likely = formats_like(state)
    notes = []
    if format is None:
        if not likely:
            first = " ".join(next(iter(state)).split())[:100]
            raise CheckpointError(f"{uri}: its tensors ({first} ...) are of none of the formats {', '.join(FORMATS)}")
        format = likely[0]
        notes.append(f"format: {' or '.join(likely)}, by the names of its tensors")
    if format not in FORMATS:
        raise ConfigError(f"no format {format!r}; there are {', '.join(FORMATS)}")
    form = FORMATS[format]
    try:
        if format not in likely:
            wanted = next(s for s in form.signs if not any(re.search(s, name) for name in state))
            raise Misfit(f"it has no tensor like {_readable(wanted)}")
        dropped = [name for name in state if re.search(form.dropped, name)]
        network, model, left_out = _network({k: v for k, v in state.items() if k not in dropped}, form, classes)
    except ValueError as error:  # a Misfit, or of a backbone that cannot be built
        hint = "" if format in likely or not likely else f"; this looks like {' or '.join(likely)}"
        reason = " ".join(str(error).split())  # names in a file may hold anything
        raise CheckpointError(f"{uri}: no checkpoint of {format}: {reason}{hint}") from None
    parts = sorted({name.split(".")[0] for name in [*dropped, *left_out]})
    notes += [f"left out: {', '.join(parts)}"] if parts else []
    side, window = form.view(state)
    require_finite(network.state_dict(), uri)
    card = ModelCard(
        model=model,
        classes=classes,
        short_side=short_side or side,
        resample=form.resample(state),
        window=window,
        overlap=form.overlap,
        recipe="import",
        stage=format,
        step=0,
    )
    return Imported(network=network, card=card, format=format, notes=tuple(notes))


def formats_like(state: State) -> list[str]:
    """The formats whose signs are there, the likeliest first."""
    return [
        name for name, form in FORMATS.items() if all(any(re.search(sign, key) for key in state) for sign in form.signs)
    ]


def _readable(pattern: str) -> str:
    return re.sub(r"\\|\^|\$", "", pattern)


# --- reading --------------------------------------------------------------------------------------------------------

_WRAPPERS = ("state_dict", "model_state", "model", "ResNet101")
"""Keys that a network is kept under, beside what else training needs."""


def read_network(uri: str) -> dict[str, Tensor]:
    """The tensors of a network in a file, by the authors' names: the student's, where there is a teacher too.

    Raises CheckpointError where it cannot be read, or has no tensors.
    """
    content: Any = read_safetensors(uri) if filesystem(uri)[1].endswith(".safetensors") else read_torch(uri)
    while isinstance(content, Mapping):
        inner = next((content[key] for key in _WRAPPERS if isinstance(content.get(key), Mapping)), None)
        if inner is None:
            break
        content = inner
    if not isinstance(content, Mapping) or not content:
        raise CheckpointError(f"{uri}: holds no tensors by name, so no checkpoint of a network")
    if wrong := [key for key, value in content.items() if not isinstance(key, str) or not isinstance(value, Tensor)]:
        raise CheckpointError(f"{uri}: {str(wrong[0])[:60]!r} in it is no tensor, so it is no network's state")
    state = {re.sub(r"^(module\.)+", "", name): tensor for name, tensor in content.items()}
    if any(name.startswith("model.") for name in state):  # beside ema_model., imnet_model.
        state = {k.removeprefix("model."): tensor for k, tensor in state.items() if k.startswith("model.")}
    return state


# --- fitting --------------------------------------------------------------------------------------------------------


def _network(state: State, form: Format, classes: Classes) -> tuple[Segmenter, Model, list[str]]:
    """The network with a file's tensors, its settings, and the names that `arrange` left out."""
    arranged = form.arrange(state)
    theirs = {}
    for name in arranged:
        ours = name
        for pattern, replacement in form.names:
            ours = re.sub(pattern, replacement, ours)
        theirs[ours] = name
    model = form.settings(arranged)
    classifier = next((k for k in ("net.head.classify.weight", "net.head.branches.0.weight") if k in theirs), None)
    if classifier is None:
        raise Misfit("it has no classifier")
    count = len(arranged[theirs[classifier]])
    if count != len(classes):
        raise Misfit(f"{theirs[classifier]} is of {count} classes, but --classes has {len(classes)}")
    with torch.device("meta"):
        network = build_segmenter(count, **dataclasses.asdict(model))
    mine = network.state_dict()
    fitting = {}
    for ours, name in theirs.items():
        if ours not in mine:
            raise Misfit(f"{name} has no counterpart")
        tensor, wanted = arranged[name], mine[ours]
        if tensor.ndim == 2 and wanted.shape == (*tensor.shape, 1, 1):  # a linear layer as a convolution
            tensor = tensor[:, :, None, None]
        if tensor.shape != wanted.shape:
            raise Misfit(f"{name} has shape {tuple(tensor.shape)}, where {tuple(wanted.shape)} is needed")
        fitting[ours] = tensor.to(wanted.dtype)
    for ours, wanted in mine.items():
        if ours.endswith("num_batches_tracked"):  # which torch before 0.4.1 did not count
            fitting.setdefault(ours, torch.zeros(wanted.shape, dtype=wanted.dtype))
        if ours not in fitting:
            raise Misfit(f"it lacks {_their_name(ours, theirs)}")
    network.load_state_dict(fitting, assign=True)
    return network.eval(), model, [name for name in state if name not in arranged]


def _their_name(ours: str, theirs: Mapping[str, str]) -> str:
    """The authors' name of a tensor that is missing, by its neighbour of the same layer, or ours."""
    layer, _, leaf = ours.rpartition(".")
    beside = next((name for key, name in theirs.items() if key.rpartition(".")[0] == layer), None)
    return f"what becomes {ours}" if beside is None else f"{beside.rpartition('.')[0]}.{leaf}"
