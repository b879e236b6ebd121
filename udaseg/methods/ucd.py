"""UCD: new classes for a network that keeps its old ones (2203.14098; ygjwd12345/UCD), on MiB (2002.00718)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.losses.contrastive import downscale_label
from udaseg.losses.distillation import as_before, unbiased_distillation
from udaseg.losses.segmentation import unbiased_cross_entropy
from udaseg.losses.weighted_contrast import weighted_contrast
from udaseg.methods.base import Method, MethodConfig
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import FrozenNetwork
from udaseg.ranges import Count, CountOrZero, NonNegative, Positive
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class UCD(Method):
    """Labels tell new classes; every other pixel may be of any old class, of which `background` is one.

    The stage begins from a network of the old classes, whose head grows: each new class gets a part of the background's
    probability. A copy of it stays as it is.

    1. unbiased cross-entropy: where no new class is labelled, the old ones together are likely;
    2. unbiased distillation: the student's old classes are as likely as the copy's, new ones counted as background;
    3. cells have the new class of their label, else the old class that the copy finds; background has no part;
    4. contrast: the student's cells are pulled to its own, and to the copy's of old classes, of the same class; a pair
       weighs as much as the copy thinks both to be of one class, and 1 where labels say so.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        old_classes: Count = 16
        """How many of the dataset's classes, the first ones, the network of `init_from` has, the background too."""
        background: CountOrZero = 0
        """The old class that a pixel of a new one had."""
        distillation_weight: NonNegative = 10.0
        contrast_weight: NonNegative = 0.01
        temperature: Positive = 0.07
        """Of the contrast."""
        variant: Literal["released", "fixed"] = "fixed"
        """"released": the largest similarity is taken off all but those of negatives, as in the authors' code, which
        therefore weigh up to e^(1 / temperature) times as much."""
        group_size: Count = 1
        """Consecutive samples whose cells are contrasted: those of one of the authors' GPUs."""

        def build(self, student: Segmenter, *, seed: int) -> UCD:
            return UCD(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        for name, below in (("old_classes", student.num_classes), ("background", config.old_classes)):
            if getattr(config, name) >= below:
                raise ValueError(f"method.{name} is {getattr(config, name)}; it must lie below {below}")
        self.config = config
        self.student = student
        self.old = FrozenNetwork(student)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source = self.config, batches["source"]
        old = self.old(source.image, "source")
        out = self.student(source.image, "source", source.index)
        distillation = unbiased_distillation(out.logits, self._before(old.logits), background=c.background)
        yield (
            Loss("ce", unbiased_cross_entropy(out, source.labels, c.old_classes)),
            Loss("distillation", distillation, c.distillation_weight),
            Loss("contrast", self._contrast(out, old, source.labels), c.contrast_weight),
        )

    def _contrast(self, out: SegOutput, old: SegOutput, label: Tensor) -> Tensor:
        c, size = self.config, out.embedding.shape[2:]
        coarse = F.interpolate(old.aux["coarse_logits"], size=size, mode="bilinear", align_corners=False)
        probability = self._before(coarse).softmax(1)
        found = probability.argmax(1)
        label = downscale_label(label, (size[0], size[1]))
        new = (label >= c.old_classes) & (label != IGNORE)
        label = torch.where(new, label, found.masked_fill(found == c.background, IGNORE))
        # what is known of a cell: how likely each old class is, or that it is of a new one
        known = torch.cat([probability * ~new[:, None], new[:, None].to(probability.dtype)], 1)

        mine, theirs, weight = (self._cells(plane) for plane in (out.embedding, old.embedding, known))
        anchors, only_old = (self._cells(y[:, None])[..., 0] for y in (label, label.masked_fill(new, IGNORE)))
        return weighted_contrast(
            mine,
            anchors,
            weight,
            torch.cat([mine.detach(), theirs], 1),
            torch.cat([anchors, only_old], 1),
            torch.cat([weight, weight], 1),
            temperature=c.temperature,
            unshifted_negatives=c.variant == "released",
        )

    def _before(self, logits: Tensor) -> Tensor:
        """Logits of the old classes, those that the copy had before its head grew."""
        return as_before(logits, self.config.old_classes, self.config.background)

    def _cells(self, plane: Tensor) -> Tensor:
        """(G, N, A) cells of a (B, A, h, w) map, group by group."""
        return plane.movedim(1, -1).unflatten(0, (-1, self.config.group_size)).flatten(1, 3)
