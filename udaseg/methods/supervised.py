"""Plain supervised training on one stream: source-only on the source, the oracle on a labelled target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from udaseg.components.equal_contrast import PNE
from udaseg.losses.segmentation import LovaszClasses, divided, lovasz_softmax, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import NonNegative, Positive
from udaseg.types import Batch, Loss


class Supervised(Method):
    """Cross-entropy on the labels of one stream, and on request Lovasz-softmax and PNE's contrast."""

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        stream: Literal["source", "target"] = "source"
        """Where images and labels come from; also the domain whose own parts of the network are used."""
        lovasz_weight: NonNegative = 0.0
        """Of Lovasz-softmax, which SDCA's and ProCA's first stage has; 0.75 there."""
        lovasz_classes: LovaszClasses = "all"
        """Over which it is averaged; "present" there."""
        ce_temperature: Positive = 1.0
        """What logits are divided by in the cross-entropy; 1.8 in SPCL's warm-up."""
        pne: PNE = PNE()

        def build(self, student: Segmenter, *, seed: int) -> Supervised:
            return Supervised(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, batch = self.config, batches[self.config.stream]
        out = self.student(batch.image, c.stream, batch.index)
        terms = [Loss("ce", output_cross_entropy(divided(out, c.ce_temperature), batch.labels, batch.weight))]
        if c.lovasz_weight:
            lovasz = lovasz_softmax(out.logits, batch.labels, classes=c.lovasz_classes)
            terms.append(Loss("lovasz", lovasz, c.lovasz_weight))
        yield *terms, *c.pne.losses(out, batch.labels, batch.index, seed=self.seed)
