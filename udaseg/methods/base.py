"""What the training loop asks of a method, and the optimiser that most methods use.

A method is one class in one file of `methods/`. All that changes in it is a parameter or a persistent buffer, so that
`state_dict` is all there is to save.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.models.translator import Translator
from udaseg.types import Batch, Loss


class Method(nn.Module):
    """A student and how it learns; what a method does not say otherwise is as here: one optimiser, nothing else moves.

    The student lies under the name `student`, a teacher's network under `teacher.network`: checkpoints name them so.
    """

    student: Segmenter

    @property
    def predictor(self) -> Segmenter:
        """The network that is evaluated: the teacher's where there is one, unless `config.evaluate` is "student"."""
        teacher: EMATeacher | None = getattr(self, "teacher", None)
        if teacher is None or getattr(self.config, "evaluate", "teacher") == "student":
            return self.student
        return teacher.network

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        """One tuple of terms per graph; the loop backpropagates and frees each before the next is built.

        A network that judges another one (a discriminator) is called with detached weights where it is not to learn,
        by `torch.func.functional_call`: nothing is frozen and thawed within a step.

        Args:
            batches: the streams that the stage names, e.g. "source" and "target", augmented weakly.
            step: in [0, total_steps).
            total_steps: steps of the stage.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Called when the optimisers have stepped: teachers and banks follow here."""

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        """The optimisers of everything that learns; each gets a gradient at every step, or training ends.

        The learning rates that they are made with are those of step 0, before warm-up and decay. Gradients are averaged
        over ranks and clipped per optimiser.
        """
        return [build_optimizer(self.student, optim)]

    def schedule(self, number: int, optim: Optim) -> Optim:
        """The settings whose decay, warm-up and clip norm an optimiser follows: the stage's, unless a method says more.

        Args:
            number: the optimiser's place in what `optimizers` returns.
            optim: of the stage.
        """
        return optim


class MethodConfig:
    """What each method's `Config` extends, a frozen dataclass of its numbers under the paper's names.

    What a stage depends on beside them is as here, unless a method has a field or a property of the same name.
    """

    @property
    def group_size(self) -> int | None:
        """Consecutive samples that the method couples, which `data.group_size` must equal; None = it couples none."""
        return None

    @property
    def old_classes(self) -> int | None:
        """The number of classes that the network of `init_from` has, where its head grows."""
        return None

    @property
    def background(self) -> int | None:
        """The class that pixels of new ones had, where the head of the network of `init_from` grows."""
        return None

    @property
    def reads_candidates(self) -> bool:
        """Whether the stream "source" has the labels "candidates", which no other method reads."""
        return False

    @property
    def translates(self) -> bool:
        """Whether the stage learns a `translator`, by which a later one may translate the source."""
        return False

    def translator(self, state: Mapping[str, Tensor] | None = None) -> Translator:
        """The generator of a method that `translates`, with the weights in a state of the method where one is given."""
        raise NotImplementedError

    def build(self, student: Segmenter, *, seed: int) -> Method:
        """The method around a student; `seed` is the key of the run and stage for all random draws.

        Raises ValueError, naming the field, where settings do not fit each other or the student.
        """
        raise NotImplementedError


def build_optimizer(student: Segmenter, optim: Optim, *, heads: Iterable[nn.Module] = ()) -> Optimizer:
    """SGD or AdamW over a student; its head and a method's own `heads` learn at `head_lr_factor` times the rate."""
    heads = list(heads)
    backbone, head = student.parameter_groups()
    head = [*head, *(parameter for module in heads for parameter in module.parameters())]
    positions = {id(p) for name, p in student.named_parameters() if "pos_embed" in name}
    named = [*student.named_parameters(), *(pair for module in heads for pair in module.named_parameters())]
    spared = {id(p) for name, p in named if any(part in name for part in optim.undecayed)}
    groups: list[dict[str, Any]] = []
    for parameters, lr in ((backbone, optim.lr), (head, optim.lr * optim.head_lr_factor)):
        decays = [
            id(p) not in spared and (optim.decay_vectors or (p.ndim > 1 and id(p) not in positions)) for p in parameters
        ]
        for decay, settings in ((True, {}), (False, {"weight_decay": 0.0})):
            chosen = [p for p, does in zip(parameters, decays, strict=True) if does == decay]
            groups.append({"params": chosen, "lr": lr, **settings})
    groups = [group for group in groups if group["params"]]
    fused = fuses([*backbone, *head], optim)
    if optim.name == "sgd":
        return torch.optim.SGD(
            groups, lr=optim.lr, momentum=optim.momentum, weight_decay=optim.weight_decay, fused=fused
        )
    return torch.optim.AdamW(groups, lr=optim.lr, weight_decay=optim.weight_decay, fused=fused)


def discriminator_optimizer(discriminator: nn.Module, lr: float, optim: Optim) -> Optimizer:
    """Adam with the decay rates 0.9 and 0.99, as ADVENT, CLAN and ProDA train theirs, over a network or several."""
    parameters = list(discriminator.parameters())
    return torch.optim.Adam(parameters, lr=lr, betas=(0.9, 0.99), fused=fuses(parameters, optim))


def coverage(taken: Tensor) -> Loss:
    """How much of the target is learnt from: the mean of a mask or of weights in [0, 1]. A report."""
    return Loss("coverage", taken.float().mean(), weight=0)


def require_classes(field: str, named: Iterable[int], student: Segmenter) -> None:
    """Raise ValueError, naming the method's field, where it names a class that the student does not have."""
    classes = tuple(named)
    if any(not 0 <= c < student.num_classes for c in classes):
        raise ValueError(f"method.{field} {classes} names classes beyond 0 ... {student.num_classes - 1}; give others")


def fuses(parameters: Iterable[nn.Parameter], optim: Optim) -> bool | None:
    """What an optimiser of these parameters takes as `fused`: the stage's setting, or whether they lie on a GPU."""
    return (all(p.device.type == "cuda" for p in parameters) if optim.fused is None else optim.fused) or None
