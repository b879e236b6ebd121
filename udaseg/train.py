"""The training loop of one process, and saving and loading. Nothing here knows of Ray."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import pickle
import typing
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
import typeguard
from torch import Tensor
from torch.optim import Optimizer

from udaseg.augment import strong, weak
from udaseg.config import Data, Model, Stage
from udaseg.data.schema import Classes, exists, join, read_bytes, write_bytes
from udaseg.dist import average_batch_norm, average_gradients, rank
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import Segmenter
from udaseg.rng import key_to_seed
from udaseg.thresholds import decode_confidence
from udaseg.types import Batch, Part

MODEL_FILE, CARD_FILE, STATE_FILE = "model.safetensors", "model.json", "state.pt"
_MAX_CARD = 1 << 20  # bytes
_MAX_SIDE = 1 << 14  # pixels


class TrainingError(RuntimeError):
    """Training that cannot go on, and would not on a second try."""


class CheckpointError(ValueError):
    """A checkpoint that cannot be used; the message says what is wrong and what to do."""


@dataclass
class RunState:
    """All that changes in a run: saving, resuming and moving it is this and nothing else."""

    method: Any
    """A `Method` that is an `nn.Module`."""
    optimizers: list[Optimizer]
    step: int = 0
    """Steps done."""

    def save(self, path: Path) -> None:
        """Write the state to a file that loads without executing code."""
        torch.save(
            {
                "method": self.method.state_dict(),
                "optimizers": [optimizer.state_dict() for optimizer in self.optimizers],
                "step": self.step,
            },
            path,
        )

    def load(self, path: Path) -> None:
        """Take over a state of `save`. Raises CheckpointError where it is of another method or network."""
        device = next(self.method.parameters()).device
        try:
            state = torch.load(path, map_location=device, weights_only=True)
            self.method.load_state_dict(state["method"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
        except (RuntimeError, KeyError, ValueError, OSError, EOFError, pickle.UnpicklingError) as error:
            raise CheckpointError(f"{path}: not a checkpoint of this stage ({error})") from error
        self.step = int(state["step"])


def build_state(
    stage: Stage, num_classes: int, *, seed: int, init: Mapping[str, Tensor] | None, device: torch.device, bf16: bool
) -> RunState:
    """A stage's method before its first step.

    Args:
        stage: the configuration.
        num_classes: K.
        seed: key of the run and stage.
        init: state of the network to start from; None = from the backbone's weights.
        device: where everything lives.
        bf16: autocast the network to bfloat16.
    """
    torch.manual_seed(key_to_seed(seed, "init"))
    model = stage.model if init is None else dataclasses.replace(stage.model, pretrained=False, weights=None)
    student = build_segmenter(num_classes, **dataclasses.asdict(model))
    student.bf16, student.seed = bf16, seed
    if init is not None:
        student.load_network(init)
    method = stage.method.build(student, seed=seed).to(device=device, memory_format=torch.channels_last)
    return RunState(method, method.optimizers(stage.optim))


def to_batches(columns: Mapping[str, np.ndarray], data: Data, *, seed: int, device: torch.device) -> dict[str, Batch]:
    """Streamed uint8 columns as augmented batches on the device, keyed per sample.

    Args:
        columns: "index" (B,), and per stream "<name>_image" (B, H, W, 3), and maybe "<name>_label" and
            "<name>_confidence" (B, H, W).
        data: augmentation settings.
        seed: key of the run and stage.
        device: where the batches go.
    """
    index = torch.from_numpy(columns["index"].astype(np.int64)).to(device)
    batches = {}
    for name, stream in data.streams().items():
        image = torch.tensor(columns[f"{name}_image"]).to(device)  # a copy: Arrow's memory is read-only
        label, code = columns.get(f"{name}_label"), columns.get(f"{name}_confidence")
        batch = Batch(
            image=image.permute(0, 3, 1, 2).float() / 255,  # channels last, as it comes: convolutions are faster so
            index=index,
            label=None if label is None else torch.tensor(label).to(device).long(),
            weight=None if code is None else torch.from_numpy(decode_confidence(code)).to(device),
        )
        batch = weak(batch, seed=seed, purpose=name, flip=data.flip, rotation=data.rotation)
        if stream.jitter or stream.blur:
            view = strong(
                batch.image, index, seed=seed, purpose=name, jitter=stream.jitter, blur_probability=stream.blur
            )
            batch = replace(batch, image=view)
        batches[name] = batch
    return batches


def train_step(state: RunState, batches: Mapping[str, Batch], stage: Stage, *, seed: int) -> dict[str, float]:
    """One step of the loop: forward and backward per graph, averaged gradients, optimisers, teacher.

    Returns:
        Each loss by name as this rank sees it, and "grad_norm".

    Raises:
        TrainingError: a loss or gradient is not finite; on every rank, since the averaged gradient carries it.
    """
    method, step = state.method, state.step
    method.train()
    torch.manual_seed(key_to_seed(seed, step, rank(), "dropout"))
    for optimizer in state.optimizers:
        optimizer.zero_grad(set_to_none=True)
        factor = stage.optim.lr_factor(step, stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = group["base_lr"] * factor

    logs: dict[str, Tensor] = {}
    for losses in method.losses(batches, step, stage.steps):
        terms = [loss.weight * loss.value for loss in losses if loss.weight and loss.value.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()
        logs |= {loss.name: loss.value.detach() for loss in losses}

    parameters = [p for optimizer in state.optimizers for group in optimizer.param_groups for p in group["params"]]
    norm = 0.0
    if parameters:
        average_gradients(parameters)
        clip = stage.optim.clip or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(parameters, clip))
    values = {name: float(value) for name, value in logs.items()}
    if not math.isfinite(norm) or not all(map(math.isfinite, values.values())):
        seen = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
        raise TrainingError(
            f"step {step}: a loss or gradient is not finite (gradient norm {norm}; {seen}). "
            "Lower optim.lr, set optim.clip, or look for images without any labelled pixel"
        )
    for optimizer in state.optimizers:
        optimizer.step()
    average_batch_norm(method)
    method.after_step()
    state.step += 1
    return values | {"grad_norm": norm}


# --- model directories ----------------------------------------------------------------------------------------------


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


def read_weights(uri: str, part: Part = "predictor") -> dict[str, Tensor]:
    """The tensors of a model directory, or those of the student or teacher in a checkpoint, without executing code.

    Raises CheckpointError where they cannot be read, hold anything but tensors, or lack the part.
    """
    if part != "predictor":
        return _part_of_state(join(uri, STATE_FILE), part)
    try:
        return safetensors.torch.load(read_bytes(join(uri, MODEL_FILE)))
    except (safetensors.SafetensorError, FileNotFoundError) as error:
        raise CheckpointError(f"{join(uri, MODEL_FILE)}: cannot be read ({error})") from error


def _part_of_state(uri: str, part: Part) -> dict[str, Tensor]:
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


def load_model(uri: str, part: Part = "predictor") -> tuple[Segmenter, ModelCard]:
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
