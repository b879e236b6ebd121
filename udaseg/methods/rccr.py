"""RCCR: contrast of regions that are seen in two contexts (ICME 2022, 2110.05170; qianyuzqy/RCCR)."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.components.augment import strong
from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.drawn import on_device
from udaseg.components.memory_bank import PixelQueue
from udaseg.components.mixing import paste, region_mask
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.pixel_pair import flatten, region_contrast
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer
from udaseg.models.heads import ProjectionHead
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher, follow
from udaseg.ranges import Channels, Count, CountOrZero, Jitter, Momentum, NonNegative, Positive, Share
from udaseg.rng import keyed
from udaseg.types import Batch, Loss, SegOutput


class RCCR(Method):
    """DACS, and a region of the target looks to the student amid the source as it does to the teacher where it was.

    1. source cross-entropy;
    2. the teacher labels the target, q = share of its pixels that are confident, and ClassMix mixes both, as in DACS;
    3. mixed cross-entropy, pixels from the source with weight 1, from the target with weight q;
    4. a rectangle of the target is pasted on the source, jittered and blurred; each of its cells, as the student
       projects it, is pulled to the same cell of the target as the teacher's projection has it, where the teacher is
       confident, and away from all that a bank holds of other classes;
    5. the bank takes in cells of the mixture and of the target at each step, before 4 looks into it;
    6. on request, MIC's masked consistency, and CRDA's of pixels' relations in 3;
    7. the teacher follows the student, and its projection the student's.

    The authors' script for GTA5 begins the contrast at step 300,000 of 250,000, so never; that for SYNTHIA at 0.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(SelfTraining, MethodConfig):
        teacher_momentum: Momentum = 0.99
        ignore_top: CountOrZero = 0
        ignore_bottom: CountOrZero = 0
        jitter: Jitter = 0.25
        """Strength of the colour jitter of both mixtures."""
        contrast_weight: NonNegative = 0.01
        """Of the contrast at the last step; at step t of T it is times e^(-5 (1 - sqrt(t / T)))."""
        contrast_from: CountOrZero = 0
        """Step from which regions are contrasted."""
        contrast_threshold: Share = 0.75
        """Confidence of the teacher beyond which a cell is contrasted."""
        temperature: Positive = 0.1
        projection_channels: Channels = 128
        projection_fixed: bool = False
        """Whether the projection stays as drawn from N(0, 0.01): in the authors' code no optimiser has it."""
        bank_length: Count = 24_000
        """Cells in the bank; the authors' are those of three steps."""
        bank_cells: Count = 2000
        """Cells of each mixture and of each target image that enter at a step; a map with fewer gives all of them."""

        def build(self, student: Segmenter, *, seed: int) -> RCCR:
            return RCCR(self, student, seed)

        def weight_at(self, step: int, total_steps: int) -> float:
            """Of the contrast at a step."""
            return self.contrast_weight * math.exp(-5 * (1 - math.sqrt(step / total_steps)))

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.projection = ProjectionHead(student.feature_channels[-1], config.projection_channels)
        if config.projection_fixed:
            for weight in self.projection.requires_grad_(False).parameters():
                if weight.ndim > 1:
                    nn.init.normal_(weight, std=0.01)
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.teacher_projection = copy.deepcopy(self.projection).requires_grad_(False)
        self.thresholds = config.thresholds(student.num_classes)
        self.bank = PixelQueue(config.bank_length, config.projection_channels)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.teacher_moves == "before":
            self._move_teacher()
        out = self.student(source.image, "source", source.index)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            *c.pne.losses(out, source.labels, source.index, seed=self.seed),
        )

        on_target = self.teacher(target.image)
        confidence, label = on_target.logits.softmax(1).max(1)
        mixed = c.mix(
            self.teacher, source, target, seed=self.seed, thresholds=self.thresholds, taught=(confidence, label)
        )
        out = self.student(mixed.image, "target", target.index)
        loss = output_cross_entropy(out, mixed.label, mixed.weight, reduction=c.reduction)
        relations = c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed)
        yield Loss("mixed_ce", loss), Loss("coverage", mixed.quality, weight=0), *relations

        if step >= c.contrast_from:
            contrast = self._contrast(source, target, on_target)
            yield (Loss("region_contrast", contrast, c.weight_at(step, total_steps)),)

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def _contrast(self, source: Batch, target: Batch, on_target: SegOutput) -> Tensor:
        """Step 4 and 5; `on_target` is the teacher's output on the target."""
        c = self.config
        stride, level = self.student.feature_stride, on_target.features[-1]
        drawn, size = region_mask(target.image, target.index, stride=stride, seed=self.seed), level.shape[-2:]
        pixels = _within(drawn.repeat_interleave(stride, 1).repeat_interleave(stride, 2), target.image.shape[-2:])
        region = _within(drawn, size)
        image = strong(
            paste(pixels, target.image, source.image),
            target.index,
            seed=self.seed,
            purpose="region",
            jitter=c.jitter,
            form=c.jitter_form,
        )
        out = self.student(image, "target", target.index)
        seen, taught = F.normalize(self.projection(out.features[-1]), dim=1), self._taught(level)
        coarse = F.interpolate(on_target.aux["coarse_logits"], size=size, mode="bilinear", align_corners=False)
        confidence, label = coarse.softmax(1).max(1)
        mixed_label = torch.where(region, label, downscale_label(source.labels, (size[0], size[1])))
        self.bank.push(*self._drawn({"mixture": (seen, mixed_label), "target": (taught, label)}, target.index))
        return region_contrast(
            flatten(seen),
            flatten(taught),
            label.flatten(),
            (region & (confidence > c.contrast_threshold)).flatten(),
            self.bank.entries,
            self.bank.labels,
            temperature=c.temperature,
        )

    @torch.no_grad()
    def _taught(self, level: Tensor) -> Tensor:
        """(B, A, h, w) unit vectors, the teacher's projection of its last level."""
        return F.normalize(self.teacher_projection(level), dim=1)

    def _drawn(self, maps: Mapping[str, tuple[Tensor, Tensor]], index: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, n, A) and labels (B, n) of cells that are drawn of each sample's maps."""
        features, labels = [], []
        for name, (feature, label) in maps.items():
            count = label[0].numel()
            kept = min(self.config.bank_cells, count)
            places = np.stack([keyed(self.seed, i, name, "bank").permutation(count)[:kept] for i in index.tolist()])
            place = on_device(places, label.device)
            features.append(
                feature.flatten(2).transpose(1, 2).gather(1, place[..., None].expand(-1, -1, len(feature[0])))
            )
            labels.append(label.flatten(1).gather(1, place))
        return torch.cat(features, 1), torch.cat(labels, 1)

    def _move_teacher(self) -> None:
        follow(self.teacher_projection, self.projection, self.teacher.next_momentum)
        self.teacher.update(self.student)

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self._move_teacher()

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        heads = [] if self.config.projection_fixed else [self.projection]
        return [build_optimizer(self.student, optim, heads=heads)]


def _within(mask: Tensor, size: tuple[int, ...]) -> Tensor:
    """A mask at another size: cut off, or filled up with what is not set."""
    rows, columns = (whole - part for whole, part in zip(size, mask.shape[-2:], strict=True))
    return F.pad(mask, (0, columns, 0, rows), value=False)
