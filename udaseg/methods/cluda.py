"""CLUDA: DAFormer with contrast across classes, domains and resolutions (2208.14227; user0407/CLUDA)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.feature_distance import FeatureDistance
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.pixel_pair import multi_resolution_contrast, pixel_contrast
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, require_classes
from udaseg.models.heads import ContextAwareHead
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Channels, Count, CountOrZero, NonNegative, Pixels
from udaseg.types import IGNORE, Batch, Loss, SegOutput


class CLUDA(Method):
    """DAFormer's step, where pixels of a class attract each other, within source images and across mixed ones.

    1. source cross-entropy, feature distance, and contrast of the source's pixels by their labels;
    2. the teacher labels the target, ClassMix mixes both: as in DAFormer;
    3. mixed cross-entropy, and contrast of the mixture's pixels, pairs weighted by the product of their weights;
    4. on request, CRDA's consistency of pixels' relations in the mixture, and MIC's masked consistency;
    5. the teacher follows the student.

    What is compared is the map that the head fuses of all levels. With a network of two resolutions (`HRDA`) context
    pixels are compared with context and detail pixels, in shares that a learned map gives; later in training the detail
    crop of the mixture lies where the context's prediction is least certain.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FeatureDistance, SelfTraining, MethodConfig):
        contrast_weight: NonNegative = 1.0
        contrast_size: Pixels = 65
        """Side of the square grid that features and labels are brought to."""
        variant: Literal["fixed", "released"] = "fixed"
        """"released": 255 is a class, class 0 counts as outside the detail crop, the zeros outside it are keys, and
        with several images features are paired with other pixels' labels, as in the authors' code."""
        seek_from: CountOrZero = 12_001
        """Step from which the mixture's detail crop is the least certain one."""
        attention_channels: Channels = 256
        """Width of the head that shares pairs out between the resolutions."""
        group_size: Count = 2
        """Consecutive samples whose pixels are compared: the authors' batch."""

        def build(self, student: Segmenter, *, seed: int) -> CLUDA:
            return CLUDA(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        require_classes("things", config.things, student)
        self.config, self.seed = config, seed
        self.student = student
        self.attention = ContextAwareHead(
            student.feature_channels, 1, branches=(), channels=config.attention_channels, dropout=0.0
        )
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds = config.thresholds(student.num_classes)
        self.beginning = config.network_now(student)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.teacher_moves == "before":
            self.teacher.update(self.student)
        out = self.student(source.image, "source", source.index)
        losses = [
            Loss("source_ce", output_cross_entropy(out, source.labels, reduction=c.reduction)),
            Loss("source_contrast", self._contrast(out, source.labels), c.contrast_weight),
        ]
        losses += c.pne.losses(out, source.labels, source.index, seed=self.seed)
        yield *losses, *c.distances(out, self.beginning, source)

        mixed = c.mix(self.teacher, source, target, seed=self.seed, thresholds=self.thresholds)
        out = self.student(mixed.image, "target", target.index, detail="entropy" if step >= c.seek_from else "random")
        yield (
            Loss("mixed_ce", output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)),
            Loss("mixed_contrast", self._contrast(out, mixed.label, mixed.weight), c.contrast_weight),
            Loss("coverage", mixed.quality, weight=0),
            *c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed),
        )

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def _contrast(self, out: SegOutput, label: Tensor, weight: Tensor | None = None) -> Tensor:
        c, released = self.config, self.config.variant == "released"
        size = (c.contrast_size, c.contrast_size)
        y = downscale_label(label, size)
        valid = None if released else y != IGNORE
        context = _resized(out.embedding, size)
        pixel = None if weight is None else _resized(weight[:, None], size)[:, 0]
        if "detail_embedding" not in out.aux:
            return pixel_contrast(context, y, pixel, valid=valid, group_size=c.group_size, position_major=released)

        at, crop = out.aux["detail_at"], out.aux["detail_logits"].shape[-2:]
        inside = downscale_label(_inside(label, at, crop).long(), size).bool()
        shifted = y if released else y + 1  # so that 0 means outside and nothing else
        return multi_resolution_contrast(
            context,
            _resized(out.aux["detail_embedding"], size),
            shifted,
            shifted * inside,
            _resized(self.attention(out.features)[0].sigmoid(), size)[:, 0],
            pixel,
            valid=valid,
            detail_valid=None if valid is None else valid & inside,
            group_size=c.group_size,
            position_major=released,
        )

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.attention])]


def _resized(plane: Tensor, size: tuple[int, int]) -> Tensor:
    return F.interpolate(plane, size=size, mode="bilinear", align_corners=True)


def _inside(label: Tensor, at: Tensor, crop: torch.Size) -> Tensor:
    """(B, H, W) bool: where each sample's crop, from its (row, column) on, lies."""
    rows, columns = (torch.arange(n, device=label.device) for n in label.shape[-2:])
    row, column = at[:, :1], at[:, 1:]
    in_rows = (rows >= row) & (rows < row + crop[0])
    in_columns = (columns >= column) & (columns < column + crop[1])
    return in_rows[:, :, None] & in_columns[:, None]
