"""DAFormer's training (2111.14887; lhoyer/DAFormer), on request with MIC's masked consistency (2212.01322; lhoyer/MIC)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.augment import strong
from udaseg.losses.feature import feature_distance, majority_label
from udaseg.losses.segmentation import Reduction, cross_entropy
from udaseg.method import Optim, build_optimizer
from udaseg.mixing import class_mask, paste, patch_mask
from udaseg.models.segmenter import Segmenter
from udaseg.pseudo_label import confident_share
from udaseg.teacher import EMATeacher, FrozenCopy
from udaseg.types import Batch, Loss


class DAFormer(nn.Module):
    """DACS, whose features of things stay near ImageNet's; rare-class sampling and warm-up are the recipe's.

    1. source cross-entropy, and the distance of the last features to those of the network that the stage began with, on
       cells where a thing class holds most of the source label;
    2. the teacher labels the target, q = share of its pixels that are confident; rows at the border have weight 0;
    3. cross-entropy on ClassMix of both, jittered and blurred, source pixels with weight 1, target pixels with q;
    4. MIC: the target in a strong view of its own with most patches hidden, on the teacher's labels with weight q;
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
        mask_weight: float = 0.0
        """Of MIC's masked consistency; 1 in MIC, 0 = off."""
        mask_block: int = 64
        """Side of a hidden patch in pixels."""
        mask_ratio: float = 0.7
        """Share of hidden patches."""
        reduction: Reduction = "all"
        """Of every cross-entropy; "all" is the authors'."""
        jitter: float = 0.2

        def build(self, student: Segmenter, *, seed: int) -> DAFormer:
            return DAFormer(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        if any(not 0 <= c < student.num_classes for c in config.things):
            raise ValueError(f"method.things {config.things} names classes beyond 0 ... {student.num_classes - 1}")
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.beginning = FrozenCopy(student) if config.feature_weight else None

    @property
    def predictor(self) -> nn.Module:
        return self.teacher.network

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        assert source.label is not None
        out = self.student(source.image, "source")
        losses = [Loss("source_ce", cross_entropy(out.logits, source.label, reduction=c.reduction))]
        if self.beginning is not None:
            reference = self.beginning(source.image, "source").features[-1]
            losses.append(
                Loss("feature_distance", self._distance(out.features[-1], reference, source.label), c.feature_weight)
            )
        yield tuple(losses)

        confidence, target_label = self.teacher.label(target.image)
        quality = confident_share(confidence, c.threshold)
        target_weight = quality.expand_as(confidence).clone()
        target_weight[:, : c.ignore_top] = 0
        target_weight[:, max(confidence.shape[1] - c.ignore_bottom, 0) :] = 0

        mask = class_mask(source.label, source.index, seed=self.seed)
        image = self._strong(paste(mask, source.image, target.image), target.index, "mixed")
        label = paste(mask, source.label, target_label)
        weight = paste(mask, torch.ones_like(confidence), target_weight)
        mixed = cross_entropy(self.student(image, "target").logits, label, weight, reduction=c.reduction)
        yield Loss("mixed_ce", mixed), Loss("coverage", quality, weight=0)

        if c.mask_weight:
            shown = patch_mask(target.image, target.index, block=c.mask_block, ratio=c.mask_ratio, seed=self.seed)
            view = self._strong(target.image, target.index, "masked")
            image = torch.where(shown[:, None], view, self.student.mean)  # hidden pixels are 0 once normalised
            logits = self.student(image, "target").logits
            masked = cross_entropy(logits, target_label, target_weight, reduction=c.reduction)
            yield (Loss("masked_ce", masked, c.mask_weight),)

    def _distance(self, feature: Tensor, reference: Tensor, label: Tensor) -> Tensor:
        cells = majority_label(
            label,
            label.shape[-1] // feature.shape[-1],
            num_classes=self.student.num_classes,
            min_share=self.config.thing_share,
        )
        mask = torch.isin(cells, torch.tensor(self.config.things, device=cells.device))
        return feature_distance(feature.float(), reference.float(), mask)

    def _strong(self, image: Tensor, index: Tensor, purpose: str) -> Tensor:
        return strong(image, index, seed=self.seed, purpose=purpose, jitter=self.config.jitter)

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim)]
