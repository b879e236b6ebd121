"""BCL: bi-directional pixel-prototype contrastive learning (ECCV 2022, 2207.10892; cvlab-yonsei/DASS).

The released code is not the paper, so both are offered. `variant="released"` is what cvlab-yonsei/DASS trains: static
pseudo-labels only. `variant="paper"` adds what the paper describes and that code leaves out: dynamic pseudo-labels by
non-parametric label transfer, hybrid labels, and class-wise calibration of the prototypes. Of that part the formula of
the calibration, its momentum, and whether the target's cross-entropy reads static or hybrid labels could not be
verified; they are reconstructions, each a field below.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from udaseg.components.cross_domain_mix import mix
from udaseg.components.mixing import paste
from udaseg.components.pseudo_label import hybrid_label, prototype_transfer
from udaseg.distributed import sum_over_ranks
from udaseg.losses.contrastive import bidirectional_contrast, downscale_label, masked_average_pool
from udaseg.losses.segmentation import EntropyForm, entropy, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Jitter, Momentum, NonNegative, Positive, Share
from udaseg.types import IGNORE, Batch, Loss


class DomainBias(nn.Module):
    """BCL's calibration: how far target prototypes lie from source prototypes, class by class, as a running mean.

    bias[c] <- m * bias[c] + (1 - m) * mean over pairs of (target prototype - source prototype), where both exist. The
    additive form and m are a reconstruction: the paper's formula could not be read, and the released code has none.
    """

    bias: Tensor

    def __init__(self, num_classes: int, channels: int, *, momentum: float) -> None:
        super().__init__()
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum is {momentum}; it must lie in [0, 1)")
        self.momentum = momentum
        self.register_buffer("bias", torch.zeros(num_classes, channels))

    def calibrated(self, prototypes: Tensor) -> Tensor:
        """(B, K, A) source prototypes moved toward the target; detached."""
        return prototypes.detach() + self.bias

    @torch.no_grad()
    def update(self, source: Tensor, target: Tensor, shared: Tensor) -> None:
        """Take in the pairs of all ranks: prototypes (B, K, A), and shared (B, K) bool where both domains have one."""
        weight = shared.to(source.dtype)
        total = sum_over_ranks(torch.einsum("bk,bka->ka", weight, target - source))
        count = sum_over_ranks(weight.sum(0))
        seen = (count > 0)[:, None]
        mean = total / count.clamp_min(1)[:, None]
        self.bias.copy_(torch.where(seen, self.momentum * self.bias + (1 - self.momentum) * mean, self.bias))


class _Soft(NamedTuple):
    label: Tensor  # (B, H, W), the teacher's class
    quality: Tensor  # scalar, the share of pixels that it is sure of


class BCL(Method):
    """CE(source) + 0.3 CE(target) + 0.4 [H(source) + 0.3 H(target)] + forward and backward contrast, pair by pair.

    Forward contrast pulls target pixels to source prototypes, backward contrast source pixels to target prototypes.
    The target batch brings static pseudo-labels, made by the class-balanced rule before the stage.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        variant: Literal["released", "paper"] = "released"
        target_weight: NonNegative = 0.3
        """lambda_t, of the target's cross-entropy and entropy."""
        entropy_weight: NonNegative = 0.4
        """lambda_H."""
        entropy: EntropyForm = "double_softmax"
        """"double_softmax" is the authors' code; "shannon" the usual entropy."""
        forward_weight: NonNegative = 0.2
        """lambda_1; 0.1 or 0.2 in the authors' two configurations."""
        backward_weight: NonNegative = 0.2
        """lambda_2."""
        temperature: Positive = 0.1
        """Of both contrasts and of the label transfer."""
        transfer_threshold: Share = 0.8
        """Confidence above which a transferred label is used (paper)."""
        calibration_momentum: Momentum = 0.99
        """Of the class-wise domain bias (paper; reconstruction)."""
        target_ce: Literal["static", "hybrid"] = "static"
        """Which labels the target's cross-entropy reads (paper; the authors' code has static ones only)."""
        teacher_momentum: Momentum = 0.0
        """Above 0 an EMA of the student is what is evaluated; at 0 the student itself, as the authors do."""
        mix: bool = False
        """Not in the paper: the student sees the target as DACS shows it, under half of the source image's classes and
        in a strong view. Target pixels without a label of the round take the teacher's class, weighted by the share of
        pixels that it is sure of. Needs a teacher."""
        mix_threshold: Share = 0.9
        """Confidence from which the teacher is sure of a pixel (mix)."""
        mix_jitter: Jitter = 0.25
        """Strength of the strong view's colour jitter (mix)."""

        def build(self, student: Segmenter, *, seed: int) -> BCL:
            return BCL(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        if config.mix and not config.teacher_momentum:
            raise ValueError("method.mix needs a teacher: set method.teacher_momentum above 0")
        self.config, self.seed = config, seed
        self.student = student
        self.domain_bias = DomainBias(
            student.num_classes, student.embedding_channels, momentum=config.calibration_momentum
        )
        momentum = config.teacher_momentum
        statistics: Literal["own", "student"] = "own" if config.mix else "student"
        self.teacher = EMATeacher(student, momentum=momentum, statistics=statistics) if momentum else None

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        target, soft = self._mix(source, target) if c.mix else (target, None)
        static = target.labels
        out_s = self.student(source.image, "source", source.index)
        out_t = self.student(target.image, "target", target.index)

        target_label = static
        if c.variant == "paper":
            target_label = self._hybrid(out_s.embedding, source.labels, out_t.embedding, static)
        forward, backward = bidirectional_contrast(
            out_s.embedding,
            source.labels,
            out_t.embedding,
            target_label,
            num_classes=self.student.num_classes,
            temperature=c.temperature,
        )
        ce_label, weight = target_label if c.target_ce == "hybrid" else static, target.weight
        if soft is not None:
            known = ce_label != IGNORE
            weight = torch.where(known, 1.0 if weight is None else weight, soft.quality)
            ce_label = torch.where(known, ce_label, soft.label)
        losses = [
            Loss("source_ce", output_cross_entropy(out_s, source.labels)),
            Loss("target_ce", output_cross_entropy(out_t, ce_label, weight), c.target_weight),
            Loss("forward_contrast", forward, c.forward_weight),
            Loss("backward_contrast", backward, c.backward_weight),
            coverage(target_label != IGNORE),
        ]
        if c.entropy_weight:
            losses += [
                Loss("source_entropy", entropy(out_s.logits, form=c.entropy), c.entropy_weight),
                Loss("target_entropy", entropy(out_t.logits, form=c.entropy), c.entropy_weight * c.target_weight),
            ]
        yield tuple(losses)

    def _mix(self, source: Batch, target: Batch) -> tuple[Batch, _Soft]:
        """The mixed images with the labels of source and round, and the teacher's for the rest."""
        assert self.teacher is not None  # see `__init__`
        c = self.config
        mixed = mix(self.teacher, source, target, seed=self.seed, threshold=c.mix_threshold, jitter=c.mix_jitter)
        weight = None if target.weight is None else paste(mixed.mask, torch.ones_like(target.weight), target.weight)
        label = paste(mixed.mask, source.labels, target.labels)
        return replace(target, image=mixed.image, label=label, weight=weight), _Soft(mixed.label, mixed.quality)

    @torch.no_grad()
    def _hybrid(self, source: Tensor, source_label: Tensor, target: Tensor, static: Tensor) -> Tensor:
        """Static labels, filled up by transfer from calibrated source prototypes; then the calibration learns."""
        classes = self.student.num_classes
        small = downscale_label(source_label, (source.shape[2], source.shape[3]))
        prototypes, in_source = masked_average_pool(source, small, classes)
        dynamic = prototype_transfer(
            target,
            self.domain_bias.calibrated(prototypes),
            in_source,
            temperature=self.config.temperature,
            threshold=self.config.transfer_threshold,
        )
        hybrid = hybrid_label(static, dynamic)
        small = downscale_label(hybrid, (target.shape[2], target.shape[3]))
        target_prototypes, in_target = masked_average_pool(target, small, classes)
        self.domain_bias.update(prototypes, target_prototypes, in_source & in_target)
        return hybrid

    def after_step(self) -> None:
        if self.teacher is not None:
            self.teacher.update(self.student)
