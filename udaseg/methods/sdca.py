"""SDCA: contrast of pixels with the distribution of their class (2105.05013; BIT-DA/SDCA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from udaseg.components.prototypes import ClassGaussians
from udaseg.losses.contrastive import distribution_contrast, labelled_cells
from udaseg.losses.segmentation import LovaszClasses, lovasz_softmax, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import CountOrZero, NonNegative, Positive, Share
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class SDCA(Method):
    """The source gives each class a distribution; pixels of both domains are pulled to that of their own.

    1. source cross-entropy and Lovasz-softmax;
    2. the source's features enter the distributions, at two levels: the backbone's last features and the logits;
    3. distribution contrast of the source's pixels with their labels, at both levels;
    4. the same of target pixels with the student's own class, where it is confident.

    The authors fill the distributions in a pass over the whole source before the first step; here the contrast waits
    for `fill_steps`, in which the distributions fill while the network learns on the source.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        temperature: Positive = 100.0
        feature_weight: NonNegative = 1.0
        output_weight: NonNegative = 1.0
        lovasz_weight: NonNegative = 0.75
        """Of Lovasz-softmax on the source."""
        lovasz_classes: LovaszClasses = "all"
        """Over which it is averaged; the authors' are those that are "present" in an image."""
        threshold: Share = 0.9
        """Confidence from which a target pixel has a class."""
        fill_steps: CountOrZero = 0
        """Steps before the contrast begins."""

        def build(self, student: Segmenter, *, seed: int) -> SDCA:
            return SDCA(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student
        classes = student.num_classes
        self.feature_classes = ClassGaussians(classes, student.feature_channels[-1])
        self.output_classes = ClassGaussians(classes, classes)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        self._update(out, source.labels)
        lovasz = lovasz_softmax(out.logits, source.labels, classes=c.lovasz_classes)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            Loss("source_lovasz", lovasz, c.lovasz_weight),
            *self._contrast("source", out, source.labels, step),
        )
        out = self.student(target.image, "target", target.index)
        confidence, label = out.aux["coarse_logits"].detach().softmax(1).max(1)
        label = label.masked_fill(confidence < c.threshold, IGNORE)
        yield (
            *self._contrast("target", out, label, step),
            coverage(label != IGNORE),
        )

    def _update(self, out: SegOutput, label: Tensor) -> None:
        for classes, level in zip((self.feature_classes, self.output_classes), _levels(out), strict=True):
            classes.update(*labelled_cells(level.detach(), label))

    def _contrast(self, domain: str, out: SegOutput, label: Tensor, step: int) -> tuple[Loss, ...]:
        c = self.config
        feature, output = (
            distribution_contrast(
                *labelled_cells(level, label), classes.mean, classes.variance, temperature=c.temperature
            )
            for classes, level in zip((self.feature_classes, self.output_classes), _levels(out), strict=True)
        )
        on = float(step >= c.fill_steps)
        return (
            Loss(f"{domain}_feature_contrast", feature, on * c.feature_weight),
            Loss(f"{domain}_output_contrast", output, on * c.output_weight),
        )


def _levels(out: SegOutput) -> tuple[Tensor, Tensor]:
    return out.features[-1], out.aux["coarse_logits"]
