"""SPCL: contrast of pixels with the prototypes of the source's classes (2111.12358; BinhuiXie/SPCL)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from udaseg.components.prototypes import ClassPrototypes
from udaseg.losses.contrastive import downscale_label, labelled_cells, prototype_contrast
from udaseg.losses.segmentation import divided, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import CountOrZero, Momentum, NonNegative, Positive
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class SPCL(Method):
    """Each class has a prototype on the source, to which pixels of both domains are pulled.

    1. source cross-entropy, its logits divided by a temperature;
    2. the prototypes move to the mean unit feature of the source's cells of their class that are predicted right;
    3. contrast of these cells with the prototypes;
    4. contrast of the target's cells with the prototypes, by the pseudo-labels of the round.

    The authors fill the prototypes in a pass over the whole source before the first step; here the contrast waits for
    `fill_steps`, in which they follow while the network learns on the source.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        temperature: Positive = 100.0
        """Of the contrast."""
        contrast_weight: NonNegative = 1.0
        """Of the contrast in each domain."""
        ce_temperature: Positive = 1.8
        """What the logits of the source's cross-entropy are divided by."""
        prototype_momentum: Momentum = 0.1
        variant: Literal["fixed", "released"] = "fixed"
        """"released": prototypes of classes that a step does not show shrink to a tenth, and none is brought to unit
        length, as in the authors' code."""
        fill_steps: CountOrZero = 0
        """Steps before the contrast begins."""

        def build(self, student: Segmenter, *, seed: int) -> SPCL:
            return SPCL(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student
        self.classes = ClassPrototypes(
            student.num_classes,
            student.feature_channels[-1],
            momentum=config.prototype_momentum,
            decay_absent=config.variant == "released",
        )

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        weight = c.contrast_weight * (step >= c.fill_steps)
        out = self.student(source.image, "source", source.index)
        right = _predicted_right(out, source.labels)
        self.classes.update(*_unit_cells(out.features[-1].detach(), right))
        yield (
            Loss("source_ce", output_cross_entropy(divided(out, c.ce_temperature), source.labels)),
            Loss("source_contrast", self._contrast(out.features[-1], right), weight),
        )

        out = self.student(target.image, "target", target.index)
        yield (
            Loss("target_contrast", self._contrast(out.features[-1], target.labels), weight),
            coverage(target.labels != IGNORE),
        )

    def _contrast(self, feature: Tensor, label: Tensor) -> Tensor:
        prototypes = self.classes.prototypes
        if self.config.variant == "fixed":
            prototypes = F.normalize(prototypes, dim=1)
        return prototype_contrast(*_unit_cells(feature, label), prototypes, temperature=self.config.temperature)


def _predicted_right(out: SegOutput, label: Tensor) -> Tensor:
    """(B, h, w) labels of the last features' cells, nearest, 255 where the network says otherwise."""
    size = (out.features[-1].shape[2], out.features[-1].shape[3])
    small = downscale_label(label, size)
    predicted = downscale_label(out.aux["coarse_logits"].detach().argmax(1), size)
    return small.masked_fill(small != predicted, IGNORE)


def _unit_cells(feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    return labelled_cells(F.normalize(feature, dim=1), label)
