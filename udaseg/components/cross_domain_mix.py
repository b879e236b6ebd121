"""Mixtures of source and target with the teacher's labels."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from udaseg.components.augment import strong
from udaseg.components.mixing import class_mask, paste
from udaseg.components.pseudo_label import confident_share
from udaseg.models.teacher import EMATeacher
from udaseg.types import Batch


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
