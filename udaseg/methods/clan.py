"""CLAN: category-level adversaries (1809.09478; RoyalVane/CLAN)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.losses.adversarial import binary_cross_entropy, disagreement, weight_discrepancy
from udaseg.losses.segmentation import focal_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, discriminator_optimizer
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads import HeadPair
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Channels, CountOrZero, NonNegative, Positive
from udaseg.types import Batch, Domain, Loss, SegOutput


class CLAN(Method):
    """Pixels whose class is aligned already, since two unlike classifiers agree on it, are left in peace.

    The network has two heads, `model.head_pair`, and answers by their sum.

    1. source cross-entropy of both heads;
    2. to a discriminator the target's probabilities are to look like the source's, the more so, after some steps, the
       more the heads disagree on a pixel; and the heads' weights are to point away from each other;
    3. the discriminator learns to tell the source (0) from the target (1), whose pixels weigh as in 2.

    The weights of 2 fall to 0 over the stage, in a straight line.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        adversarial_weight: NonNegative = 0.001
        """lambda_adv."""
        local_weight: NonNegative = 40.0
        """lambda_local, of a pixel's disagreement in its weight; 10 for SYNTHIA."""
        epsilon: NonNegative = 0.4
        """What a pixel weighs where the heads agree."""
        discrepancy_weight: NonNegative = 0.02
        """Of the heads' likeness: the authors' 0.01, which their code doubles."""
        preheat_steps: CountOrZero = 5000
        """The last step at which all pixels weigh 1."""
        disagreement: Literal["released", "paper"] = "released"
        """Whether the network learns through a pixel's weight too, "released", or the weight is given, "paper"."""
        gamma: NonNegative = 2.0
        """Of the focal cross-entropy that the authors' code has; 0 is the paper's cross-entropy."""
        discriminator_lr: Positive = 1e-4
        """Of Adam, which warms up and decays as the stage's."""
        discriminator_channels: Channels = 64
        """Width of the discriminator's first convolution."""

        def build(self, student: Segmenter, *, seed: int) -> CLAN:
            return CLAN(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        if not isinstance(student.net.head, HeadPair) or student.net.projection is not None:
            raise ValueError("method clan has two classifiers: set model.head_pair, and model.projection to 0")
        self.config = config
        self.student = student
        self.discriminator = Discriminator(student.num_classes, config.discriminator_channels)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        on_source = out.logits.detach().softmax(1)
        first, second = (focal_cross_entropy(z, source.labels, gamma=c.gamma) for z in self._heads(out, source))
        yield Loss("first_ce", first), Loss("second_ce", second)

        out = self.student(target.image, "target", target.index)
        on_target = out.logits.softmax(1)
        unlike = disagreement(*self._heads(out, target))
        given = unlike.detach()
        weighted = step > c.preheat_steps
        damping = 1 - step / total_steps
        pair: HeadPair = self.student.net.head  # type: ignore[assignment]
        seen = given if c.disagreement == "paper" else unlike
        deceived = self._cost(self.discriminator.judge(on_target), on_target, "source", seen if weighted else None)
        yield (
            Loss("adversarial", deceived, damping * c.adversarial_weight),
            Loss("weight_discrepancy", weight_discrepancy(*pair.weights()), damping * c.discrepancy_weight),
        )

        yield (Loss("discriminator_source", self._cost(self.discriminator(on_source), on_source, "source")),)
        on_target = on_target.detach()
        verdict = self.discriminator(on_target)
        yield (Loss("discriminator_target", self._cost(verdict, on_target, "target", given if weighted else None)),)

    def _heads(self, out: SegOutput, batch: Batch) -> tuple[Tensor, Tensor]:
        """Each head's logits at the size of the image."""
        first, second = (self.student.upsampled(z, batch.image) for z in out.embedding.chunk(2, 1))
        return first, second

    def _cost(self, verdict: Tensor, seen: Tensor, domain: Domain, unlike: Tensor | None = None) -> Tensor:
        """Cross-entropy of a verdict, brought to the size of what was seen, with a domain."""
        verdict = F.interpolate(verdict, size=seen.shape[-2:], mode="bilinear", align_corners=True)
        c = self.config
        return binary_cross_entropy(verdict, domain, None if unlike is None else c.epsilon + c.local_weight * unlike)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        adam = discriminator_optimizer(self.discriminator, self.config.discriminator_lr, optim)
        return [build_optimizer(self.student, optim), adam]
