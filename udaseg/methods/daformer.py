"""DAFormer's training (2111.14887; lhoyer/DAFormer), which HRDA and MIC keep (2204.13132, 2212.01322; lhoyer/MIC)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.feature_distance import FeatureDistance
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, require_classes
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.types import Batch, Loss


class DAFormer(Method):
    """DACS, whose features of things stay near ImageNet's; rare-class sampling and warm-up are the recipe's.

    1. source cross-entropy, and the distance of the last features to those of the network that the stage began with, on
       cells where a thing class holds most of the source label;
    2. the teacher labels the target, q = share of its pixels that are confident; rows at the border have weight 0;
    3. cross-entropy on ClassMix of both, jittered and blurred, source pixels with weight 1, target pixels with q;
    4. on request, CRDA's consistency of pixels' relations in the mixture, and MIC's masked consistency;
    5. the teacher follows the student.

    The network that the stage began with is ImageNet's only if the stage has no `init_from`. The authors move the
    teacher before 1 (`teacher_moves="before"`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FeatureDistance, SelfTraining, MethodConfig):
        def build(self, student: Segmenter, *, seed: int) -> DAFormer:
            return DAFormer(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        require_classes("things", config.things, student)
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds = config.thresholds(student.num_classes)
        self.beginning = config.network_now(student)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.teacher_moves == "before":
            self.teacher.update(self.student)
        out = self.student(source.image, "source", source.index)
        losses = [Loss("source_ce", output_cross_entropy(out, source.labels, reduction=c.reduction))]
        losses += c.pne.losses(out, source.labels, source.index, seed=self.seed)
        yield *losses, *c.distances(out, self.beginning, source)

        mixed = c.mix(self.teacher, source, target, seed=self.seed, thresholds=self.thresholds)
        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        relations = c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed)
        yield Loss("mixed_ce", loss), Loss("coverage", mixed.quality, weight=0), *relations

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self.teacher.update(self.student)
