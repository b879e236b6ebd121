"""What the training loop asks of a method, and the optimiser that most methods use.

A method is one class in one file of `methods/`. It is an `nn.Module`; all that changes in it is a parameter or a
persistent buffer, so that `state_dict` is all there is to save.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:  # the configuration needs `Optim` alone, and is read where there is no network
    import torch
    from torch import nn

    from udaseg.models.segmenter import Segmenter
    from udaseg.types import Batch, Loss
from udaseg.config import Optim


class Method(Protocol):
    """The interface of `methods/*`; every implementation is also an `nn.Module`."""

    predictor: nn.Module
    """The network that is evaluated: the teacher's where there is one."""

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        """One tuple of terms per graph; the loop backpropagates and frees each before the next is built.

        Args:
            batches: the streams that the stage names, e.g. "source" and "target", augmented weakly.
            step: in [0, total_steps).
            total_steps: steps of the stage.
        """
        ...

    def after_step(self) -> None:
        """Called when the optimisers have stepped: teachers and banks follow here."""
        ...

    def optimizers(self, optim: Optim) -> list[torch.optim.Optimizer]:
        """The optimisers of everything that learns."""
        ...


class MethodConfig(Protocol):
    """A frozen dataclass, a method's numbers under the paper's names."""

    def build(self, student: Segmenter, *, seed: int) -> Any:
        """The method around a student. `seed` is the key of the run and stage for all random draws."""
        ...


def build_optimizer(student: Segmenter, optim: Optim, *, heads: Iterable[nn.Module] = ()) -> torch.optim.Optimizer:
    """SGD or AdamW over a student; its head and a method's own `heads` learn at `head_lr_factor` times the rate."""
    import torch

    backbone, head = student.parameter_groups()
    head = [*head, *(parameter for module in heads for parameter in module.parameters())]
    positions = {id(p) for name, p in student.named_parameters() if "pos_embed" in name}
    groups: list[dict[str, Any]] = []
    for parameters, lr in ((backbone, optim.lr), (head, optim.lr * optim.head_lr_factor)):
        decays = [optim.decay_vectors or (p.ndim > 1 and id(p) not in positions) for p in parameters]
        for decay, settings in ((True, {}), (False, {"weight_decay": 0.0})):
            chosen = [p for p, does in zip(parameters, decays, strict=True) if does == decay]
            groups.append({"params": chosen, "lr": lr, "base_lr": lr, **settings})
    groups = [group for group in groups if group["params"]]
    if optim.name == "sgd":
        return torch.optim.SGD(groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay)
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay)
