"""Mixtures of source and target with the teacher's labels."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udaseg.components.augment import JitterForm, strong
from udaseg.components.class_thresholds import ClassThresholds, Reliability
from udaseg.components.equal_contrast import PNE
from udaseg.components.masked_consistency import MIC
from udaseg.components.mixing import class_mask, paste
from udaseg.components.pseudo_label import confident_share
from udaseg.components.relation_consistency import CRDA
from udaseg.losses.segmentation import Reduction
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Count, CountOrZero, Jitter, Momentum, Share
from udaseg.types import Batch, Loss


@dataclass(frozen=True, slots=True)
class Mixture:
    """ClassMix of source and target, and what the teacher makes of the target; planes are (B, H, W)."""

    image: Tensor
    """(B, 3, H, W), in a strong view."""
    mask: Tensor
    """Bool: the pixels of the source."""
    label: Tensor
    """(B, H, W) int64 train ids: the source's labels and the teacher's, 255 = ignore."""
    weight: Tensor
    """(B, H, W) in [0, 1]: 1 where pixels are the source's or few-shot images'; where they are the target's `quality`,
    or with thresholds per class 1 or 0 as they are reliable; 0 in its border."""
    sure: Tensor
    """Bool: pixels of the source, and of the target where the teacher is confident."""
    target_label: Tensor
    """(B, H, W) int64: the teacher's labels of the whole target."""
    target_weight: Tensor
    """(B, H, W): their weights."""
    quality: Tensor
    """Scalar in [0, 1]: share of the target's pixels that the teacher is sure of, with thresholds per class of this
    rank's alone."""


def mix(
    teacher: EMATeacher,
    source: Batch,
    target: Batch,
    *,
    fewshot: Batch | None = None,
    seed: int,
    threshold: float,
    thresholds: ClassThresholds | None = None,
    jitter: float,
    ignore_top: int = 0,
    ignore_bottom: int = 0,
    include_ignore: bool = True,
    jitter_probability: float = 0.8,
    blur_probability: float = 0.5,
    jitter_form: JitterForm = "blend",
    pool_size: int = 1,
    taught: tuple[Tensor, Tensor] | None = None,
    mask: Tensor | None = None,
) -> Mixture:
    """The teacher labels the target, and half of each source image's classes is pasted on it, jittered and blurred.

    Source: DACS (2007.08702), with DAFormer's border; TADA (2109.04813), which pastes twice.

    Args:
        teacher: labels the target.
        source, target: sample i of one goes with sample i of the other.
        fewshot: labelled images of the target; half of the classes of each are pasted first, with weight 1.
        seed: key of the run and stage.
        threshold: confidence from which a pixel counts toward the quality.
        thresholds: in place of `threshold` and quality, those of the classes, which learn from what the teacher says.
        jitter: strength of the strong view's colour jitter.
        ignore_top, ignore_bottom: rows of the target that weigh 0.
        include_ignore, pool_size: see `class_mask`.
        jitter_probability, blur_probability: see `strong`; `jitter_form` is its `form`.
        taught: what `teacher.label` returns of the target, where the teacher has seen it already.
        mask: (B, H, W) bool, the pixels of the source, in place of those of half of its classes.
    """
    confidence, target_label = teacher.label(target.image) if taught is None else taught
    if thresholds is None:
        sure, quality = confidence >= threshold, confident_share(confidence, threshold)
        target_weight = quality.expand_as(confidence).clone()
    else:
        thresholds.update(confidence, target_label)
        sure = thresholds.reliable(confidence, target_label)
        target_weight = sure.to(confidence.dtype)
        quality = target_weight.mean()
    target_weight[:, :ignore_top] = 0
    target_weight[:, max(confidence.shape[1] - ignore_bottom, 0) :] = 0

    ones = torch.ones_like(confidence)
    image, label, weight, known = target.image, target_label, target_weight, torch.zeros_like(sure)
    if fewshot is not None:
        known = class_mask(
            fewshot.labels,
            fewshot.index,
            seed=seed,
            include_ignore=False,
            num_classes=teacher.network.num_classes,
            purpose="fewshot_mask",
        )
        planes = (fewshot.image, image), (fewshot.labels, label), (ones, weight)
        image, label, weight = (paste(known, over, under) for over, under in planes)
    if mask is None:
        mask = class_mask(
            source.labels,
            source.index,
            seed=seed,
            include_ignore=include_ignore,
            pool_size=pool_size,
            num_classes=teacher.network.num_classes,
        )
    image = strong(
        paste(mask, source.image, image),
        target.index,
        seed=seed,
        purpose="mixed",
        jitter=jitter,
        jitter_probability=jitter_probability,
        blur_probability=blur_probability,
        form=jitter_form,
    )
    return Mixture(
        image=image,
        mask=mask,
        label=paste(mask, source.labels, label),
        weight=paste(mask, ones, weight),
        sure=mask | known | sure & (target_weight > 0),
        target_label=target_label,
        target_weight=target_weight,
        quality=quality,
    )


@dataclass(frozen=True, kw_only=True)
class SelfTraining:
    """The settings that DAFormer and what builds on it share."""

    threshold: Share = 0.968
    """Confidence from which a teacher's pixel counts toward q."""
    reliability: Reliability = "quality"
    """What a teacher's pixel weighs: "quality" is q for all; "class" 1 where it reaches the running threshold of its
    class, else 0, see `udaseg.components.class_thresholds.ClassThresholds`."""
    class_share: Share = 0.5
    """Most certain share of each class's pixels that is reliable ("class")."""
    class_cap: Share = 0.9
    """Confidence from which a pixel is reliable whatever the share ("class")."""
    teacher_momentum: Momentum = 0.999
    ignore_top: CountOrZero = 15
    """Rows of the target's pseudo-label that weigh 0."""
    ignore_bottom: CountOrZero = 120
    """Likewise, of the bottom, where a car's own bonnet is."""
    reduction: Reduction = "all"
    """Of every cross-entropy; "all" is the authors'."""
    jitter: Jitter = 0.2
    """Strength of the mixture's colour jitter."""
    jitter_form: JitterForm = "blend"
    """"hsv" is the authors', see `udaseg.components.augment.strong`."""
    pool: Literal["image", "batch"] = "image"
    """Whose classes ClassMix draws half of: each source image's, or those of all `group_size` samples, the authors'."""
    group_size: Count = 1
    """Consecutive samples that are coupled: the authors' batch."""
    teacher_moves: Literal["after", "before"] = "after"
    """"before" the step's losses is the authors', so that the network of the start counts in the average while it ramps
    up; "after" the step is DACS's."""
    evaluate: Literal["teacher", "student"] = "teacher"
    """The network that is evaluated; the authors evaluate and publish the student. Which measured better differs
    from run to run, see docs/methods/README.md."""
    mic: MIC = MIC()
    crda: CRDA = CRDA()
    pne: PNE = PNE()

    def thresholds(self, num_classes: int) -> ClassThresholds | None:
        """What "class" judges pixels by; a method keeps it."""
        if self.reliability == "quality":
            return None
        return ClassThresholds(num_classes, share=self.class_share, cap=self.class_cap)

    def mix(
        self,
        teacher: EMATeacher,
        source: Batch,
        target: Batch,
        *,
        seed: int,
        thresholds: ClassThresholds | None,
        taught: tuple[Tensor, Tensor] | None = None,
        mask: Tensor | None = None,
    ) -> Mixture:
        """`mix` with these settings and what `thresholds` returned."""
        return mix(
            teacher,
            source,
            target,
            seed=seed,
            threshold=self.threshold,
            thresholds=thresholds,
            jitter=self.jitter,
            ignore_top=self.ignore_top,
            ignore_bottom=self.ignore_bottom,
            jitter_form=self.jitter_form,
            pool_size=self.group_size if self.pool == "batch" else 1,
            taught=taught,
            mask=mask,
        )

    def masked(
        self, student: Segmenter, source: Batch, target: Batch, mixed: Mixture, *, seed: int
    ) -> Iterator[tuple[Loss, ...]]:
        """`MIC.losses` on what the teacher made of the target; nothing where it is off."""
        labels = mixed.target_label, mixed.target_weight
        form = self.jitter_form
        return self.mic.losses(student, source, target, *labels, seed=seed, reduction=self.reduction, jitter_form=form)
