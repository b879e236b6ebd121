"""LDBE: source-free adaptation by label denoising, then boundary enhancement (2110.06484; fumyou13/LDBE)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from udaseg.components.mixing import class_mask, next_of_group, paste
from udaseg.losses.segmentation import EntropyForm, entropy, negative_learning, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Count, CountOrZero, Momentum, NonNegative, Share
from udaseg.rng import keyed
from udaseg.types import IGNORE, Batch, Loss


class LDBE(Method):
    """Only the target is read, with the pseudo-labels that the network has given it before the stage.

    label_denoising:
    1. positive learning: cross-entropy on the pseudo-labels;
    2. entropy of every pixel;
    3. negative learning: no pixel is of the class in the k-th place of its ranking, k drawn around the middle.

    boundary_enhancement:
    1. the teacher labels what the pseudo-labels leave open;
    2. half of each image's classes are pasted over the next image of its group;
    3. cross-entropy on the mixture, each image weighted by the share of its pixels that are sure.

    The teacher follows the student in both phases.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        phase: Literal["label_denoising", "boundary_enhancement"] = "label_denoising"
        entropy_weight: NonNegative = 1.0
        """The authors' configuration has a `lamb` of 0.5 that their code does not read."""
        entropy: EntropyForm = "double_softmax"
        """"double_softmax" is the authors' code; "shannon" the usual entropy."""
        negative_weight: NonNegative = 1.0
        place_spread: CountOrZero = 3
        """k = K // 2 + U{-spread ... spread}, one draw a step: 6 to 12 of 19 classes, 2 to 4 of seven."""
        threshold: Share = 0.97
        """Confidence from which a pixel without pseudo-label counts as sure."""
        teacher_momentum: Momentum = 0.99
        group_size: Count = 1
        """Consecutive samples that are pasted on one another."""
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated; the authors evaluate and publish the student."""

        def build(self, student: Segmenter, *, seed: int) -> LDBE:
            return LDBE(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        enhancing = config.phase == "boundary_enhancement"
        if enhancing and config.group_size < 2:
            raise ValueError(f"method.group_size is {config.group_size}; boundary enhancement pastes between 2 or more")
        statistics: Literal["own", "student"] = "own" if enhancing else "student"
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum, statistics=statistics, drops=enhancing)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        denoising = self.config.phase == "label_denoising"
        yield self._denoise(batches["target"], step) if denoising else self._enhance(batches["target"])

    def _denoise(self, target: Batch, step: int) -> tuple[Loss, ...]:
        c, classes = self.config, self.student.num_classes
        out = self.student(target.image, "target", target.index)
        place = drawn_place(classes, c.place_spread, keyed(self.seed, step, "place"))
        return (
            Loss("positive", output_cross_entropy(out, target.labels, target.weight)),
            Loss("entropy", entropy(out.logits, form=c.entropy), c.entropy_weight),
            Loss("negative", negative_learning(out.logits, place), c.negative_weight),
            coverage(target.labels != IGNORE),
        )

    def _enhance(self, target: Batch) -> tuple[Loss, ...]:
        c = self.config
        confidence, teacher_label = self.teacher.label(target.image)
        labelled = target.labels != IGNORE
        label = torch.where(labelled, target.labels, teacher_label)
        confidence = torch.where(labelled, 1.0 if target.weight is None else target.weight, confidence)

        mask = class_mask(label, target.index, seed=self.seed, round_up=False, num_classes=self.student.num_classes)
        planes = (target.image, label, confidence)
        image, label, confidence = (paste(mask, x, next_of_group(x, c.group_size)) for x in planes)
        sure = (confidence >= c.threshold).float().mean((1, 2))
        weight = sure[:, None, None].expand_as(confidence)
        out = self.student(image, "target", target.index)
        return (
            Loss("mixed_ce", output_cross_entropy(out, label, weight, reduction="nonzero")),
            coverage(sure),
        )

    def after_step(self) -> None:
        self.teacher.update(self.student)


def drawn_place(classes: int, spread: int, rng: np.random.Generator) -> int:
    """The place in the ranking of K classes that negative learning takes, K // 2 +- spread; never the first.

    Of few classes the draw would reach the first place, which the other terms want the pixel to be of: it spreads less.
    """
    spread = min(spread, max(classes // 2 - 2, 0))
    return max(classes // 2 + int(rng.integers(-spread, spread + 1)), 2)
