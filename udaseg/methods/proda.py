"""ProDA: prototypical pseudo-label denoising and target structure learning (CVPR 2021, 2101.10979; microsoft/ProDA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.prototypes import MovingPrototypes, class_means, prototype_distance
from udaseg.components.rand_augment import rand_augment
from udaseg.config import Optim
from udaseg.losses.adversarial import least_squares
from udaseg.losses.consistency import assignment_consistency
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.distillation import DistillationForm, distillation
from udaseg.losses.segmentation import (
    cross_entropy,
    output_cross_entropy,
    reverse_cross_entropy,
    uniform_divergence,
)
from udaseg.methods.base import Method, MethodConfig, build_optimizer, coverage, discriminator_optimizer
from udaseg.models.discriminator import Discriminator
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Channels, Count, CountOrZero, Momentum, NonNegative, Positive, Share
from udaseg.types import IGNORE, Batch, Loss, SegOutput

STRIDE = 4
"""Pixels of an image in a cell of the maps on which target losses are taken, whatever the network's stride."""


class ProDA(Method):
    """A phase of a stage each; the target brings the probabilities of all classes that the phase before has given it.

    warm_up: source cross-entropy, and predictions of the target that a discriminator takes for the source's.

    denoise, with prototypes eta and a teacher:
    1. source cross-entropy;
    2. assignments w = softmax(-|f - eta| / T) of the teacher's features f on the target;
    3. labels y = argmax of w times the stored probabilities, as they are now, so that they improve as eta does;
    4. symmetric cross-entropy of the target with y, and the divergence from a uniform prediction;
    5. consistency: the student's assignments on a strong view are w, moved like the view;
    6. each image's classes, as the teacher finds them, move eta; the teacher follows the student.

    distil, with another student or the same one:
    1. source cross-entropy;
    2. cross-entropy of a strong view of the target with the stored labels, those that are sure;
    3. the student's probabilities there are the stored ones.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        phase: Literal["warm_up", "denoise", "distil"] = "denoise"
        adversarial_weight: NonNegative = 0.01
        """Of what the student has to gain from the discriminator (warm_up)."""
        discriminator_channels: Channels = 64
        """Width of its first convolution."""
        discriminator_lr: Positive = 1e-4
        """Of its Adam, which decays as the student's learning rate does."""
        temperature: Positive = 1.0
        """T of the assignments."""
        ce_weight: NonNegative = 0.1
        """Of the target's cross-entropy (denoise)."""
        rce_weight: NonNegative = 1.0
        """Of the target's reverse cross-entropy."""
        uniform_weight: NonNegative = 0.1
        """Of the divergence from a uniform prediction, the authors' MRKLD; 0 on SYNTHIA."""
        consistency_weight: NonNegative = 10.0
        """Of the assignments' consistency."""
        prototype_momentum: Share = 0.9999
        """Of the average that the prototypes are, image by image."""
        min_cells: Count = 10
        """Cells of a class that an image must have to move its prototype."""
        fill_steps: CountOrZero = 0
        """Steps in which the prototypes are the mean of all images so far, and labels the stored ones alone."""
        teacher_momentum: Momentum = 0.999
        kd: DistillationForm = "released"
        """Form of the distillation, see `udaseg.losses.distillation`; "released" is the authors' code."""
        kd_weight: NonNegative = 1.0
        """Of the distillation (distil)."""
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated where there is a teacher; the authors evaluate and publish the student."""

        def build(self, student: Segmenter, *, seed: int) -> ProDA:
            return ProDA(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        classes, phase = student.num_classes, config.phase
        width, momentum = config.discriminator_channels, config.teacher_momentum
        self.discriminator = Discriminator(classes, width, form="proda") if phase == "warm_up" else None
        self.teacher = (
            EMATeacher(student, momentum=momentum, statistics="student", ramp=False, drops=True)
            if phase == "denoise"
            else None
        )
        if phase == "denoise":
            self.prototypes = MovingPrototypes(classes, student.embedding_channels, momentum=config.prototype_momentum)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        source, target = batches["source"], batches["target"]
        if self.config.phase == "warm_up":
            yield from self._warm_up(source, target)
            return
        out = self.student(source.image, "source", source.index)
        yield (Loss("source_ce", output_cross_entropy(out, source.labels)),)
        yield from self._distil(target) if self.config.phase == "distil" else self._denoise(target, step)

    def _warm_up(self, source: Batch, target: Batch) -> Iterator[tuple[Loss, ...]]:
        assert self.discriminator is not None
        on_source = self.student(source.image, "source", source.index)
        on_target = self.student(target.image, "target", target.index)
        deceived = least_squares(self.discriminator.judge(on_target.logits.softmax(1)), "source")
        yield (
            Loss("source_ce", output_cross_entropy(on_source, source.labels)),
            Loss("adversarial", deceived, self.config.adversarial_weight),
        )
        of_source = least_squares(self.discriminator(on_source.logits.detach().softmax(1)), "source")
        of_target = least_squares(self.discriminator(on_target.logits.detach().softmax(1)), "target")
        yield (Loss("discriminator", of_source + of_target),)

    def _denoise(self, target: Batch, step: int) -> Iterator[tuple[Loss, ...]]:
        assert self.teacher is not None
        c, filling = self.config, step < self.config.fill_steps
        prototypes = self.prototypes.value.clone()  # they move when the losses are done
        stored = self._on_grid(target.distributions, target, corners=False)
        feature, logits = self._maps(self.teacher(target.image), target)
        assigned = (-prototype_distance(feature, prototypes) / c.temperature).softmax(1)
        label = (stored if filling else assigned * stored).argmax(1)
        label = label.masked_fill(stored.sum(1) == 0, IGNORE)

        _, weak = self._maps(self.student(target.image, "target", target.index), target)
        losses = [
            Loss("target_ce", cross_entropy(weak, label), c.ce_weight),
            Loss("target_rce", reverse_cross_entropy(weak, label), c.rce_weight),
            Loss("target_uniform", uniform_divergence(weak), c.uniform_weight),
        ]
        if not filling:
            view = rand_augment(target.image, target.index, seed=self.seed, purpose="target")
            strong, _ = self._maps(self.student(view.image, "target", target.index), target)
            student, taught = -prototype_distance(strong, prototypes) / c.temperature, view.carry(assigned, 0)
            consistency = assignment_consistency(student, taught, taught.sum(1) > 0)
            losses.append(Loss("prototype_consistency", consistency, c.consistency_weight))
        yield tuple(losses)

        found = class_means(feature, logits.argmax(1), self.student.num_classes, min_cells=c.min_cells)
        self.prototypes.update(*found, average=filling)

    def _distil(self, target: Batch) -> Iterator[tuple[Loss, ...]]:
        c, stored = self.config, self._on_grid(target.distributions, target, corners=False)
        label = downscale_label(target.labels, (stored.shape[2], stored.shape[3]))
        view = rand_augment(target.image, target.index, seed=self.seed, purpose="target")
        label = view.carry(label[:, None].to(stored.dtype), IGNORE)[:, 0].long()
        taught = view.carry(stored, 0)
        _, strong = self._maps(self.student(view.image, "target", target.index), target)
        yield (
            Loss("target_ce", cross_entropy(strong, label)),
            Loss("distillation", distillation(strong, taught, taught.sum(1) > 0, form=c.kd), c.kd_weight),
            coverage(label != IGNORE),
        )

    def _maps(self, out: SegOutput, target: Batch) -> tuple[Tensor, Tensor]:
        """Features and logits of a network in the cells where target losses are taken."""
        corners = self.student.align_corners
        features, logits = out.embedding, out.aux["coarse_logits"]
        return self._on_grid(features, target, corners=corners), self._on_grid(logits, target, corners=corners)

    def _on_grid(self, plane: Tensor, target: Batch, *, corners: bool) -> Tensor:
        size = [side // STRIDE for side in target.image.shape[2:]]
        return F.interpolate(plane, size=size, mode="bilinear", align_corners=corners)

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        own = [build_optimizer(self.student, optim)]
        if self.discriminator is not None:
            own.append(discriminator_optimizer(self.discriminator, self.config.discriminator_lr, optim))
        return own
