"""Class-wise self-training: a mean teacher whose reliable pixels are told class by class. Ours, of parts of others.

The thresholds are those of class-balanced self-training (CBST, 1810.07911) with SDCA's share and cap (2105.05013), kept
while the network trains; the strong view and the teacher are those of the DACS line (2007.08702), without ClassMix; the
source's colours are moved as by Reinhard et al. (2001), its logits adjusted as in 2007.07314, and its Lovasz-softmax is
SDCA's.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from udaseg.components.augment import strong
from udaseg.components.class_frequencies import ClassFrequencies
from udaseg.components.class_thresholds import ClassThresholds
from udaseg.components.colours import recoloured
from udaseg.losses.segmentation import logit_adjusted, lovasz_softmax, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, coverage
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Jitter, Momentum, NonNegative, Share
from udaseg.types import Batch, Loss


class Classwise(Method):
    """The student learns the teacher's most certain pixels of every class from a strong view of the target.

    1. some source images take the colours of target images;
    2. source cross-entropy of logits adjusted by the classes' frequencies, so that rare ones are not given up, and
       Lovasz-softmax;
    3. the teacher labels the target; pixels that reach the running threshold of their class are reliable;
    4. cross-entropy of the target's strong view with these labels, reliable pixels with weight 1, others with 0;
    5. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        share: Share = 0.5
        """Most certain share of each class's predicted pixels that is reliable."""
        cap: Share = 0.9
        """Confidence from which a pixel is reliable whatever the share."""
        recolour: Share = 0.5
        """Probability of a source image to take a target image's mean and deviation of colours."""
        prior: Share = 0.5
        """Power of the source's class frequencies that its logits are raised by in its loss; 0 = not at all."""
        lovasz_weight: NonNegative = 0.75
        """Of the source's Lovasz-softmax, as in SDCA."""
        target_weight: NonNegative = 1.0
        """Of the target's cross-entropy, whose mean is over all pixels."""
        teacher_momentum: Momentum = 0.99
        jitter: Jitter = 0.25
        """Strength of the strong view's colour jitter."""
        jitter_probability: Share = 0.8
        blur_probability: Share = 0.5

        def build(self, student: Segmenter, *, seed: int) -> Classwise:
            return Classwise(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)
        self.frequencies = ClassFrequencies(student.num_classes)
        self.thresholds = ClassThresholds(student.num_classes, share=config.share, cap=config.cap)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        image = source.image
        if c.recolour:
            image = recoloured(image, target.image, source.index, seed=self.seed, probability=c.recolour)
        out = self.student(image, "source", source.index)
        self.frequencies.update(source.labels)
        adjusted = logit_adjusted(out, self.frequencies.shares(), c.prior)
        yield (
            Loss("source_ce", output_cross_entropy(adjusted, source.labels)),
            Loss("source_lovasz", lovasz_softmax(out.logits, source.labels), c.lovasz_weight),
        )

        confidence, label = self.teacher.label(target.image)
        self.thresholds.update(confidence, label)
        weight = self.thresholds.reliable(confidence, label).to(confidence.dtype)
        view = strong(
            target.image,
            target.index,
            seed=self.seed,
            purpose="target",
            jitter=c.jitter,
            jitter_probability=c.jitter_probability,
            blur_probability=c.blur_probability,
        )
        out = self.student(view, "target", target.index)
        loss = output_cross_entropy(out, label, weight, reduction="all")
        yield Loss("target_ce", loss, c.target_weight), coverage(weight)

    def after_step(self) -> None:
        self.teacher.update(self.student)
