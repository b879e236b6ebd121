"""The method that `benchmarks.ideas` varies: self-training with a mean teacher, each idea a field that is off."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.augment import strong
from udaseg.components.mixing import class_mask, paste
from udaseg.components.prototypes import ClassGaussians
from udaseg.components.pseudo_label import confident_share
from udaseg.distributed import sum_over_ranks
from udaseg.losses.contrastive import distribution_contrast, downscale_label
from udaseg.losses.segmentation import cross_entropy, lovasz_softmax
from udaseg.methods.base import Method
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.rng import uniforms
from udaseg.types import IGNORE, Batch, Loss, SegOutput

BINS = 200
CONTRAST_FROM = 40
"""Step from which there is contrast: the distributions of the source fill before."""


class Trial(Method):
    """Source cross-entropy, and cross-entropy of a strong view of the target with the teacher's labels."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        reliability: Literal["quality", "class", "class+quality", "all"] = "class"
        """What a teacher's pixel weighs: DACS's quality; 1 above its class's running threshold, else 0 or the quality;
        1 everywhere."""
        threshold: float = 0.9
        share: float = 0.5
        cap: float = 0.9
        teacher_momentum: float = 0.99
        flip: bool = False
        """The teacher sees the mirrored image too."""
        mix: float = 0.0
        """Share of the samples that ClassMix is done to."""
        jitter: float = 0.25
        style: float = 0.0
        """Share of the source images that take the target image's mean and deviation in Lab."""
        cutmix: float = 0.0
        """Share of the target's views that get a rectangle of another target image, with the teacher's labels of it."""
        masked: float = 0.0
        """Share of the target's view that is hidden, in square patches."""
        zoom: float = 1.0
        """Least share of the target's view that the student sees, enlarged."""
        source_prior: float = 0.0
        """Power of the source's class frequencies that its logits are raised by in its loss (logit adjustment)."""
        teacher_prior: float = 0.0
        """Power of the teacher's own class frequencies that its probabilities are divided by."""
        align: float = 0.0
        """Power of source over target frequencies that they are multiplied with (distribution alignment)."""
        balance: float = 0.0
        """Power of a class's predicted frequency that its pixels' weight is divided by."""
        source_lovasz: float = 0.0
        target_lovasz: float = 0.0
        contrast: float = 0.0
        """Weight of SDCA's contrast, the target's pixels with the teacher's reliable labels."""
        soft: bool = False
        """The teacher's probabilities in place of its labels."""
        reduction: Literal["all", "nonzero"] = "all"
        target_weight: float = 1.0

        def build(self, student: Segmenter, *, seed: int) -> Trial:
            return Trial(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        k = student.num_classes
        self.register_buffer("histogram", torch.zeros(k, BINS, dtype=torch.float64))
        self.register_buffer("source_share", torch.full((k,), 1 / k))
        self.register_buffer("target_share", torch.full((k,), 1 / k))
        if config.contrast:
            self.features = ClassGaussians(k, student.feature_channels[-1])
            self.outputs = ClassGaussians(k, k)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.style:
            source = replace(source, image=self._styled(source, target))
        out = self.student(source.image, "source", source.index)
        self._count_source(source.labels, step)
        logits = out.logits
        if c.source_prior:
            logits = logits + c.source_prior * self.source_share.clamp_min(1e-4).log()[:, None, None]
        losses = [Loss("source_ce", cross_entropy(logits, source.labels))]
        if c.source_lovasz:
            losses.append(Loss("source_lovasz", lovasz_softmax(out.logits, source.labels), c.source_lovasz))
        if c.contrast:
            for gaussians, level in zip((self.features, self.outputs), _levels(out), strict=True):
                gaussians.update(*_pixels(level.detach(), source.labels))
            losses.append(
                Loss("source_contrast", self._contrast(out, source.labels), c.contrast * (step >= CONTRAST_FROM))
            )
        yield tuple(losses)

        probability = self._teach(target, step)
        confidence, label = probability.max(1)
        weight = self._reliability(probability, confidence, label)
        image = target.image
        if c.mix:
            mask = class_mask(source.labels, source.index, seed=self.seed)
            mask &= self._draw(target.index, "mix", 1)[0][:, None, None] < c.mix
            image = paste(mask, source.image, image)
            label = paste(mask, source.labels, label)
            weight = paste(mask, torch.ones_like(weight), weight)
        if c.cutmix:
            mask = self._rectangles(target)
            image, label, weight = (paste(mask, plane.roll(1, 0), plane) for plane in (image, label, weight))
        image = strong(image, target.index, seed=self.seed, purpose="mixed", jitter=c.jitter)
        if c.masked:
            image = image * self._patches(target)
        if c.zoom < 1:
            image, label, weight = self._zoomed(image, label, weight, target.index)
        out = self.student(image, "target", target.index)
        if c.soft:
            ce = -(weight * (probability * out.logits.log_softmax(1)).sum(1)).mean()
        else:
            ce = cross_entropy(out.logits, label, weight, reduction=c.reduction)
        kept = label.masked_fill(weight == 0, IGNORE)
        losses = [Loss("target_ce", ce, c.target_weight), Loss("coverage", (kept != IGNORE).float().mean(), weight=0)]
        if c.target_lovasz:
            losses.append(Loss("target_lovasz", lovasz_softmax(out.logits, kept), c.target_lovasz))
        if c.contrast:
            losses.append(Loss("target_contrast", self._contrast(out, kept), c.contrast * (step >= CONTRAST_FROM)))
        yield tuple(losses)

    @torch.no_grad()
    def _teach(self, target: Batch, step: int) -> Tensor:
        c = self.config
        probability = self.teacher(target.image).logits.softmax(1)
        if c.flip:
            probability = (probability + self.teacher(target.image.flip(-1)).logits.softmax(1).flip(-1)) / 2
        mean = sum_over_ranks(probability.sum((0, 2, 3)))
        momentum = min(1 - 1 / (step + 1), 0.98)
        self.target_share.lerp_(mean / mean.sum(), 1 - momentum)
        if c.teacher_prior or c.align:
            factor = self.target_share.clamp_min(1e-3) ** -c.teacher_prior
            factor = factor * (self.source_share / self.target_share.clamp_min(1e-4)).clamp(0.1, 10) ** c.align
            probability = probability * factor[:, None, None]
            probability = probability / probability.sum(1, keepdim=True)
        return probability

    @torch.no_grad()
    def _reliability(self, probability: Tensor, confidence: Tensor, label: Tensor) -> Tensor:
        c, k = self.config, probability.shape[1]
        slot = label * BINS + (confidence * BINS).long().clamp_max(BINS - 1)
        counts = torch.bincount(slot.flatten(), minlength=k * BINS).view(k, BINS)
        self.histogram.mul_(0.98).add_(sum_over_ranks(counts.double()))
        quality = confident_share(confidence, c.threshold).expand_as(confidence)
        if c.reliability == "quality":
            return quality.clone()
        if c.reliability == "all":
            return torch.ones_like(confidence)
        top = self.histogram.flip(1).cumsum(1)
        wanted = c.share * self.histogram.sum(1, keepdim=True)
        threshold = ((BINS - 1 - (top < wanted).sum(1)).float() / BINS).clamp(0, c.cap)
        sure = confidence >= threshold[label]
        weight = torch.where(sure, 1.0, quality if c.reliability == "class+quality" else 0.0)
        if c.balance:
            frequency = (self.histogram.sum(1) / self.histogram.sum()).float().clamp_min(1e-3)
            factor = frequency**-c.balance
            weight = weight * (factor / (factor * frequency).sum())[label]
        return weight

    def _count_source(self, label: Tensor, step: int) -> None:
        k = self.student.num_classes
        counts = sum_over_ranks(torch.bincount(label[label != IGNORE], minlength=k).float())
        momentum = min(1 - 1 / (step + 1), 0.98)
        self.source_share.lerp_(counts / counts.sum().clamp_min(1), 1 - momentum)

    def _contrast(self, out: SegOutput, label: Tensor) -> Tensor:
        return sum(  # type: ignore[return-value]
            distribution_contrast(*_pixels(level, label), g.mean, g.variance, temperature=1.0)
            for g, level in zip((self.features, self.outputs), _levels(out), strict=True)
        )

    def _draw(self, index: Tensor, purpose: str, count: int) -> Tensor:
        return torch.from_numpy(uniforms(self.seed, index.cpu().numpy(), f"trial.{purpose}", count).T.copy()).float()

    def _styled(self, source: Batch, target: Batch) -> Tensor:
        """A share of the source images with the mean and deviation of the target image's Lab channels."""
        lab, other = (kornia.color.rgb_to_lab(x.image) for x in (source, target))
        (m, s), (m2, s2) = ((x.mean((2, 3), keepdim=True), x.std((2, 3), keepdim=True)) for x in (lab, other))
        styled = kornia.color.lab_to_rgb((lab - m) / s.clamp_min(1e-3) * s2 + m2).clamp(0, 1)
        chosen = self._draw(source.index, "style", 1)[0] < self.config.style
        return torch.where(chosen[:, None, None, None], styled, source.image)

    def _rectangles(self, target: Batch) -> Tensor:
        """(B, H, W) bool: a rectangle of a quarter to a half of each chosen sample's image."""
        height, width = target.image.shape[-2:]
        mask = torch.zeros(len(target.index), height, width, dtype=torch.bool)
        for plane, (chosen, area, aspect, v, w) in zip(
            mask, self._draw(target.index, "cutmix", 5).T.tolist(), strict=True
        ):
            if chosen < self.config.cutmix:
                side, ratio = (0.25 + 0.25 * area) ** 0.5, 2 ** (aspect - 0.5)
                h, x = min(height, round(height * side * ratio)), min(width, round(width * side / ratio))
                top, left = int(v * (height - h + 1)), int(w * (width - x + 1))
                plane[top : top + h, left : left + x] = True
        return mask

    def _patches(self, target: Batch) -> Tensor:
        """(B, 1, H, W): 0 in the hidden patches, of a sixth of the height."""
        height, width = target.image.shape[-2:]
        side = -(-height // 6)
        rows, columns = -(-height // side), -(-width // side)
        kept = self._draw(target.index, "masked", rows * columns) >= self.config.masked
        grid = kept.T.reshape(-1, 1, rows, columns).float()
        return grid.repeat_interleave(side, 2).repeat_interleave(side, 3)[:, :, :height, :width]

    def _zoomed(self, image: Tensor, label: Tensor, weight: Tensor, index: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A random crop of each sample, of a random size, brought back to the size of the image."""
        height, width = image.shape[-2:]
        views = []
        for i, (u, v, w) in enumerate(self._draw(index, "zoom", 3).T.tolist()):
            factor = self.config.zoom + (1 - self.config.zoom) * u
            h, x = round(height * factor), round(width * factor)
            at = (..., slice(t := int(v * (height - h + 1)), t + h), slice(left := int(w * (width - x + 1)), left + x))
            size = {"size": (height, width)}
            views.append(
                (
                    F.interpolate(image[i : i + 1][at], **size, mode="bilinear", align_corners=False),
                    F.interpolate(label[i : i + 1, None][at].float(), **size).long()[:, 0],
                    F.interpolate(weight[i : i + 1, None][at], **size)[:, 0],
                )
            )
        one, two, three = (torch.cat(parts) for parts in zip(*views, strict=True))
        return one, two, three

    def after_step(self) -> None:
        self.teacher.update(self.student)


def _levels(out: SegOutput) -> tuple[Tensor, Tensor]:
    return out.features[-1], out.aux["coarse_logits"]


def _pixels(level: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    small = downscale_label(label, (level.shape[2], level.shape[3]))
    return level.movedim(1, -1).flatten(0, 2), small.flatten()
