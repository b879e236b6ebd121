"""I2I+CR, our reconstruction: semantically consistent image translation, then consistency on mixtures (2111.03522).

No code of the authors is public. From the paper's abstract (ICAART 2022) come: a generative translation that receives
feedback from semantic labels on both domains, on the target pseudo-labels, and a consistency regularisation after it.
Networks, all losses but these two ideas, what is mixed and every weight are ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.components.augment import strong
from udaseg.components.mixing import next_of_group, paste, region_mask
from udaseg.components.pseudo_label import confident_share
from udaseg.config import Optim
from udaseg.losses.adversarial import least_squares
from udaseg.losses.segmentation import cross_entropy, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, fuses
from udaseg.models.discriminator import Discriminator
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.models.translator import Translator
from udaseg.ranges import Channels, Count, Jitter, Momentum, NonNegative, Positive, Share
from udaseg.types import Batch, Domain, Loss

_OTHER: dict[Domain, Domain] = {"source": "target", "target": "source"}


class I2ICR(Method):
    """A stage learns to translate; the next one learns from the translated source and from mixtures of target images.

    translation, with a generator and a discriminator for the look of each domain:
    1. cross-entropy of the source with its labels, and of the target with its pseudo-labels;
    2. each image in the look of the other domain: the discriminator of that look is to take it for one of its own, the
       teacher is to find the image's labels in it (cross-entropy through its weights, which stay), and the other
       generator is to bring the image back (L1);
    3. each discriminator learns to tell its domain's images from those that were translated;
    4. the teacher follows the student.

    consistency, where a stage is `translated_by` the one before:
    1. cross-entropy of the translated source with the source's labels;
    2. the teacher labels the target, q = share of its pixels that are confident;
    3. a rectangle of each target image is that of the next one of its group, and so is its label;
    4. cross-entropy of a strong view of the mixture, weighted by q;
    5. the teacher follows the student.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        phase: Literal["translation", "consistency"] = "translation"
        adversarial_weight: NonNegative = 1.0
        """Of what the generators have to gain from the discriminators (translation)."""
        semantic_weight: NonNegative = 1.0
        """Of the teacher's cross-entropy on translated images."""
        cycle_weight: NonNegative = 10.0
        """Of the mean absolute difference to the image after both translations."""
        generator_channels: Channels = 64
        """Width of the generators' first convolution."""
        generator_blocks: Count = 9
        """Residual blocks of a generator."""
        generator_lr: Positive = 2e-4
        """Of the generators' Adam, which decays as the stage's."""
        discriminator_channels: Channels = 64
        """Width of the discriminators' first convolution."""
        discriminator_lr: Positive = 2e-4
        """Of the discriminators' Adam, which decays as the stage's."""
        teacher_momentum: Momentum = 0.99
        threshold: Share = 0.968
        """Confidence from which a teacher's pixel counts toward q (consistency)."""
        mixed_weight: NonNegative = 1.0
        """Of the mixture's cross-entropy."""
        group_size: Count = 1
        """Consecutive samples that are mixed with one another; 2 or more in the phase "consistency"."""
        jitter: Jitter = 0.25
        """Strength of the strong view's colour jitter."""
        jitter_probability: Share = 0.8
        blur_probability: Share = 0.5
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated."""

        @property
        def translates(self) -> bool:
            """Whether a later stage may be `translated_by` one with this method."""
            return self.phase == "translation"

        def translator(self, state: Mapping[str, Tensor] | None = None) -> Translator:
            """A generator before its first step, or with `state`, a method's, that which gives the target's look.

            Raises RuntimeError where the state is of another method or of generators of another size.
            """
            generator, begin = Translator(self.generator_channels, self.generator_blocks), "generators.target."
            if state is not None:
                own = {name.removeprefix(begin): tensor for name, tensor in state.items() if name.startswith(begin)}
                generator.load_state_dict(own)
            return generator

        def build(self, student: Segmenter, *, seed: int) -> I2ICR:
            return I2ICR(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        if not config.translates and config.group_size < 2:
            raise ValueError(f"method.group_size is {config.group_size}; consistency mixes 2 target images or more")
        self.config, self.seed = config, seed
        self.student = student
        statistics: Literal["own", "student"] = "student" if config.translates else "own"
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum, statistics=statistics, ramp=False)
        looks = ("source", "target") if config.translates else ()
        self.generators = nn.ModuleDict({look: config.translator() for look in looks})
        self.discriminators = nn.ModuleDict({look: Discriminator(3, config.discriminator_channels) for look in looks})

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        source, target = batches["source"], batches["target"]
        yield from self._translation(source, target) if self.config.translates else self._consistency(source, target)

    def _translation(self, source: Batch, target: Batch) -> Iterator[tuple[Loss, ...]]:
        c, of = self.config, {"source": source, "target": target}
        for domain, batch in of.items():
            out = self.student(batch.image, domain, batch.index)
            yield (Loss(f"{domain}_ce", output_cross_entropy(out, batch.labels, batch.weight)),)

        translated: dict[Domain, Tensor] = {}
        for domain, look in _OTHER.items():
            batch = of[domain]
            image = self.generators[look](batch.image)
            verdict, judged = self._discriminator(look).judge(image), self.teacher.judge(image, look)
            back = self.generators[domain](image)
            yield (
                Loss(f"{domain}_adversarial", least_squares(verdict, look), c.adversarial_weight),
                Loss(f"{domain}_semantic", cross_entropy(judged.logits, batch.labels, batch.weight), c.semantic_weight),
                Loss(f"{domain}_cycle", F.l1_loss(back, batch.image), c.cycle_weight),
            )
            translated[look] = image.detach()

        for domain, other in _OTHER.items():
            own, foreign = (self._discriminator(domain)(image) for image in (of[domain].image, translated[domain]))
            told = least_squares(own, domain) + least_squares(foreign, other)
            yield (Loss(f"{domain}_discriminator", told, 0.5),)

    def _consistency(self, source: Batch, target: Batch) -> Iterator[tuple[Loss, ...]]:
        c = self.config
        out = self.student(source.image, "source", source.index)
        yield (Loss("source_ce", output_cross_entropy(out, source.labels)),)

        confidence, label = self.teacher.label(target.image)
        quality = confident_share(confidence, c.threshold)
        region = region_mask(target.image, target.index, stride=1, seed=self.seed)
        image, label = (paste(region, next_of_group(x, c.group_size), x) for x in (target.image, label))
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
        loss = output_cross_entropy(out, label, quality.expand_as(confidence))
        yield Loss("mixed_ce", loss, c.mixed_weight), Loss("coverage", quality, weight=0)

    def _discriminator(self, look: Domain) -> Discriminator:
        return self.discriminators[look]  # type: ignore[return-value]

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        found: list[Optimizer] = [build_optimizer(self.student, optim)]
        c = self.config
        for module, rate in ((self.generators, c.generator_lr), (self.discriminators, c.discriminator_lr)):
            if parameters := list(module.parameters()):
                found.append(torch.optim.Adam(parameters, lr=rate, betas=(0.5, 0.999), fused=fuses(parameters, optim)))
        return found
