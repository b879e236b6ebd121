"""DACS: mean teacher and cross-domain ClassMix (2007.08702; vikolss/DACS)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from udaseg.components.augment import strong
from udaseg.components.masked_consistency import MIC
from udaseg.components.mixing import class_mask, paste
from udaseg.components.pseudo_label import confident_share
from udaseg.config import Optim
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.methods.base import build_optimizer
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.types import Batch, Loss


class DACS(nn.Module):
    """Half of each source image's classes is pasted on a target image that the teacher has labelled.

    1. source cross-entropy;
    2. the teacher labels the target, q = share of its pixels that are confident;
    3. mixed cross-entropy, pixels from the source with weight 1, from the target with weight q;
    4. on request, MIC's masked consistency;
    5. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config:
        threshold: float = 0.968
        """Confidence from which a teacher's pixel counts toward q."""
        teacher_momentum: float = 0.99
        mixed_weight: float = 1.0
        """Weight of the mixed loss."""
        reduction: Reduction = "all"
        """Of the mixed loss; "all" is the authors'."""
        mix_ignore: bool = True
        """Whether 255 counts as a class that ClassMix may draw, as in the authors' code."""
        jitter: float = 0.25
        jitter_probability: float = 0.8
        blur_probability: float = 0.5
        mic: MIC = MIC()

        def build(self, student: Segmenter, *, seed: int) -> DACS:
            return DACS(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)

    @property
    def predictor(self) -> nn.Module:
        return self.teacher.network

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        assert source.label is not None
        out = self.student(source.image, "source", source.index)
        yield (Loss("source_ce", output_cross_entropy(out, source.label)),)

        confidence, target_label = self.teacher.label(target.image)
        quality = confident_share(confidence, c.threshold)
        mask = class_mask(source.label, source.index, seed=self.seed, include_ignore=c.mix_ignore)
        image = strong(
            paste(mask, source.image, target.image),
            target.index,
            seed=self.seed,
            purpose="mixed",
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            blur_probability=c.blur_probability,
        )
        label = paste(mask, source.label, target_label)
        weight = torch.where(mask, torch.ones_like(confidence), quality)
        out = self.student(image, "target", target.index)
        mixed = output_cross_entropy(out, label, weight, reduction=c.reduction)
        yield Loss("mixed_ce", mixed, c.mixed_weight), Loss("coverage", quality, weight=0)

        weight = quality.expand_as(confidence)
        yield from c.mic.losses(self.student, target, target_label, weight, seed=self.seed, reduction=c.reduction)

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim)]
