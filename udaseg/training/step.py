"""The training loop of one process: its state, and one step. Nothing here knows of Ray."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor
from torch.optim import Optimizer

from udaseg.checkpoints.tensor_files import read_state
from udaseg.config import Stage
from udaseg.distributed import average_batch_norm, average_gradients, rank
from udaseg.errors import CheckpointError, TrainingError
from udaseg.methods.base import Method
from udaseg.models.build import build_segmenter
from udaseg.rng import key_to_seed
from udaseg.types import Batch

_NAMED = 4
"""Parameters that an error names."""


@dataclass
class RunState:
    """All that changes in a run: saving, resuming and moving it is this and nothing else."""

    method: Method
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
        state = read_state(str(path))
        try:
            if not isinstance(state["step"], int) or state["step"] < 0:
                raise ValueError(f"its step is {state['step']!r}")
            self.method.load_state_dict(state["method"])
            for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
                optimizer.load_state_dict(saved)
                _check_moments(optimizer)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"{path}: not a checkpoint of this stage ({reason})") from error
        self.step = state["step"]


def _check_moments(optimizer: Optimizer) -> None:
    """Raise ValueError where what an optimiser keeps of a parameter has another shape: it would fail at its step."""
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.ndim and value.shape != parameter.shape:
                raise ValueError(f"{name} of a parameter {tuple(parameter.shape)} has shape {tuple(value.shape)}")


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
    student = build_segmenter(num_classes, seed=seed, bf16=bf16, **dataclasses.asdict(model))
    if init is not None:
        student.load_network(init)
    method: Method = stage.method.build(student, seed=seed)
    method = method.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    return RunState(method, method.optimizers(stage.optim))


def train_step(state: RunState, batches: Mapping[str, Batch], stage: Stage, *, seed: int) -> dict[str, float]:
    """One step of the loop: forward and backward per graph, averaged gradients, optimisers, teacher.

    Returns:
        Each loss by name as this rank sees it, and "grad_norm", that of the first optimiser.

    Raises:
        TrainingError: a loss or gradient is not finite, or an optimiser has frozen parameters or no gradient at all;
            on every rank, since the averaged gradient carries it.
    """
    method, step = state.method, state.step
    method.train()
    torch.manual_seed(key_to_seed(seed, step, rank(), "dropout"))
    for number, optimizer in enumerate(state.optimizers):
        optimizer.zero_grad(set_to_none=True)
        factor = method.schedule(number, stage.optim).lr_factor(step, stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor

    logs: dict[str, Tensor] = {}
    for losses in method.losses(batches, step, stage.steps):
        terms = [loss.weight * loss.value for loss in losses if loss.weight and loss.value.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()
        logs |= {loss.name: loss.value.detach() for loss in losses}

    norms = [_gather(method, number, optimizer, stage) for number, optimizer in enumerate(state.optimizers)]
    norm = norms[0] if norms else 0.0
    values = {name: float(value) for name, value in logs.items()}
    if not all(map(math.isfinite, [*norms, *values.values()])):
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


def _gather(method: Method, number: int, optimizer: Optimizer, stage: Stage) -> float:
    """Average an optimiser's gradients over ranks and clip them; returns their norm before.

    Raises TrainingError, naming parameters, where some are frozen or none has a gradient on any rank: they would never
    learn, without a word.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    names = {id(p): name for name, p in method.named_parameters()}
    if frozen := [names.get(id(p), "?") for p in parameters if not p.requires_grad]:
        raise TrainingError(f"optimiser {number}: frozen parameters never learn: {_listed(frozen)}; leave them out")
    if not average_gradients(parameters):
        idle = _listed([names.get(id(p), "?") for p in parameters])
        raise TrainingError(f"optimiser {number}: no loss has a gradient with respect to its parameters: {idle}")
    clip = method.schedule(number, stage.optim).clip or math.inf
    return float(torch.nn.utils.clip_grad_norm_(parameters, clip))


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
