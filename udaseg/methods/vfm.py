"""Self-training of vision foundation models: mixing and masking as in MIC, contrast as in BCL."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.masked_consistency import MIC
from udaseg.losses.contrastive import bidirectional_contrast
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import CountOrZero, NonNegative, Positive
from udaseg.types import IGNORE, Batch, Loss


class VFM(Method):
    """What VFM-UDA (2406.09896) shows to suffice for a strong backbone, and BCL's contrast of both domains.

    1. source cross-entropy;
    2. the teacher labels the target; ClassMix mixes both, as in DAFormer;
    3. mixed cross-entropy, and BCL's contrast in both directions between the source's pixels and the mixture's, on what
       is sure of the mixture: source pixels, and target pixels where the teacher is;
    4. MIC's masked consistency, and on request CRDA's consistency of pixels' relations in the mixture;
    5. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SelfTraining, MethodConfig):
        """`threshold` also is the confidence from which the teacher's pixels take part in the contrast."""

        contrast_weight: NonNegative = 0.1
        """Of each direction."""
        temperature: Positive = 0.1
        """Of the contrast."""
        ignore_top: CountOrZero = 0
        ignore_bottom: CountOrZero = 0
        mic: MIC = MIC(weight=1.0)

        def build(self, student: Segmenter, *, seed: int) -> VFM:
            return VFM(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds = config.thresholds(student.num_classes)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.teacher_moves == "before":
            self.teacher.update(self.student)
        mixed = c.mix(self.teacher, source, target, seed=self.seed, thresholds=self.thresholds)
        out = self.student(source.image, "source", source.index)
        out_mixed = self.student(mixed.image, "target", target.index)
        forward, backward = bidirectional_contrast(
            out.embedding,
            source.labels,
            out_mixed.embedding,
            mixed.label.masked_fill(~mixed.sure, IGNORE),
            num_classes=self.student.num_classes,
            temperature=c.temperature,
        )
        loss = output_cross_entropy(out_mixed, mixed.label, mixed.weight, reduction=c.reduction)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels, reduction=c.reduction)),
            Loss("mixed_ce", loss),
            Loss("forward_contrast", forward, c.contrast_weight),
            Loss("backward_contrast", backward, c.contrast_weight),
            Loss("coverage", mixed.quality, weight=0),
            *c.pne.losses(out, source.labels, source.index, seed=self.seed),
            *c.crda.losses(out_mixed.logits, self.teacher, mixed.image, target.index, seed=self.seed),
        )

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self.teacher.update(self.student)
