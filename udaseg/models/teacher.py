"""The mean teacher, and a network that stays as it was."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor, nn

from udaseg.models.segmenter import Segmenter
from udaseg.types import Domain, SegOutput


@torch.no_grad()
def follow(average: nn.Module, module: nn.Module, momentum: float) -> None:
    """Move the parameters of an average toward a module's: average <- momentum * average + (1 - momentum) * module."""
    mine: list[Tensor] = [*average.parameters()]
    new = [theirs.to(own.dtype) for own, theirs in zip(mine, module.parameters(), strict=True)]
    torch._foreach_lerp_(mine, new, 1 - momentum)


class EMATeacher(nn.Module):
    """An exponential moving average of a student: teacher <- a * teacher + (1 - a) * student, a = min(1 - 1/(t+1), m).

    Parameters are averaged. Dropout and drop-path are off, unless it `drops`.

    Args:
        student: the network that is copied and followed.
        momentum: m in [0, 1).
        statistics: whose batch-norm statistics it has. "own": those of the target images that it labels, since it runs
            in training mode while training (as in DACS and its line); "student": each update copies the student's. In
            training it normalises by its own batch either way.
        ramp: whether a grows from 0, so that the network which is copied counts no more than any later one; without,
            a = m from the first step on, as for a student that has been trained before.
        drops: leave dropout on, as ProDA's teacher has it.
    """

    updates: Tensor

    def __init__(
        self,
        student: Segmenter,
        *,
        momentum: float,
        statistics: Literal["own", "student"] = "own",
        ramp: bool = True,
        drops: bool = False,
    ) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"teacher momentum is {momentum}; it must lie in [0, 1)")
        self.momentum = momentum
        self.statistics = statistics
        self.ramp, self.drops = ramp, drops
        self.network = copy.deepcopy(student).requires_grad_(False)
        self.register_buffer("updates", torch.zeros((), dtype=torch.int64))  # on the host, see `_apply`

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> EMATeacher:
        updates = self.updates
        super()._apply(fn, recurse)
        self.updates = updates  # stays on the host wherever the network goes: it is read at every step
        return self

    def train(self, mode: bool = True) -> EMATeacher:
        super().train(mode)
        for module in self.network.modules():
            drops = "drop" in type(module).__name__.lower()  # Dropout2d, timm's DropPath, DropBlock2d, ...
            if drops and not self.drops:
                module.eval()
        return self

    @property
    def next_momentum(self) -> float:
        """a of the next update."""
        return min(1 - 1 / (int(self.updates) + 1), self.momentum) if self.ramp else self.momentum

    @torch.no_grad()
    def update(self, student: nn.Module) -> None:
        """One step toward the student. The first update copies it, where a ramps up."""
        follow(self.network, student, self.next_momentum)
        if self.statistics == "student":
            for buffer, new_buffer in zip(self.network.buffers(), student.buffers(), strict=True):
                buffer.copy_(new_buffer)
        self.updates += 1

    @torch.no_grad()
    def forward(self, image: Tensor, domain: str = "target") -> SegOutput:
        """The teacher's output, without gradient."""
        output: SegOutput = self.network(image, domain, detail="everywhere")
        return output

    @torch.no_grad()
    def aside(self, image: Tensor, domain: Domain) -> SegOutput:
        """`forward` on copies of the buffers: batch norms' statistics stay those of the images that it labels."""
        return self.judge(image, domain)

    def judge(self, image: Tensor, domain: Domain) -> SegOutput:
        """`aside` with a gradient: what made the image learns from the output, the teacher does not."""
        copies = {name: buffer.clone() for name, buffer in self.network.named_buffers()}
        output: SegOutput = torch.func.functional_call(self.network, copies, (image, domain), {"detail": "everywhere"})
        return output

    def label(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Confidence (B, H, W) in [0, 1] and train ids (B, H, W) of the teacher's best class."""
        confidence, label = self(image).logits.softmax(1).max(1)
        return confidence, label


class FrozenNetwork(nn.Module):
    """A network as it is now: it neither learns nor gathers statistics, and is saved with the method that holds it."""

    def __init__(self, network: Segmenter) -> None:
        super().__init__()
        self.network = copy.deepcopy(network).requires_grad_(False).eval()

    def train(self, mode: bool = True) -> FrozenNetwork:
        return self

    @torch.no_grad()
    def forward(self, image: Tensor, domain: Domain = "target") -> SegOutput:
        """The network's output in evaluation mode, without gradient."""
        output: SegOutput = self.network(image, domain, detail="everywhere")
        return output

    @torch.no_grad()
    def levels(self, image: Tensor, domain: Domain) -> tuple[Tensor, ...]:
        """The backbone's levels in evaluation mode, without gradient."""
        return self.network.levels(image, domain)
