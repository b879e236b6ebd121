"""ADVENT: the entropy of predictions, minimised by an adversary or directly (1811.12833; valeoai/ADVENT)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.config import Optim
from udaseg.losses.adversarial import binary_cross_entropy, self_information
from udaseg.losses.segmentation import cross_entropy, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, discriminator_optimizer
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads import ASPPHead
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Channels, Count, NonNegative, Positive
from udaseg.types import Batch, Domain, Loss, SegOutput


class ADVENT(Method):
    """Predictions on the target become as certain as those on the source.

    Two classifiers learn: that of the network, and an auxiliary one on the level before its last, which is of no use
    once the network is trained and so is none of the network's.

    1. source cross-entropy of both;
    2. AdvEnt: to a discriminator a classifier, the self-information of target predictions is to look like the source's;
       MinEnt: the target's mean entropy, and nothing more;
    3. each discriminator learns to tell the self-information on the source (0) from that on the target (1).
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        variant: Literal["advent", "minent"] = "advent"
        """"advent": an adversary aligns the entropies, AdvEnt; "minent": they are minimised, MinEnt."""
        target_weight: NonNegative = 0.001
        """lambda_adv or lambda_ent, of the target's loss."""
        auxiliary_target_weight: NonNegative = 0.0002
        """The same of the auxiliary classifier."""
        auxiliary_ce_weight: NonNegative = 0.1
        """Of the auxiliary classifier's source cross-entropy."""
        auxiliary_branches: tuple[Count, ...] = (6, 12, 18, 24)
        """Dilations of the auxiliary classifier."""
        discriminator_lr: Positive = 1e-4
        """Of Adam, which decays as the stage's."""
        discriminator_channels: Channels = 64
        """Width of the discriminators' first convolution."""

        def build(self, student: Segmenter, *, seed: int) -> ADVENT:
            return ADVENT(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student
        if len(student.feature_channels) < 2:
            raise ValueError("method advent classifies the last level but one, too, and this backbone has one alone")
        self.auxiliary = ASPPHead(
            student.feature_channels[:-1], student.num_classes, branches=config.auxiliary_branches
        )
        levels = ("main", "auxiliary") if config.variant == "advent" else ()
        self.discriminators = nn.ModuleDict(
            {level: Discriminator(student.num_classes, config.discriminator_channels) for level in levels}
        )

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        on_source = self._logits(out)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            Loss("auxiliary_ce", cross_entropy(on_source["auxiliary"], source.labels), c.auxiliary_ce_weight),
        )

        on_target = self._logits(self.student(target.image, "target", target.index))
        weights = {"main": c.target_weight, "auxiliary": c.auxiliary_target_weight}
        if c.variant == "minent":
            entropies = {level: self_information(logits).sum(1).mean() for level, logits in on_target.items()}
            yield tuple(Loss(f"{level}_entropy", value, weights[level]) for level, value in entropies.items())
            return
        verdicts = {k: self._discriminator(k).judge(self_information(logits)) for k, logits in on_target.items()}
        yield tuple(
            Loss(f"{level}_adversarial", binary_cross_entropy(verdict, "source"), weights[level])
            for level, verdict in verdicts.items()
        )

        seen: dict[Domain, dict[str, Tensor]] = {"source": on_source, "target": on_target}
        for level in on_target:
            for domain, logits in seen.items():
                verdict = self._discriminator(level)(self_information(logits[level].detach()))
                yield (Loss(f"{level}_discriminator_{domain}", binary_cross_entropy(verdict, domain), 0.5),)

    def _logits(self, out: SegOutput) -> dict[str, Tensor]:
        """Both classifiers' logits at the size of the image."""
        coarse, size = self.auxiliary(out.features[:-1])[0], out.logits.shape[-2:]
        up = F.interpolate(coarse, size=size, mode="bilinear", align_corners=self.student.align_corners)
        return {"main": out.logits, "auxiliary": up}

    def _discriminator(self, level: str) -> Discriminator:
        return self.discriminators[level]  # type: ignore[return-value]

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        found: list[Optimizer] = [build_optimizer(self.student, optim, heads=[self.auxiliary])]
        if self.discriminators:
            found.append(discriminator_optimizer(self.discriminators, self.config.discriminator_lr, optim))
        return found
