"""SePiCo: semantic-guided pixel contrast in a self-training step (2204.08808; BIT-DA/SePiCo)."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.augment import balanced_crop, strong
from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.feature_distance import majority_cells
from udaseg.components.memory_bank import MemoryBank
from udaseg.components.prototypes import ClassGaussians
from udaseg.config import Optim
from udaseg.losses.contrastive import (
    bank_contrast,
    distribution_contrast,
    mean_feature_regulariser,
    prototype_contrast,
)
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer
from udaseg.models.heads import LevelProjection
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher, follow
from udaseg.ranges import Channels, Count, CountOrZero, NonNegative, Pixels, Positive, Share
from udaseg.types import IGNORE, Batch, Loss


class SePiCo(Method):
    """Pixels of both domains are pulled to what the teacher's features of the source say of their classes.

    1. on request, each target image is cropped so that no class of the teacher's fills the crop;
    2. the teacher labels the target, q = share of its pixels that are confident, and ClassMix mixes both, as in DACS;
    3. the teacher's projected features of the source enter what describes the classes, on cells where a class holds
       most of the label: their mean and variance, and for BankCL a bank of the means of single steps;
    4. source in a strong view: cross-entropy, and from `contrast_from` on the contrast of its pixels by their labels;
    5. target in a strong view, from then on: contrast of its pixels by the teacher's labels;
    6. cross-entropy on the mixture, source pixels with weight 1, target pixels with q;
    7. on request, MIC's masked consistency, and CRDA's of pixels' relations in 6;
    8. the teacher follows the student.

    The contrast is with the distribution of a class (DistCL), with a bank (BankCL), or with its mean alone (ProtoCL); a
    regulariser of the mean pixel goes with each. The authors move the teacher before 1 (`teacher_moves="before"`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SelfTraining, MethodConfig):
        contrast: Literal["distribution", "bank", "prototype"] = "distribution"
        contrast_weight: NonNegative = 1.0
        """Of the contrast in each domain."""
        regulariser_weight: NonNegative = 1.0
        """Of the mean pixel's term, times that of the contrast."""
        temperature: Positive = 100.0
        contrast_from: CountOrZero = 3000
        """Step from which pixels are contrasted."""
        bank_length: Count = 200
        """Entries of a class in the bank."""
        levels: Literal["all", "last"] = "all"
        """Which of the backbone's levels the projection reads."""
        projection_channels: Channels = 512
        min_share: Share = 0.75
        """Share of a cell's pixels that its commonest class must have to count."""
        crop: tuple[Pixels, Pixels] | None = None
        """Height and width of the target's crop by the teacher's classes; `data.target.crop` is what it is taken of.
        None = the target stays as it comes."""
        max_class_share: Share = 0.75
        """Share of such a crop that one class must stay below; of ten draws the most balanced is taken."""

        def build(self, student: Segmenter, *, seed: int) -> SePiCo:
            return SePiCo(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.read = slice(None) if config.levels == "all" else slice(-1, None)
        self.projection = LevelProjection(student.feature_channels[self.read], config.projection_channels)
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds = config.thresholds(student.num_classes)
        self.teacher_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.classes = ClassGaussians(student.num_classes, config.projection_channels)
        self.bank = (
            MemoryBank(student.num_classes, config.projection_channels, config.bank_length)
            if config.contrast == "bank"
            else None
        )

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        contrasts = step >= c.contrast_from
        if c.teacher_moves == "before":
            self._move_teacher()
        if c.crop is not None:
            _, label = self.teacher.label(target.image)
            target = balanced_crop(target, label, size=c.crop, max_class_share=c.max_class_share, seed=self.seed)
        mixed = c.mix(self.teacher, source, target, seed=self.seed, thresholds=self.thresholds)
        self._describe_classes(source)

        out = self.student(self._strong(source), "source", source.index)
        losses = [Loss("source_ce", output_cross_entropy(out, source.labels, reduction=c.reduction))]
        losses += c.pne.losses(out, source.labels, source.index, seed=self.seed)
        if contrasts:
            losses += self._contrast("source", out.features, source.labels)
        yield tuple(losses)

        if contrasts:
            out = self.student(self._strong(target), "target", target.index)
            yield self._contrast(
                "target", out.features, mixed.target_label.masked_fill(mixed.target_weight == 0, IGNORE)
            )

        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        relations = c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed)
        yield Loss("mixed_ce", loss), Loss("coverage", mixed.quality, weight=0), *relations

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def _strong(self, batch: Batch) -> Tensor:
        """A view in which source and target of a sample are jittered and blurred alike."""
        c = self.config
        return strong(batch.image, batch.index, seed=self.seed, purpose="both", jitter=c.jitter, form=c.jitter_form)

    @torch.no_grad()
    def _describe_classes(self, source: Batch) -> None:
        out = self.teacher.aside(source.image, "source")
        cells = self._cells(self.teacher_projection(out.features[self.read]), source.labels)
        self.classes.update(*cells)
        if self.bank is not None:
            self.bank.update(*cells)

    def _contrast(self, domain: str, levels: tuple[Tensor, ...], label: Tensor) -> tuple[Loss, ...]:
        c, classes = self.config, self.classes
        cells = self._cells(self.projection(levels[self.read]), label)
        if self.bank is not None:
            value = bank_contrast(*cells, self.bank.entries, self.bank.filled, temperature=c.temperature)
        elif c.contrast == "distribution":
            value = distribution_contrast(
                *cells, classes.mean, classes.variance, temperature=c.temperature, normalise=False
            )
        else:
            value = prototype_contrast(*cells, classes.mean, temperature=c.temperature)
        regulariser = mean_feature_regulariser(*cells, classes.mean, temperature=c.temperature)
        return (
            Loss(f"{domain}_contrast", value, c.contrast_weight),
            Loss(f"{domain}_regulariser", regulariser, c.contrast_weight * c.regulariser_weight),
        )

    def _cells(self, feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """(N, A) cells of a map and the (N,) classes that hold most of their pixels, 255 where none does."""
        size = (feature.shape[2], feature.shape[3])
        side = max(-(-pixels // cells) for pixels, cells in zip(label.shape[-2:], size, strict=True))
        classes, share = self.student.num_classes, self.config.min_share
        small = majority_cells(label, size, side, num_classes=classes, min_share=share)
        return feature.movedim(1, -1).flatten(0, 2), small.flatten()

    def _move_teacher(self) -> None:
        follow(self.teacher_projection, self.projection, self.teacher.next_momentum)
        self.teacher.update(self.student)

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self._move_teacher()

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.projection])]
