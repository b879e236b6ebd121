"""TADA: adaptation between taxonomies (TACS, 2109.04813; ETHRuiGong/TADA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.cross_domain_mix import mix
from udaseg.components.hard_anchors import hard_anchors
from udaseg.components.relabelling import relabel
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.losses.weighted_contrast import weighted_contrast
from udaseg.methods.base import Method, MethodConfig, build_optimizer
from udaseg.models.heads import ContrastProjection
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Channels, Count, CountOrZero, Jitter, Momentum, NonNegative, Positive, Share
from udaseg.types import Batch, Loss, SegOutput


class TADA(Method):
    """The target has classes of its own; a few of its images show them, with labels.

    1. source pixels that may be of several classes take one at random; from `relabel_from` on the teacher's where it is
       among them, and unknown ones its class where the source has none such;
    2. source cross-entropy;
    3. the teacher labels the target, q = share of its pixels that are confident;
    4. half of the classes of a few-shot label are pasted on the target, then half of the source's on both;
    5. mixed cross-entropy, pixels of source and few-shot images with weight 1, of the target with weight q;
    6. contrast of hard and easy cells of the mixture, pairs weighed by the student's confidence in both;
    7. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        threshold: Share = 0.968
        """Confidence from which a teacher's pixel counts toward q."""
        teacher_momentum: Momentum = 0.99
        relabel_from: CountOrZero = 0
        """Step from which the teacher relabels the source."""
        keep: Share = 0.55
        """Probability that a pixel of several classes keeps the teacher's; 0.4 where there are three."""
        mixed_weight: NonNegative = 1.0
        """Weight of the mixed loss."""
        reduction: Reduction = "all"
        """Of the mixed loss; "all" is the authors'."""
        mix_ignore: bool = True
        """Whether 255 counts as a class of the source that ClassMix may draw, as in the authors' code."""
        contrast_weight: NonNegative = 0.01
        temperature: Positive = 0.07
        """Of the contrast."""
        anchors: Count = 1024
        """Most cells of a group that are contrasted."""
        anchors_per_class: Count = 100
        """Most of one class of an image, which must have more."""
        projection_channels: Channels = 256
        variant: Literal["released", "fixed"] = "fixed"
        """"released" is the authors' code: cells get the weights of others, class 0 is not contrasted, and the
        projection keeps its first weights."""
        jitter: Jitter = 0.25
        jitter_probability: Share = 0.8
        blur_probability: Share = 0.5
        group_size: Count = 1
        """Consecutive samples whose cells are contrasted: the authors' batch."""
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated; the authors evaluate and publish the student."""

        @property
        def reads_candidates(self) -> bool:
            return True

        def build(self, student: Segmenter, *, seed: int) -> TADA:
            return TADA(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.projection = ContrastProjection(student.feature_channels[-1], config.projection_channels)
        if config.variant == "released":
            self.projection.requires_grad_(False)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        guess = None
        if step >= c.relabel_from:
            guess = self.teacher.aside(source.image, "source").logits.argmax(1)
        label = relabel(source.labels, source.candidates, guess, source.index, seed=self.seed, keep=c.keep)
        source = replace(source, label=label)
        out = self.student(source.image, "source", source.index)
        yield (Loss("source_ce", output_cross_entropy(out, label)),)

        mixed = mix(
            self.teacher,
            source,
            target,
            fewshot=batches["fewshot"],
            seed=self.seed,
            threshold=c.threshold,
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            blur_probability=c.blur_probability,
            include_ignore=c.mix_ignore,
        )
        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        yield (
            Loss("mixed_ce", loss, c.mixed_weight),
            Loss("contrast", self._contrast(out, mixed.label, target.index), c.contrast_weight),
            Loss("coverage", mixed.quality, weight=0),
        )

    def _contrast(self, out: SegOutput, label: Tensor, index: Tensor) -> Tensor:
        c, released = self.config, self.config.variant == "released"
        feature = self.projection(out.features[-1])
        size = (feature.shape[2], feature.shape[3])
        logits = F.interpolate(out.aux["coarse_logits"].detach(), size=size, mode="bilinear", align_corners=False)
        confidence, predicted = logits.softmax(1).max(1)
        found = hard_anchors(
            downscale_label(label, size).flatten(1),
            predicted.flatten(1),
            index,
            seed=self.seed,
            num_classes=self.student.num_classes,
            group_size=c.group_size,
            most=c.anchors,
            per_class=c.anchors_per_class,
            first_class=int(released),
        )
        cells = feature.movedim(1, -1).unflatten(0, (-1, c.group_size)).flatten(1, 3)
        pixel = cells.gather(1, found.cell[..., None].expand(-1, -1, cells.shape[2]))
        weight = confidence.unflatten(0, (-1, c.group_size)).flatten(1).gather(1, found.cell)
        weight = weight.gather(1, found.swapped) if released else weight
        both = pixel, found.label, weight[..., None]
        return weighted_contrast(*both, *both, temperature=c.temperature)

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        learning = [self.projection] if self.config.variant == "fixed" else []
        return [build_optimizer(self.student, optim, heads=learning)]
