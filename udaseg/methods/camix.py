"""CAMix: context-aware mixup (TCSVT 2022, 2108.03557; qianyuzqy/CAMix)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.cross_domain_mix import SelfTraining
from udaseg.components.feature_distance import FeatureDistance
from udaseg.components.mixing import context_mask
from udaseg.components.uncertainty import entropy_threshold, noisy_entropy
from udaseg.losses.consistency import SignificanceForm, significant_cross_entropy
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, require_classes
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Count, CountOrZero, Jitter, Momentum, NonNegative
from udaseg.types import Batch, Loss


class CAMix(Method):
    """Classes of the target are pasted on the source where the source's labels have them, with what they come with.

    1. source cross-entropy, and on request DAFormer's distance of things to ImageNet's features;
    2. the teacher's probabilities of the target; q = share of its pixels that are confident;
    3. contextual mask: half of the classes of the argmax of probability times spatial prior, and their companions;
       before step `context_from` half of the source's classes, as in ClassMix;
    4. significance: target pixels where the entropy of the teacher's mean over noisy passes is below a threshold that
       rises, all of the source's;
    5. image, label and significance are mixed by the mask, the target's pixels on the source, the image jittered and
       blurred; cross-entropy of what is significant in the mixture, the source's pixels with weight 1, the target's
       with q;
    6. on request, MIC's masked consistency, and CRDA's of pixels' relations in the mixture;
    7. the teacher follows the student.

    In the authors' code 4 has no effect, as 5 multiplies a scalar by the significance and divides by it
    (`significance="released"`).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(FeatureDistance, SelfTraining, MethodConfig):
        teacher_momentum: Momentum = 0.99
        ignore_top: CountOrZero = 0
        ignore_bottom: CountOrZero = 0
        jitter: Jitter = 0.25
        context_from: CountOrZero = 110_000
        """Step from which the mask is contextual; the authors' for SYNTHIA is 40,000."""
        companions: tuple[tuple[int, int], ...] = ((6, 5), (7, 5), (5, 6), (5, 7), (12, 18), (12, 17))
        """Pairs of train ids, looked at in this order: where the first is pasted, so is the second. The authors': light
        and sign with pole, pole with both, rider with bicycle and motorcycle."""
        significance: SignificanceForm = "paper"
        """See `udaseg.losses.consistency.significant_cross_entropy`."""
        passes: Count = 8
        """Of the teacher, whose mean is judged by its entropy."""
        noise: NonNegative = 0.02
        """Standard deviation of a pass's noise, of images in [0, 1]; the authors' is 0.1 of 255 and has no effect."""
        ramp_steps: Count = 130_000
        """Steps after which every target pixel is significant; the authors' for SYNTHIA are 10,000."""
        feature_weight: NonNegative = 0.0
        """Of the feature distance; 0.005 with DAFormer."""
        source_reduction: Reduction = "valid"
        """Of the source's cross-entropy: DACS's; "all" is DAFormer's. `reduction` is of the mixture's."""

        def build(self, student: Segmenter, *, seed: int) -> CAMix:
            return CAMix(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        require_classes("companions", (c for pair in config.companions for c in pair), student)
        require_classes("things", config.things if config.feature_weight else (), student)
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.thresholds = config.thresholds(student.num_classes)
        self.beginning = config.network_now(student)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        if c.teacher_moves == "before":
            self.teacher.update(self.student)
        out = self.student(source.image, "source", source.index)
        losses = [Loss("source_ce", output_cross_entropy(out, source.labels, reduction=c.source_reduction))]
        losses += c.pne.losses(out, source.labels, source.index, seed=self.seed)
        yield *losses, *c.distances(out, self.beginning, source)

        probability = self.teacher(target.image).logits.softmax(1)
        confidence, label = probability.max(1)
        mixed = c.mix(
            self.teacher,
            source,
            target,
            seed=self.seed,
            thresholds=self.thresholds,
            taught=(confidence, label),
            mask=None if step < c.context_from else ~self._pasted(probability, target),
        )
        significance = torch.where(mixed.mask, 1.0, self._significant(target, step))
        out = self.student(mixed.image, "target", target.index)
        loss = significant_cross_entropy(
            out, mixed.label, mixed.weight, significance, form=c.significance, reduction=c.reduction
        )
        relations = c.crda.losses(out.logits, self.teacher, mixed.image, target.index, seed=self.seed)
        yield (
            Loss("mixed_ce", loss),
            Loss("coverage", mixed.quality, weight=0),
            Loss("significant", significance.mean(), weight=0),
            *relations,
        )

        yield from c.masked(self.student, source, target, mixed, seed=self.seed)

    def _pasted(self, probability: Tensor, target: Batch) -> Tensor:
        """(B, H, W) bool: the target's pixels that are pasted on the source."""
        prior = F.interpolate(target.priors, size=probability.shape[-2:], mode="bilinear", align_corners=False)
        return context_mask(
            (probability * prior).argmax(1),
            target.index,
            companions=self.config.companions,
            seed=self.seed,
            num_classes=self.student.num_classes,
        )

    def _significant(self, target: Batch, step: int) -> Tensor:
        """(B, H, W) in [0, 1]: 1 where the teacher is to be believed, interpolated between its cells."""
        c = self.config
        entropy = noisy_entropy(self.teacher, target, passes=c.passes, noise=c.noise, seed=self.seed)
        highest = entropy_threshold(step, ramp_steps=c.ramp_steps, num_classes=self.student.num_classes)
        believed = (entropy < highest)[:, None].to(entropy.dtype)
        return self.student.upsampled(believed, target.image)[:, 0].clamp_max(1)

    def after_step(self) -> None:
        if self.config.teacher_moves == "after":
            self.teacher.update(self.student)
