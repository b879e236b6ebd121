"""DAFormer's training (2111.14887; lhoyer/DAFormer), which HRDA and MIC keep (2204.13132, 2212.01322; lhoyer/MIC)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import nn
from torch.optim import Optimizer

from udaseg.components.cross_domain_mix import mix
from udaseg.components.feature_distance import thing_distance
from udaseg.components.masked_consistency import MIC
from udaseg.config import Optim
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.methods.base import build_optimizer
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher, FrozenNetwork
from udaseg.types import Batch, Loss


class DAFormer(nn.Module):
    """DACS, whose features of things stay near ImageNet's; rare-class sampling and warm-up are the recipe's.

    1. source cross-entropy, and the distance of the last features to those of the network that the stage began with, on
       cells where a thing class holds most of the source label;
    2. the teacher labels the target, q = share of its pixels that are confident; rows at the border have weight 0;
    3. cross-entropy on ClassMix of both, jittered and blurred, source pixels with weight 1, target pixels with q;
    4. on request, MIC's masked consistency;
    5. the teacher follows the student.

    The network that the stage began with is ImageNet's only if the stage has no `init_from`. The authors move the
    teacher before the step, which is the same sequence of networks.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        threshold: float = 0.968
        """Confidence from which a teacher's pixel counts toward q."""
        teacher_momentum: float = 0.999
        feature_weight: float = 0.005
        """Of the feature distance; 0 = off."""
        things: tuple[int, ...] = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
        """Train ids of the thing classes."""
        thing_share: float = 0.75
        """Share of a cell's pixels that its commonest class must have to count."""
        ignore_top: int = 15
        """Rows of the target's pseudo-label that weigh 0."""
        ignore_bottom: int = 120
        """Likewise, of the bottom, where a car's own bonnet is."""
        reduction: Reduction = "all"
        """Of every cross-entropy; "all" is the authors'."""
        jitter: float = 0.2
        mic: MIC = MIC()

        def build(self, student: Segmenter, *, seed: int) -> DAFormer:
            return DAFormer(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        if any(not 0 <= c < student.num_classes for c in config.things):
            raise ValueError(f"method.things {config.things} names classes beyond 0 ... {student.num_classes - 1}")
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.beginning = FrozenNetwork(student) if config.feature_weight else None

    @property
    def predictor(self) -> nn.Module:
        return self.teacher.network

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        assert source.label is not None
        out = self.student(source.image, "source", source.index)
        losses = [Loss("source_ce", output_cross_entropy(out, source.label, reduction=c.reduction))]
        if self.beginning is not None:
            distance = thing_distance(
                out.features[-1], self.beginning, source, things=c.things, min_share=c.thing_share
            )
            losses.append(Loss("feature_distance", distance, c.feature_weight))
        yield tuple(losses)

        mixed = mix(
            self.teacher,
            source,
            target,
            seed=self.seed,
            threshold=c.threshold,
            jitter=c.jitter,
            ignore_top=c.ignore_top,
            ignore_bottom=c.ignore_bottom,
        )
        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        yield Loss("mixed_ce", loss), Loss("coverage", mixed.quality, weight=0)

        yield from c.mic.losses(
            self.student, target, mixed.target_label, mixed.target_weight, seed=self.seed, reduction=c.reduction
        )

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim)]
