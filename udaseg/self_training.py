"""Parts that student/teacher methods share: mixtures with the teacher's labels, masking, distance of features."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.augment import strong
from udaseg.losses.feature import feature_distance, majority_label
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.mixing import class_mask, paste, patch_mask
from udaseg.models.segmenter import Segmenter
from udaseg.pseudo_label import confident_share
from udaseg.teacher import EMATeacher, FrozenCopy
from udaseg.types import IGNORE, Batch, Loss


@dataclass(frozen=True, slots=True)
class Mixture:
    """ClassMix of source and target, and what the teacher makes of the target; planes are (B, H, W)."""

    image: Tensor
    """(B, 3, H, W), in a strong view."""
    label: Tensor
    weight: Tensor
    """1 where pixels are the source's, `quality` where they are the target's, 0 in its border."""
    sure: Tensor
    """Bool: pixels of the source, and of the target where the teacher is confident."""
    target_label: Tensor
    target_weight: Tensor
    quality: Tensor
    """Share of the target's pixels that the teacher is sure of."""


def mix(
    teacher: EMATeacher,
    source: Batch,
    target: Batch,
    *,
    seed: int,
    threshold: float,
    jitter: float,
    ignore_top: int = 0,
    ignore_bottom: int = 0,
) -> Mixture:
    """The teacher labels the target, and half of each source image's classes is pasted on it, jittered and blurred.

    Source: DACS (2007.08702), with DAFormer's border.

    Args:
        teacher: labels the target.
        source, target: sample i of one goes with sample i of the other.
        seed: key of the run and stage.
        threshold: confidence from which a pixel counts toward the quality.
        jitter: strength of the strong view's colour jitter.
        ignore_top, ignore_bottom: rows of the target that weigh 0.
    """
    assert source.label is not None
    confidence, target_label = teacher.label(target.image)
    quality = confident_share(confidence, threshold)
    target_weight = quality.expand_as(confidence).clone()
    target_weight[:, :ignore_top] = 0
    target_weight[:, max(confidence.shape[1] - ignore_bottom, 0) :] = 0

    mask = class_mask(source.label, source.index, seed=seed)
    pasted = paste(mask, source.image, target.image)
    return Mixture(
        image=strong(pasted, target.index, seed=seed, purpose="mixed", jitter=jitter),
        label=paste(mask, source.label, target_label),
        weight=paste(mask, torch.ones_like(confidence), target_weight),
        sure=mask | (confidence >= threshold) & (target_weight > 0),
        target_label=target_label,
        target_weight=target_weight,
        quality=quality,
    )


@dataclass(frozen=True, kw_only=True)
class MIC:
    """Masked image consistency: the student tells what it cannot see, most patches of a target image being hidden.

    Source: MIC (2212.01322; lhoyer/MIC). A part of any method with a teacher, which sees the whole image.
    """

    weight: float = 0.0
    """Of the masked cross-entropy; 1 in MIC, 0 = off."""
    block: int = 64
    """Side of a patch in pixels."""
    ratio: float = 0.7
    """Share of hidden patches, in [0, 1]."""
    jitter: float = 0.2
    """Strength of the colour jitter, drawn anew for this view."""

    def losses(
        self, student: Segmenter, target: Batch, label: Tensor, weight: Tensor, *, seed: int, reduction: Reduction
    ) -> Iterator[tuple[Loss, ...]]:
        """The term on the teacher's (B, H, W) labels and weights, a graph of its own; nothing where it is off."""
        if not self.weight:
            return
        shown = patch_mask(target.image, target.index, block=self.block, ratio=self.ratio, seed=seed)
        view = strong(target.image, target.index, seed=seed, purpose="masked", jitter=self.jitter)
        image = torch.where(shown[:, None], view, student.mean)  # hidden pixels are 0 once normalised
        out = student(image, "target", target.index)
        yield (Loss("masked_ce", output_cross_entropy(out, label, weight, reduction=reduction), self.weight),)


def thing_distance(
    feature: Tensor, beginning: FrozenCopy, source: Batch, *, things: Sequence[int], min_share: float
) -> Tensor:
    """Mean distance of the source's last features (B, A, h, w) to those of the network as it was, on cells of things.

    Source: DAFormer (2111.14887). A cell counts if a thing class, one of the train ids `things`, holds at least
    `min_share` of its pixels.
    """
    assert source.label is not None
    reference = beginning.levels(source.image, "source")[-1]
    scale, classes = beginning.network.feature_stride, beginning.network.num_classes
    bottom, right = (c * scale - s for c, s in zip(feature.shape[-2:], source.label.shape[-2:], strict=True))
    label = F.pad(source.label, (0, right, 0, bottom), value=IGNORE)  # the last cells reach beyond the image
    cells = majority_label(label, scale, num_classes=classes, min_share=min_share)
    mask = torch.isin(cells, torch.tensor(things, device=cells.device))
    return feature_distance(feature, reference, mask)
