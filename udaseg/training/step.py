"""The training loop of one process: its state, and one step. Nothing here knows of Ray."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.checkpoints.tensor_files import read_state
from udaseg.config import Stage
from udaseg.distributed import average_batch_norm, mean_over_ranks, rank
from udaseg.errors import CheckpointError, TrainingError
from udaseg.methods.base import Method
from udaseg.models.build import build_segmenter
from udaseg.rng import key_to_seed
from udaseg.training.averaging import GradientAverage
from udaseg.types import Batch

_NAMED = 4
"""Parameters that an error names."""


class _Unread(NamedTuple):
    """What a step found, still on the device."""

    step: int
    names: tuple[str, ...]
    numbers: Tensor
    """The losses by these names, then every optimiser's gradient norm, then the words of `GradientAverage.finish`."""


@dataclass
class RunState:
    """All that changes in a run: saving, resuming and moving it is this and nothing else."""

    method: Method
    optimizers: list[Optimizer]
    step: int = 0
    """Steps done."""
    bf16_gradients: bool = False
    """Ranks exchange gradients in bfloat16."""
    averages: dict[int, GradientAverage] = field(default_factory=dict, init=False, repr=False)
    """Of an optimiser's gradients over ranks, by its number."""
    _unread: list[_Unread] = field(default_factory=list, init=False, repr=False)
    _sound: Tensor | None = field(default=None, init=False, repr=False)
    _values: dict[str, float] = field(default_factory=dict, init=False, repr=False)

    def take_in(self, names: Iterable[str], losses: Tensor, gathered: list[tuple[Tensor, Tensor]]) -> Tensor:
        """Keep a step's losses, and each optimiser's gradient norm and word of `GradientAverage.finish`, for `read`.

        Returns a scalar tensor: 0 if all that was found since the start is finite, and each optimiser has a gradient;
        else 1.
        """
        found = [*(norm for norm, _ in gathered), *(reached for _, reached in gathered)]
        numbers = torch.cat([losses, *(x.detach().to(losses, non_blocking=True).view(1) for x in found)])
        self._unread.append(_Unread(self.step, tuple(names), numbers))
        sound = numbers.isfinite().all() & (numbers[len(numbers) - len(gathered) :] > 0).all()
        self._sound = sound if self._sound is None else self._sound & sound
        return (~self._sound).float()

    def read(self) -> dict[str, float]:
        """Each loss of the last step by name, the mean over ranks, and "grad_norm", that of the first optimiser.

        This is where the host waits for the device. Raises TrainingError, naming the first step since the last reading
        where a loss or gradient was not finite, an optimiser had no gradient or workers disagree which parameters have
        one; no optimiser has stepped since.
        """
        unread, self._unread = self._unread, []
        numbers = iter(torch.cat([x.numbers for x in unread]).tolist() if unread else [])
        count = len(self.optimizers)
        for step, names, _ in unread:
            losses = {name: next(numbers) for name in names}
            norms, reached = ([next(numbers) for _ in range(count)] for _ in range(2))
            self._values = losses | {"grad_norm": norms[0] if norms else 0.0}
            if -1 in reached:
                self.step = step
                raise TrainingError(
                    f"step {step}: workers disagree which parameters of optimiser {reached.index(-1)} have a gradient; "
                    "which losses a step has must not depend on its images"
                )
            if 0 in reached:
                self.step = step
                idle = reached.index(0)
                raise TrainingError(
                    f"optimiser {idle}: no loss has a gradient with respect to its parameters: "
                    f"{_listed(self.names(idle))}"
                )
            if not all(map(math.isfinite, [*norms, *losses.values()])):
                self.step = step
                seen = ", ".join(f"{name} {value:.4g}" for name, value in losses.items())
                raise TrainingError(
                    f"step {step}: a loss or gradient is not finite (gradient norm {self._values['grad_norm']}; "
                    f"{seen}). Lower optim.lr, set optim.clip, or look for images without any labelled pixel"
                )
        return dict(self._values)

    def begin(self, number: int) -> None:
        """Get ready to average an optimiser's gradients, before a step's first backward pass."""
        if number not in self.averages:
            self.averages[number] = GradientAverage(self.parameters(number), bf16=self.bf16_gradients)
        self.averages[number].begin()

    def parameters(self, number: int) -> list[nn.Parameter]:
        """Those of an optimiser."""
        return [p for group in self.optimizers[number].param_groups for p in group["params"]]

    def names(self, number: int, *, frozen: bool = False) -> list[str]:
        """The names of an optimiser's parameters, or of those of them that are frozen."""
        names = {id(p): name for name, p in self.method.named_parameters()}
        return [names.get(id(p), "?") for p in self.parameters(number) if not frozen or not p.requires_grad]

    def save(self, path: Path) -> None:
        """Write the state to a file that loads without executing code; raises as `read` does."""
        self.read()
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
                for mine, theirs in zip(optimizer.param_groups, saved["param_groups"], strict=True):
                    theirs |= {"fused": mine["fused"]} if "fused" in mine else {}  # of this device, not of that before
                optimizer.load_state_dict(saved)
                _fit_moments(optimizer)
        except (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())[:500]
            raise CheckpointError(f"{path}: not a checkpoint of this stage ({reason})") from error
        self.step = state["step"]


def _fit_moments(optimizer: Optimizer) -> None:
    """Lay what an optimiser keeps of a parameter out as the parameter is: fused ones read both in one order.

    Raises ValueError where it has another shape: it would fail at its step.
    """
    for parameter, kept in optimizer.state.items():
        for name, value in kept.items():
            if isinstance(value, Tensor) and value.ndim:
                if value.shape != parameter.shape:
                    raise ValueError(f"{name} of a parameter {tuple(parameter.shape)} has shape {tuple(value.shape)}")
                kept[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


def build_state(
    stage: Stage,
    num_classes: int,
    *,
    seed: int,
    init: Mapping[str, Tensor] | None,
    device: torch.device,
    bf16: bool,
    channels_last: bool = True,
) -> RunState:
    """A stage's method before its first step.

    Args:
        stage: the configuration.
        num_classes: K.
        seed: key of the run and stage.
        init: state of the network to start from; None = from the backbone's weights.
        device: where everything lives.
        bf16: autocast the network to bfloat16.
        channels_last: how the weights of convolutions lie in memory.
    """
    torch.manual_seed(key_to_seed(seed, "init"))
    model = stage.model if init is None else dataclasses.replace(stage.model, pretrained=False, weights=None)
    student = build_segmenter(num_classes, seed=seed, bf16=bf16, **dataclasses.asdict(model))
    if init is not None:
        student.load_network(init, background=stage.method.background)
    method: Method = stage.method.build(student, seed=seed)
    layout = torch.channels_last if channels_last else torch.contiguous_format
    method = method.to(device=device, memory_format=layout)  # type: ignore[call-overload]
    return RunState(method, method.optimizers(stage.optim))


def train_step(state: RunState, batches: Mapping[str, Batch], stage: Stage, *, seed: int) -> dict[str, float]:
    """`queue_step`, and what it found: `RunState.read`, whose errors it raises too."""
    queue_step(state, batches, stage, seed=seed)
    return state.read()


def queue_step(state: RunState, batches: Mapping[str, Batch], stage: Stage, *, seed: int) -> None:
    """One step of the loop: forward and backward per graph, averaged gradients, optimisers, teacher.

    The host does not wait for a GPU in it. What is found stays there until `RunState.read`; a loss or gradient that is
    not finite keeps fused optimisers from stepping on the device. Before others step it is read.

    Raises:
        TrainingError: an optimiser has frozen parameters; or what `RunState.read` raises, on every rank, since the
            averaged gradient carries it.
    """
    method, step = state.method, state.step
    method.train()
    torch.manual_seed(key_to_seed(seed, step, rank(), "dropout"))
    for number, optimizer in enumerate(state.optimizers):
        optimizer.zero_grad(set_to_none=True)
        state.begin(number)
        factor = method.schedule(number, stage.optim).lr_factor(step, stage.steps)
        for group in optimizer.param_groups:
            group["lr"] = group.setdefault("base_lr", group["lr"]) * factor

    logs: dict[str, Tensor] = {}
    for losses in method.losses(batches, step, stage.steps):
        terms = [loss.weight * loss.value for loss in losses if loss.weight and loss.value.requires_grad]
        if terms:
            torch.stack(terms).sum().backward()
        logs |= {loss.name: loss.value.detach() for loss in losses}

    device = next(method.parameters()).device
    values = [value.to(device, torch.float64, non_blocking=True) for value in logs.values()]
    gathered = [_gather(state, number, stage) for number in range(len(state.optimizers))]
    # After all buckets, since ranks that disagree which parameters have a gradient begin these in other orders.
    unsound = state.take_in(logs, mean_over_ranks(torch.stack(values)), gathered)
    if not all(map(_asks, state.optimizers)):
        state.read()
    for optimizer in state.optimizers:
        if _asks(optimizer):
            optimizer.grad_scale, optimizer.found_inf = None, unsound  # type: ignore[attr-defined]
        begin_momentum(optimizer)
        optimizer.step()
    average_batch_norm(method)
    method.after_step()
    state.step += 1


def begin_momentum(optimizer: Optimizer) -> None:
    """Give parameters that have their first gradient the momentum of nothing before it.

    Fused SGD makes the buffers of a group all at once, in the first step, and fails where a parameter comes later.
    """
    if not isinstance(optimizer, torch.optim.SGD):
        return
    for group in optimizer.param_groups:
        if group["fused"] and group["momentum"]:
            for parameter in group["params"]:
                state = optimizer.state[parameter]
                if parameter.grad is not None and state.get("momentum_buffer") is None:
                    state["momentum_buffer"] = torch.zeros_like(parameter)


def _asks(optimizer: Optimizer) -> bool:
    """Whether an optimiser looks on the device, in `found_inf`, before it steps, as fused ones do for GradScaler."""
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _gather(state: RunState, number: int, stage: Stage) -> tuple[Tensor, Tensor]:
    """Average an optimiser's gradients over ranks and clip them; returns their norm before, and what `finish` does.

    Raises TrainingError, naming parameters, where some are frozen: they would never learn, without a word.
    """
    parameters = state.parameters(number)
    if not all(p.requires_grad for p in parameters):
        frozen = _listed(state.names(number, frozen=True))
        raise TrainingError(f"optimiser {number}: frozen parameters never learn: {frozen}; leave them out")
    reached = state.averages[number].finish()
    clip = state.method.schedule(number, stage.optim).clip or math.inf
    return torch.nn.utils.clip_grad_norm_(parameters, clip), reached


def _listed(names: list[str]) -> str:
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")
