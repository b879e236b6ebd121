"""CADA, our reconstruction: context across domains by attention, and adversaries on the output (2003.04010).

No code of the authors is public. From the paper's abstract come: attention between each position of source and target
features and between each pair of their channels, the selective aggregation of both domains' contexts, and adversarial
adaptation. How the attended features are used, and that the network is evaluated without them, is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.losses.adversarial import binary_cross_entropy
from udaseg.losses.segmentation import cross_entropy, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, discriminator_optimizer
from udaseg.models.cross_attention import CrossDomainAttention
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads import ASPPHead
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Channels, Count, NonNegative, Positive
from udaseg.types import Batch, Domain, Loss, SegOutput


class CADA(Method):
    """Each domain's features are given the context of the other's; predictions with it and without it are aligned.

    1. each source image is paired with a target image; attention adds to the last features of either what their
       positions and channels find in the other's, and a classifier of its own tells classes by them;
    2. source cross-entropy of the network's classifier and of that one;
    3. to a discriminator each, both classifiers' target predictions are to look like the source's;
    4. each discriminator learns to tell predictions on the source (0) from those on the target (1).

    At evaluation there is no source image to attend to: attention and its classifier are of use in training alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        context_weight: NonNegative = 1.0
        """Of the source cross-entropy with context."""
        adversarial_weight: NonNegative = 0.001
        """Of what the network's own predictions have to gain from their discriminator."""
        context_adversarial_weight: NonNegative = 0.001
        """The same of predictions with context."""
        attention_channels: Channels = 512
        """Width of the features that attend, a multiple of 8."""
        context_branches: tuple[Count, ...] = (6, 12, 18, 24)
        """Dilations of the classifier with context."""
        discriminator_lr: Positive = 1e-4
        """Of Adam, which decays as the stage's."""
        discriminator_channels: Channels = 64
        """Width of the discriminators' first convolution."""

        def build(self, student: Segmenter, *, seed: int) -> CADA:
            return CADA(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student
        classes, width = student.num_classes, config.attention_channels
        self.attention = CrossDomainAttention(student.feature_channels[-1], width)
        self.context_classifier = ASPPHead([width], classes, branches=config.context_branches)
        self.discriminators = nn.ModuleDict(
            {kind: Discriminator(classes, config.discriminator_channels) for kind in ("main", "context")}
        )

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        on_source = self.student(source.image, "source", source.index)
        on_target = self.student(target.image, "target", target.index)
        seen: dict[Domain, dict[str, Tensor]] = {
            "source": {"main": on_source.logits, "context": self._with_context(on_source, on_target)},
            "target": {"main": on_target.logits, "context": self._with_context(on_target, on_source)},
        }
        weights = {"main": c.adversarial_weight, "context": c.context_adversarial_weight}
        verdicts = {kind: self._discriminator(kind).judge(z.softmax(1)) for kind, z in seen["target"].items()}
        yield (
            Loss("source_ce", output_cross_entropy(on_source, source.labels)),
            Loss("context_ce", cross_entropy(seen["source"]["context"], source.labels), c.context_weight),
            *(
                Loss(f"{kind}_adversarial", binary_cross_entropy(verdict, "source"), weights[kind])
                for kind, verdict in verdicts.items()
            ),
        )
        for domain, predictions in seen.items():
            for kind, logits in predictions.items():
                verdict = self._discriminator(kind)(logits.detach().softmax(1))
                yield (Loss(f"{kind}_discriminator_{domain}", binary_cross_entropy(verdict, domain), 0.5),)

    def _with_context(self, own: SegOutput, other: SegOutput) -> Tensor:
        """(B, K, H, W) logits of one domain's images by their features with the context of the other's."""
        coarse, _ = self.context_classifier([self.attention(own.features[-1], other.features[-1])])
        size, align = own.logits.shape[-2:], self.student.align_corners
        return F.interpolate(coarse, size=size, mode="bilinear", align_corners=align)

    def _discriminator(self, kind: str) -> Discriminator:
        return self.discriminators[kind]  # type: ignore[return-value]

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [
            build_optimizer(self.student, optim, heads=[self.attention, self.context_classifier]),
            discriminator_optimizer(self.discriminators, self.config.discriminator_lr, optim),
        ]
