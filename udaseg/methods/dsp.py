"""DSP: dual soft-paste (ACM MM 2021, 2107.09600; GaoLii/DSP)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from udaseg.components.augment import strong
from udaseg.components.masked_consistency import MIC
from udaseg.components.mixing import class_mask, paste, rare_mask, soft_paste
from udaseg.components.pseudo_label import confident_share
from udaseg.config import Optim
from udaseg.losses.feature import mmd, upsampled_mean
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, require_classes
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Channels, Count, Momentum, NonNegative, Share
from udaseg.types import Batch, Loss


class DSP(Method):
    """Classes of a template image are blended into a target and a source image, and the two mixtures are aligned.

    1. source cross-entropy;
    2. the teacher labels the target, q = share of its pixels that are confident;
    3. half of the template's classes are pasted on target and source, with 1 - blend of what lies under them, and all
       pixels of one long-tail class of the rare image, opaquely; each mixture is jittered and blurred;
    4. cross-entropy of the target mixture, blend on the pasted labels and 1 - blend on those under them, target pixels
       with weight q;
    5. the same of the source mixture, without q;
    6. MMD between the two mixtures' pooled features, once of the whole image and once of what was pasted.

    The authors' training code loses the second half of 4 in a statement that is broken over two lines; masks the
    features of both samples of its batch of two with the first one's mask in 6; and pastes one of the two long-tail
    classes that it draws, from another image for each mixture. Here a sample has one rare image for both mixtures.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        blend: Share = 0.9
        """lambda of the paste; the authors' SYNTHIA configuration says 0.8, and so did their first for GTA5."""
        keep_soft_term: bool = True
        """Whether the target mixture also learns what lies under the pasted pixels; False is the released code."""
        long_tail: tuple[int, ...] = (12, 15, 16, 17, 18)
        """Train ids of the classes that the rare image gives."""
        threshold: Share = 0.968
        """Confidence from which a teacher's pixel counts toward q."""
        teacher_momentum: Momentum = 0.99
        mmd_weight: NonNegative = 0.005
        """Of each of the two discrepancies."""
        mmd_mask: Literal["own", "first"] = "own"
        """Whose mask pools what was pasted: each sample's, or the group's first one's as released."""
        mmd_channels: Channels = 256
        """Width of the 1x1 convolution whose features are compared."""
        mmd_fixed: bool = False
        """Whether that convolution stays as drawn from N(0, 0.01): in the authors' code no optimiser has it."""
        reduction: Reduction = "all"
        """Of the target mixture's loss; "all" is the authors'."""
        group_size: Count = 2
        """Consecutive samples whose features are one set to MMD: the authors' batch."""
        evaluate: Literal["teacher", "student"] = "teacher"
        """The network that is evaluated; the authors evaluate and publish the student."""
        mic: MIC = MIC()

        def build(self, student: Segmenter, *, seed: int) -> DSP:
            return DSP(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        require_classes("long_tail", config.long_tail, student)
        self.config, self.seed = config, seed
        self.student = student
        self.reduce = nn.Conv2d(student.feature_channels[-1], config.mmd_channels, 1, bias=False)
        if config.mmd_fixed:
            nn.init.normal_(self.reduce.weight.requires_grad_(False), std=0.01)
        self.teacher = EMATeacher(student, momentum=config.teacher_momentum)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c = self.config
        source, target, template, rare = (batches[name] for name in ("source", "target", "template", "rare"))
        out = self.student(source.image, "source", source.index)
        yield (Loss("source_ce", output_cross_entropy(out, source.labels)),)

        confidence, target_label = self.teacher.label(target.image)
        quality = confident_share(confidence, c.threshold)
        mask = class_mask(template.labels, template.index, seed=self.seed, num_classes=self.student.num_classes)
        tail = rare_mask(rare.labels, rare.index, classes=c.long_tail, seed=self.seed)

        rare_label, template_label = rare.labels, template.labels

        def mixture(under: Tensor, under_label: Tensor, purpose: str) -> tuple[Tensor, Tensor]:
            image = paste(tail, rare.image, soft_paste(mask, template.image, under, blend=c.blend))
            label = paste(tail, rare_label, paste(mask, template_label, under_label))
            return strong(image, target.index, seed=self.seed, purpose=purpose), label

        target_image, target_mixed = mixture(target.image, target_label, "mixed.target")
        source_image, source_mixed = mixture(source.image, source.labels, "mixed.source")
        on_target = self.student(target_image, "target", target.index)
        on_source = self.student(source_image, "source", source.index)
        weight = torch.where(mask, torch.ones_like(confidence), quality)
        whole, pasted = self._discrepancies(on_target.features[-1], on_source.features[-1], c.blend * mask)
        losses = [
            Loss("target_mixed", output_cross_entropy(on_target, target_mixed, weight, reduction=c.reduction), c.blend),
            Loss("source_mixed", output_cross_entropy(on_source, source_mixed), c.blend),
            Loss("source_under", output_cross_entropy(on_source, source.labels), 1 - c.blend),
            Loss("mmd_image", whole, c.mmd_weight),
            Loss("mmd_pasted", pasted, c.mmd_weight),
            Loss("coverage", quality, weight=0),
        ]
        if c.keep_soft_term:
            under = output_cross_entropy(on_target, target_label, weight, reduction=c.reduction)
            losses.append(Loss("target_under", under, 1 - c.blend))
        yield tuple(losses)

        weight = quality.expand_as(confidence)
        labels = target_label, weight
        yield from c.mic.losses(self.student, source, target, *labels, seed=self.seed, reduction=c.reduction)

    def _discrepancies(self, target: Tensor, source: Tensor, mask: Tensor) -> tuple[Tensor, Tensor]:
        """MMD of the mixtures' pooled features, mean over groups: of the whole images, and of what was pasted."""
        groups = (-1, self.config.group_size)
        if self.config.mmd_mask == "first":
            mask = mask.unflatten(0, groups)[:, :1].expand(-1, groups[1], -1, -1).flatten(0, 1)
        features = [self.reduce(x) for x in (target, source)]
        whole = [x.mean((2, 3)).unflatten(0, groups) for x in features]
        pasted = [upsampled_mean(x, mask).unflatten(0, groups) for x in features]
        image, part = (torch.stack([mmd(t, s) for t, s in zip(*pair, strict=True)]).mean() for pair in (whole, pasted))
        return image, part

    def after_step(self) -> None:
        self.teacher.update(self.student)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        heads = [] if self.config.mmd_fixed else [self.reduce]
        return [build_optimizer(self.student, optim, heads=heads)]
