"""ProCA: contrast of pixels with prototypes of both domains (2207.06654; jiangzhengkai/ProCA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor

from udaseg.components.prototypes import ClassGaussians
from udaseg.losses.contrastive import labelled_cells, prototype_contrast
from udaseg.losses.segmentation import LovaszClasses, lovasz_softmax, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import CountOrZero, NonNegative, Positive, Share
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class ProCA(Method):
    """Each class has a centre, the mean of all its pixels in both domains, to which pixels are pulled by cosine.

    1. source cross-entropy and Lovasz-softmax;
    2. target pixels take the student's own class where it is confident;
    3. the target's, then the source's features enter the centres, at two levels: the backbone's last features and the
       logits;
    4. contrast of both domains' pixels with the centres, at both levels.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        temperature: Positive = 50.0
        feature_weight: NonNegative = 1.0
        output_weight: NonNegative = 1.0
        lovasz_weight: NonNegative = 0.75
        """Of Lovasz-softmax on the source."""
        lovasz_classes: LovaszClasses = "all"
        """Over which it is averaged; the authors' are those that are "present" in an image."""
        threshold: Share = 0.9
        """Confidence from which a target pixel has a class."""
        confidence: Literal["probability", "logit"] = "probability"
        """What reaches the threshold; the authors' code compares the largest logit."""
        fill_steps: CountOrZero = 0
        """Steps before the contrast begins."""

        def build(self, student: Segmenter, *, seed: int) -> ProCA:
            return ProCA(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student
        classes = student.num_classes
        self.feature_classes = ClassGaussians(classes, student.feature_channels[-1])
        self.output_classes = ClassGaussians(classes, classes)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        on_source = self.student(source.image, "source", source.index)
        on_target = self.student(target.image, "target", target.index)
        logits = on_target.aux["coarse_logits"].detach()
        confidence, label = (logits if c.confidence == "logit" else logits.softmax(1)).max(1)
        label = label.masked_fill(confidence < c.threshold, IGNORE)

        self._update(on_target, label)
        self._update(on_source, source.labels)
        lovasz = lovasz_softmax(on_source.logits, source.labels, classes=c.lovasz_classes)
        yield (
            Loss("source_ce", output_cross_entropy(on_source, source.labels)),
            Loss("source_lovasz", lovasz, c.lovasz_weight),
            *self._contrast("source", on_source, source.labels, step),
            *self._contrast("target", on_target, label, step),
            coverage(label != IGNORE),
        )

    def _update(self, out: SegOutput, label: Tensor) -> None:
        for classes, level in zip((self.feature_classes, self.output_classes), _levels(out), strict=True):
            classes.update(*labelled_cells(level.detach(), label))

    def _contrast(self, domain: str, out: SegOutput, label: Tensor, step: int) -> tuple[Loss, ...]:
        c, on = self.config, float(step >= self.config.fill_steps)
        feature, output = (
            prototype_contrast(
                *labelled_cells(F.normalize(level, dim=1), label),
                F.normalize(classes.mean, dim=1),
                temperature=c.temperature,
            )
            for classes, level in zip((self.feature_classes, self.output_classes), _levels(out), strict=True)
        )
        return (
            Loss(f"{domain}_feature_contrast", feature, on * c.feature_weight),
            Loss(f"{domain}_output_contrast", output, on * c.output_weight),
        )


def _levels(out: SegOutput) -> tuple[Tensor, Tensor]:
    return out.features[-1], out.aux["coarse_logits"]
