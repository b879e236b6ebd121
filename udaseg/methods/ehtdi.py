"""EHTDI: the target's own edges and features, without distillation (MM 2022, 2208.06100; ljjcoder/EHTDI)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.augment import random_resized_crop, strong
from udaseg.components.mixing import border, paste, thing_mask
from udaseg.config import Optim
from udaseg.losses.pixel_pair import two_view_contrast
from udaseg.losses.segmentation import cross_entropy, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, coverage, require_classes
from udaseg.models.heads import ASPPHead
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Count, Jitter, Momentum, NonNegative, Pixels, Positive, Share
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class EHTDI(Method):
    """Things are pasted both ways, so that edges of the target have true labels; two views of it are contrasted.

    1. source cross-entropy; an auxiliary classifier on the level before the last learns the same;
    2. the student labels whole target images; a crop of each gives a weak and a strong view, which differ in colour;
    3. half of the things of a source crop are pasted on both views;
    4. cross-entropy of the strong view, on its labels;
    5. what the weak view is sure of is pasted, from the strong view, on the source crop in a strong view of its own:
       cross-entropy of that mixture;
    6. contrast of weak and strong view, of their classes' mean logits and of their cells;
    7. with `edges`, 4 counts the border of the pasted things once more; the things are pasted on the mixture of 5 too,
       which counts the border of the target's sure pixels once more, with `mixed_weight`;
    8. an average of the student follows it, which is evaluated and teaches nothing.

    The authors' mixture, and their contrast of classes, learn from the first sample of a batch alone
    (`samples="first"`): the one on purpose, as it seems, the other by a slip of an index.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        things: tuple[int, ...] = (5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18)
        """Train ids of the classes that are pasted on the target: the authors' are all from the pole on."""
        threshold: Share = 0.95
        """Confidence of the weak view beyond which a pixel is sure."""
        target_weight: NonNegative = 0.1
        """Of the strong view's cross-entropy."""
        mixed_weight: NonNegative = 0.1
        """Of the cross-entropy of the target's sure pixels on the source."""
        contrast_weight: NonNegative = 0.01
        """Of each level of the contrast; the authors' for SYNTHIA is 0.008."""
        class_scale: Positive = 7.0
        """One over the temperature of the contrast of classes."""
        cell_scale: Positive = 20.0
        """The same of the contrast of cells."""
        edges: bool = False
        """Whether edges count once more, the authors' enhanced version."""
        samples: Literal["all", "first"] = "all"
        """What learns from the mixture on the source and from the contrast of classes: all samples, or the first of
        each group, as in the authors' code."""
        group_size: Count = 1
        """Consecutive samples that "first" is of: the authors' batch."""
        auxiliary_weight: NonNegative = 0.1
        """Of the auxiliary classifier's cross-entropies, times that of the main one's."""
        auxiliary_branches: tuple[Count, ...] = (6, 12)
        """Dilations of the auxiliary classifier."""
        crop: tuple[Pixels, Pixels] | None = (512, 512)
        """Height and width of the views; None = those of the images, which need be one size then."""
        crop_scale: tuple[Positive, Positive] = (0.2, 1.0)
        """Least and largest share of an image's area in a view."""
        jitter: Jitter = 0.2
        """Strength of the strong views' colour jitter."""
        teacher_momentum: Momentum = 0.999
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated; "teacher", the average, is the authors'."""

        def build(self, student: Segmenter, *, seed: int) -> EHTDI:
            return EHTDI(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        require_classes("things", config.things, student)
        self.config, self.seed = config, seed
        self.student = student
        levels, classes = student.feature_channels[:-1], student.num_classes
        self.auxiliary = ASPPHead(levels, classes, branches=config.auxiliary_branches)
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum, statistics="student", ramp=False)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            Loss("auxiliary_ce", cross_entropy(self._auxiliary(out, source.image), source.labels), c.auxiliary_weight),
        )

        source_view, source_label = self._crop(source.image, source.labels, source.index, "source")
        weak, label = self._crop(target.image, self._predicted(target.image).argmax(1), target.index, "target")
        views = {"weak": weak, "strong": self._strong(weak, target.index, "target")}
        things = thing_mask(
            source_label, source.index, things=c.things, seed=self.seed, num_classes=self.student.num_classes
        )
        views = {name: paste(things, source_view, view) for name, view in views.items()}
        label = paste(things, source_label, label)

        on = {name: self.student(view, "target", target.index) for name, view in views.items()}
        judged = self._predicted(weak) if c.edges else on["weak"].logits.detach()  # with edges, without the things
        confidence, target_label = judged.softmax(1).max(1)
        sure = confidence > c.threshold
        known = paste(things, source_label, target_label.masked_fill(~sure, IGNORE))
        pasted = sure | things if c.edges else sure
        mixed_label = paste(pasted, known if c.edges else target_label, source_label)
        mixture = paste(pasted, views["strong"], self._strong(source_view, source.index, "source"))
        on["mixed"] = self.student(mixture, "target", target.index)

        auxiliary = self._auxiliary(on["strong"], views["strong"])
        both = on["weak"].logits.softmax(1) + self._auxiliary(on["weak"], views["weak"]).softmax(1)
        auxiliary_label = both.detach().argmax(1)
        classes, cells = two_view_contrast(
            on["weak"].aux["coarse_logits"],
            on["strong"].aux["coarse_logits"],
            known,
            class_scale=c.class_scale,
            cell_scale=c.cell_scale,
        )
        small = c.target_weight * c.auxiliary_weight
        losses = [
            Loss("target_ce", output_cross_entropy(on["strong"], label), c.target_weight),
            Loss("target_auxiliary", cross_entropy(auxiliary, auxiliary_label), small),
            Loss("mixed_ce", output_cross_entropy(on["mixed"], self._used(mixed_label)), c.mixed_weight),
            Loss("class_contrast", self._first(classes, 0.0).mean(), c.contrast_weight),
            Loss("cell_contrast", cells.mean(), c.contrast_weight),
            coverage(sure),
        ]
        if c.edges:
            inner, unsure = ~border(things), ~border(sure) | things
            edge = output_cross_entropy(on["strong"], label.masked_fill(inner, IGNORE))
            auxiliary_edge = cross_entropy(auxiliary, auxiliary_label.masked_fill(inner, IGNORE))
            mixed_edge = output_cross_entropy(on["mixed"], self._used(mixed_label.masked_fill(unsure, IGNORE)))
            auxiliary_mixed = paste(pasted, paste(things, source_label, auxiliary_label), source_label)
            mixed_auxiliary = cross_entropy(self._auxiliary(on["mixed"], mixture), self._used(auxiliary_mixed))
            losses += [
                Loss("target_edge", edge, c.target_weight),
                Loss("target_auxiliary_edge", auxiliary_edge, small),
                Loss("mixed_edge", mixed_edge, c.mixed_weight**2),
                Loss("mixed_auxiliary", mixed_auxiliary, c.mixed_weight * small),
            ]
        yield tuple(losses)

    @torch.no_grad()
    def _predicted(self, image: Tensor) -> Tensor:
        """(B, K, H, W) logits of the student, from which nothing is learned."""
        logits: Tensor = self.student(image, "target", detail="everywhere").logits
        return logits

    def _crop(self, image: Tensor, label: Tensor, index: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
        size = self.config.crop or (image.shape[2], image.shape[3])
        return random_resized_crop(
            image, label, index, size=size, scale=self.config.crop_scale, seed=self.seed, purpose=purpose
        )

    def _strong(self, view: Tensor, index: Tensor, purpose: str) -> Tensor:
        return strong(view, index, seed=self.seed, purpose=f"view.{purpose}", jitter=self.config.jitter)

    def _auxiliary(self, out: SegOutput, image: Tensor) -> Tensor:
        """The auxiliary classifier's logits at the size of the image."""
        return self.student.upsampled(self.auxiliary(out.features[:-1])[0], image)

    def _used(self, label: Tensor) -> Tensor:
        """A label of which nothing is known in the samples that do not learn from it."""
        return self._first(label, IGNORE)

    def _first(self, x: Tensor, fill: float) -> Tensor:
        """`samples`: all, or the first of each group and `fill` for the others."""
        if self.config.samples == "all":
            return x
        others = torch.arange(len(x), device=x.device) % self.config.group_size != 0
        return x.masked_fill(others.view(-1, *(1,) * (x.ndim - 1)), fill)

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.auxiliary])]
