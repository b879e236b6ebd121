"""DRSL, our reconstruction: self-training regularised by classes of several modes that domains share (2206.09683).

No code of the authors is public. From the paper's abstract come: a multi-modal head beside the segmentation head, on a
shared base; a distance metric learning loss over pseudo-labels; cross-entropy self-training in the one space, and in
the other a stochastic alignment that brings source and target pixels of the same mode together. The rest is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.drawn import on_device
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.metric import mode_alignment, multimodal_loss
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, coverage
from udaseg.models.metric import ProxyMetric
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Channels, Count, NonNegative, Positive
from udaseg.rng import keyed
from udaseg.types import IGNORE, Batch, Domain, Loss


class DRSL(Method):
    """Each class has several modes in a space of its own, in which the domains are aligned mode by mode.

    1. source cross-entropy with labels, target cross-entropy with the pseudo-labels of the round;
    2. in both domains the multi-modal head learns: a cell is nearest to a mode of its class, by a margin;
    3. each cell is mapped to a mode of its class, drawn by its probability;
    4. of each pair of images, source and target cells that are mapped to the same mode are brought together.

    The multi-modal head is of use in training alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        target_weight: NonNegative = 1.0
        """Of the target's cross-entropy."""
        modes: Count = 3
        """Of each class."""
        metric_channels: Channels = 64
        """Width of the multi-modal head's unit vectors."""
        sigma: Positive = 0.5
        """Width of a mode; distances lie in [0, 2]."""
        margin: NonNegative = 0.5
        """By which a cell should be nearer to its own class's modes than to others."""
        metric_weight: NonNegative = 0.1
        """Of the multi-modal head's cross-entropy in each domain."""
        margin_weight: NonNegative = 0.1
        """Of its margin in each domain."""
        alignment_weight: NonNegative = 0.1
        """Of the modes' alignment."""

        def build(self, student: Segmenter, *, seed: int) -> DRSL:
            return DRSL(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student
        self.metric = ProxyMetric(
            student.feature_channels[-1], student.num_classes, config.metric_channels, modes=config.modes
        )

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, target_labels = self.config, batches["target"].labels
        domains: tuple[Domain, Domain] = ("source", "target")
        losses: list[Loss] = []
        mapped: list[tuple[Tensor, Tensor]] = []
        for domain, weight in zip(domains, (1.0, c.target_weight), strict=True):
            batch = batches[domain]
            out = self.student(batch.image, domain, batch.index)
            unit, cosine = self.metric(out.features[-1])
            label = downscale_label(batch.labels, (unit.shape[2], unit.shape[3]))
            metric, margin = multimodal_loss(cosine, label, sigma=c.sigma, margin=c.margin)
            losses += [
                Loss(f"{domain}_ce", output_cross_entropy(out, batch.labels, batch.weight), weight),
                Loss(f"{domain}_metric", metric, c.metric_weight),
                Loss(f"{domain}_margin", margin, c.margin_weight),
            ]
            mapped.append((unit, self._drawn_modes(domain, cosine.detach(), label, batch.index)))
        source, target = mapped
        alignment = mode_alignment(*source, *target, modes=self.student.num_classes * c.modes)
        losses.append(Loss("alignment", alignment, c.alignment_weight))
        yield *losses, coverage(target_labels != IGNORE)

    def _drawn_modes(self, domain: Domain, cosine: Tensor, label: Tensor, index: Tensor) -> Tensor:
        """(B, h, w) class * M + mode, a mode of the cell's class drawn by softmax(-d^2 / (2 sigma^2)); else K M."""
        classes, modes = cosine.shape[1:3]
        labelled = label != IGNORE
        own = label.where(labelled, 0)
        at = own[:, None, None].expand(-1, 1, modes, -1, -1)
        log_probability = cosine.gather(1, at)[:, 0] / self.config.sigma**2
        size = log_probability.shape[1:]
        noise = np.stack([keyed(self.seed, i, f"modes.{domain}").gumbel(size=size) for i in index.tolist()])
        drawn = (log_probability + on_device(noise, label.device)).argmax(1)
        return (own * modes + drawn).where(labelled, classes * modes)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.metric])]
