"""STvM with MOCM, our reconstruction: source-free self-training whose pixels weigh by a learned metric (2212.04227).

No code of the authors is public. From the paper's abstract and digests come: a mean teacher all of whose predictions
are learned, without a threshold; gradients weighted by reliability; reliability from proxy-based metric learning on the
target; and that it governs what is mixed. How each is done is ours, and a field.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.augment import strong
from udaseg.components.class_frequencies import ClassFrequencies
from udaseg.components.mixing import next_of_group, paste, reliable_mask
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.segmentation import Reduction, cross_entropy, logit_adjusted, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, coverage
from udaseg.models.metric import ProxyMetric
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Channels, Count, Jitter, Momentum, NonNegative, Positive, Share
from udaseg.types import IGNORE, Batch, Loss


class STvM(Method):
    """The student learns all that the teacher says of the target, each pixel as much as a metric calls it reliable.

    1. the teacher labels the target: y, every pixel's best class;
    2. the metric, an embedding of the teacher's last features with a proxy of each class, learns to tell classes:
       cross-entropy of softmax(cosine to proxies / temperature) with y where the teacher is sure;
    3. a pixel's reliability is the metric's probability of y, r;
    4. MOCM: classes of each image, drawn by the mean r of their pixels, are pasted over the next image of its group;
    5. cross-entropy of a strong view of the mixture with y, each pixel weighted by r, its logits adjusted by the
       classes' frequencies so that rare ones are not given up;
    6. the teacher follows the student.

    The metric is of use in training alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        metric_channels: Channels = 128
        """Width of the metric's embedding."""
        metric_temperature: Positive = 0.1
        """Of the cosines to the proxies."""
        metric_threshold: Share = 0.9
        """The teacher's confidence from which a pixel teaches the metric; the student learns all of them."""
        metric_weight: NonNegative = 1.0
        """Of the metric's loss, which moves the metric alone."""
        paste_share: Share = 0.5
        """Share of an image's classes that MOCM pastes, rounded up; 0 = STvM without MOCM."""
        group_size: Count = 2
        """Consecutive samples that are pasted on one another."""
        prior: Share = 0.5
        """Power of the labels' class frequencies that logits are raised by in the mixture's loss; 0 = not at all."""
        teacher_momentum: Momentum = 0.999
        """Of the EMA that the teacher is. All that it says is learned, so at 0.99 mistakes come back within 300 steps
        and rare classes are lost (docs/log.md, 2026-11-29)."""
        reduction: Reduction = "all"
        """Of the mixture's cross-entropy; weights do not enter its denominator."""
        jitter: Jitter = 0.25
        """Strength of the strong view's colour jitter."""
        jitter_probability: Share = 0.8
        blur_probability: Share = 0.5
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated."""

        def build(self, student: Segmenter, *, seed: int) -> STvM:
            return STvM(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        if config.paste_share and config.group_size < 2:
            raise ValueError(f"method.group_size is {config.group_size}; MOCM pastes between 2 images or more")
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum, ramp=False)
        self.frequencies = ClassFrequencies(student.num_classes)
        self.metric = ProxyMetric(student.feature_channels[-1], student.num_classes, config.metric_channels)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, target = self.config, batches["target"]
        taught = self.teacher(target.image)
        confidence, label = taught.logits.softmax(1).max(1)

        similarity = self.metric(taught.features[-1])[1][:, :, 0] / c.metric_temperature
        sure = label.masked_fill(confidence < c.metric_threshold, IGNORE)
        size = (similarity.shape[2], similarity.shape[3])
        yield (Loss("metric", cross_entropy(similarity, downscale_label(sure, size)), c.metric_weight),)

        reliability = self._reliability(similarity.detach(), label)
        mask = reliable_mask(
            label,
            reliability,
            target.index,
            share=c.paste_share,
            seed=self.seed,
            num_classes=self.student.num_classes,
        )
        planes = (target.image, label, reliability)
        image, label, reliability = (paste(mask, x, next_of_group(x, c.group_size)) for x in planes)
        view = strong(
            image,
            target.index,
            seed=self.seed,
            purpose="mixed",
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            blur_probability=c.blur_probability,
        )
        out = self.student(view, "target", target.index)
        self.frequencies.update(label)
        adjusted = logit_adjusted(out, self.frequencies.shares(), c.prior)
        yield (
            Loss("mixed_ce", output_cross_entropy(adjusted, label, reliability, reduction=c.reduction)),
            coverage(reliability),
        )

    def _reliability(self, similarity: Tensor, label: Tensor) -> Tensor:
        """(B, H, W) in [0, 1]: the metric's probability of each pixel's class; similarities are of cells."""
        size, align = label.shape[1:], self.student.align_corners
        up = F.interpolate(similarity, size=size, mode="bilinear", align_corners=align)
        return up.softmax(1).gather(1, label[:, None])[:, 0]

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.metric])]
