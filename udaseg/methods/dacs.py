"""DACS: mean teacher and cross-domain ClassMix (2007.08702; vikolss/DACS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from udaseg.components.class_thresholds import ClassThresholds, Reliability
from udaseg.components.cross_domain_mix import mix
from udaseg.components.equal_contrast import PNE
from udaseg.components.masked_consistency import MIC
from udaseg.components.relation_consistency import CRDA
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Jitter, Momentum, NonNegative, Share
from udaseg.types import Batch, Loss


class DACS(Method):
    """Half of each source image's classes is pasted on a target image that the teacher has labelled.

    1. source cross-entropy, and on request PNE's contrast;
    2. the teacher labels the target, q = share of its pixels that are confident;
    3. mixed cross-entropy, pixels from the source with weight 1, from the target with weight q;
    4. on request, CRDA's consistency of pixels' relations in the mixture, and MIC's masked consistency;
    5. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        threshold: Share = 0.968
        """Confidence from which a teacher's pixel counts toward q."""
        reliability: Reliability = "quality"
        """What a teacher's pixel weighs: "quality" is q for all; "class" 1 where it reaches the running threshold of
        its class, else 0, see `udaseg.components.class_thresholds.ClassThresholds`."""
        class_share: Share = 0.5
        """Most certain share of each class's pixels that is reliable ("class")."""
        class_cap: Share = 0.9
        """Confidence from which a pixel is reliable whatever the share ("class")."""
        teacher_momentum: Momentum = 0.99
        mixed_weight: NonNegative = 1.0
        """Weight of the mixed loss."""
        reduction: Reduction = "all"
        """Of the mixed loss; "all" is the authors'."""
        mix_ignore: bool = True
        """Whether 255 counts as a class that ClassMix may draw, as in the authors' code."""
        jitter: Jitter = 0.25
        jitter_probability: Share = 0.8
        blur_probability: Share = 0.5
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated; the authors evaluate and publish the student. Which measured better differs
        from run to run, see docs/methods/README.md."""
        mic: MIC = MIC()
        crda: CRDA = CRDA()
        pne: PNE = PNE()

        def build(self, student: Segmenter, *, seed: int) -> DACS:
            return DACS(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds: ClassThresholds | None = None
        if config.reliability == "class":
            self.thresholds = ClassThresholds(student.num_classes, share=config.class_share, cap=config.class_cap)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            *c.pne.losses(out, source.labels, source.index, seed=self.seed),
        )

        mixed = mix(
            self.teacher,
            source,
            target,
            seed=self.seed,
            threshold=c.threshold,
            thresholds=self.thresholds,
            include_ignore=c.mix_ignore,
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            blur_probability=c.blur_probability,
        )
        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        relations = c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed)
        yield Loss("mixed_ce", loss, c.mixed_weight), Loss("coverage", mixed.quality, weight=0), *relations

        labels = mixed.target_label, mixed.target_weight
        yield from c.mic.losses(self.student, source, target, *labels, seed=self.seed, reduction=c.reduction)

    def after_step(self) -> None:
        self.teacher.update(self.student)
