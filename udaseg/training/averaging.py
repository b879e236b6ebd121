"""The mean of gradients over ranks, exchanged while backward passes still compute."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn

from udaseg.distributed import world_size

BUCKET_BYTES = 25 * 2**20
"""Gradients that are exchanged together, as in torch's DistributedDataParallel."""


@dataclass
class _Bucket:
    parameters: list[nn.Parameter]
    due: int = 0
    """Parameters whose gradient is not yet whole."""
    again: bool = False
    """Whether a gradient has changed since it was exchanged."""
    work: torch_dist.Work | None = None
    flat: Tensor = field(default_factory=lambda: torch.empty(0))


class GradientAverage:
    """Replaces the gradients of some parameters by their means over ranks.

    A parameter that no graph of a step has reached has no gradient after it either, so that the optimiser leaves it and
    its moments as they are, whatever the number of ranks.

    Buckets of gradients are exchanged in one order on all ranks, the last parameters first, as the backward pass
    reaches them; each as soon as its gradients are whole. When that is, the step before tells: a parameter to which so
    many backward passes contributed then is expected to get as many contributions again. The first step, and whatever
    comes later than expected, is exchanged at the step's end. Ranks agree, since what graphs a step has depends on
    nothing but its number: no step reads a tensor.

    DistributedDataParallel expects one forward pass of one module before each backward pass; a step here has several of
    students, teachers and discriminators.

    Args:
        parameters: those of an optimiser; frozen ones are left alone.
        bf16: exchange bfloat16.
        bucket_bytes: of gradients in a bucket, at least; the last has fewer.
    """

    def __init__(
        self, parameters: Iterable[nn.Parameter], *, bf16: bool = False, bucket_bytes: int = BUCKET_BYTES
    ) -> None:
        self._parameters = [p for p in parameters if p.requires_grad]
        self._bf16 = bf16
        self._buckets = _in_buckets(self._parameters[::-1], bucket_bytes)
        self._bucket_of = {p: bucket for bucket in self._buckets for p in bucket.parameters}
        self._expected: Counter[nn.Parameter] = Counter()
        self._found: Counter[nn.Parameter] = Counter()
        self._open = False
        if world_size() > 1:
            for parameter in self._parameters:
                parameter.register_post_accumulate_grad_hook(self._contributed)

    def begin(self) -> None:
        """Called before a step's first backward pass."""
        self._open, self._found = True, Counter()
        for bucket in self._buckets:
            bucket.due = sum(self._expected[p] > 0 for p in bucket.parameters)
            bucket.work, bucket.again = None, False

    @property
    def under_way(self) -> int:
        """Buckets of this step whose exchange has begun."""
        return sum(bucket.work is not None for bucket in self._buckets)

    def finish(self) -> Tensor:
        """Called after a step's last backward pass.

        Returns:
            Scalar tensor: 1 if any parameter had a gradient, 0 if none had, and -1 where ranks disagree which had one.
        """
        reached = [p.grad is not None for p in self._parameters]
        had = torch.tensor(reached, dtype=torch.float32).to(self._parameters[0].device, non_blocking=True)
        if world_size() > 1:
            self._exchange_rest()
            told = torch_dist.all_reduce(had, async_op=True)
            for bucket in self._buckets:
                _take(bucket)
            told.wait()
            had /= world_size()
        for parameter, here in zip(self._parameters, reached, strict=True):
            if not here:
                parameter.grad = None
        self._open, self._expected = False, self._found
        return torch.where(((had == 0) | (had == 1)).all(), had.amax(), -1.0)

    def _contributed(self, parameter: nn.Parameter) -> None:
        if not self._open:
            return
        self._found[parameter] += 1
        bucket = self._bucket_of[parameter]
        bucket.again |= bucket.work is not None
        if self._found[parameter] == self._expected[parameter]:
            bucket.due -= 1
            for following in self._buckets[self.under_way :]:
                if following.due:
                    break
                self._exchange(following)

    def _exchange_rest(self) -> None:
        for bucket in self._buckets[self.under_way :]:
            self._exchange(bucket)
        for bucket in self._buckets:
            if bucket.again and bucket.work is not None:
                bucket.work.wait()  # and what it brought is left
                self._exchange(bucket)

    def _exchange(self, bucket: _Bucket) -> None:
        flat = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in bucket.parameters])
        bucket.flat = flat.bfloat16() if self._bf16 else flat
        bucket.work = torch_dist.all_reduce(bucket.flat, async_op=True)


def _take(bucket: _Bucket) -> None:
    """Wait for a bucket, and put the means into its gradients."""
    assert bucket.work is not None
    bucket.work.wait()
    sizes = [p.numel() for p in bucket.parameters]
    for parameter, total in zip(bucket.parameters, bucket.flat.split(sizes), strict=True):
        if parameter.grad is None:
            parameter.grad = torch.empty_like(parameter)
        parameter.grad.copy_(total.view_as(parameter)).div_(world_size())
    bucket.flat = torch.empty(0)  # until the next step it would be a second copy of all gradients


def _in_buckets(parameters: Iterable[nn.Parameter], least: int) -> list[_Bucket]:
    """Buckets of consecutive parameters of one type and device."""
    buckets: list[_Bucket] = []
    held, kind = least, None
    for parameter in parameters:
        if held >= least or kind != (parameter.dtype, parameter.device):
            buckets.append(_Bucket([]))
            held, kind = 0, (parameter.dtype, parameter.device)
        buckets[-1].parameters.append(parameter)
        held += parameter.numel() * parameter.element_size()
    return buckets
