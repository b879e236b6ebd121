"""AdaBN: the batch-norm statistics of the target, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.hrda import HRDA
from udaseg.models.segmenter import Segmenter
from udaseg.types import Batch, Loss


class AdaBN(Method):
    """Re-estimates every running mean and variance as that of all target batches of the stage. No parameter learns.

    Source: "Revisiting batch normalization for practical domain adaptation" (1603.04779), algorithm 1: the statistics
    of all images taken together, to which the spread of the batches' means belongs. The variance within a batch is
    torch's unbiased one.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        def build(self, student: Segmenter, *, seed: int) -> AdaBN:
            return AdaBN(student)

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        if isinstance(student, HRDA):
            raise ValueError("AdaBN counts batches, of which HRDA makes several of one; leave model.detail_crop out")
        self.student = student.requires_grad_(False)
        kept = student.source_buffers()  # no target image would fill them again
        for name, buffer in student.named_buffers():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")) and name not in kept:
                buffer.fill_(name.endswith("running_var"))

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        share = 1 / (step + 1)  # of this batch; with None a norm would ask the device for the step
        for module in self.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = share
        buffers = dict(self.student.named_buffers())
        before = {name: buffer.clone() for name, buffer in buffers.items() if name.endswith("running_mean")}
        with torch.no_grad():
            confidence = self.student(batches["target"].image, "target").logits.softmax(1).amax(1).mean()
            for name, mean in before.items():  # the variance is that within batches so far
                variance = buffers[name.removesuffix("mean") + "var"]
                variance.add_((buffers[name] - mean).square(), alpha=(1 - share) / share)
        yield (Loss("confidence", confidence, weight=0),)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return []
