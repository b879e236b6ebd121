"""AdaBN: the batch-norm statistics of the target, and nothing else."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.segmenter import Segmenter
from udaseg.types import Batch, Loss


class AdaBN(Method):
    """Re-estimates every running mean and variance as the average over all target batches of the stage.

    Source: "Revisiting batch normalization for practical domain adaptation" (1603.04779). No parameter learns.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        def build(self, student: Segmenter, *, seed: int) -> AdaBN:
            return AdaBN(student)

    def __init__(self, student: Segmenter) -> None:
        super().__init__()
        self.student = student.requires_grad_(False)
        kept = student.source_buffers()  # no target image would fill them again
        for name, buffer in student.named_buffers():
            if name.endswith(("running_mean", "running_var", "num_batches_tracked")) and name not in kept:
                buffer.fill_(name.endswith("running_var"))

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        for module in self.student.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.momentum = 1 / (step + 1)  # a cumulative average; with None it would ask the device for the step
        with torch.no_grad():
            confidence = (
                self.student(batches["target"].image, "target", detail="everywhere").logits.softmax(1).amax(1).mean()
            )
        yield (Loss("confidence", confidence, weight=0),)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return []
