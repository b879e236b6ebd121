"""UCDA, our reconstruction: contrast of pixels within and across domains, labels expanded by neighbours (2204.08399).

No code of the authors is public. From the paper's abstract come: in-domain and cross-domain contrastive pairs, and a
label expansion that finds samples of hard classes in the aligned features while it adapts. How each is done is ours.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor
from torch.optim import Optimizer

from udaseg.components.drawn import among
from udaseg.components.pixel_bank import PixelBank
from udaseg.components.pseudo_label import hybrid_label, nearest_label
from udaseg.config import Optim
from udaseg.losses.contrastive import downscale_label
from udaseg.losses.pixel_pair import flatten, memory_contrast
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, MethodConfig, build_optimizer, coverage, require_classes
from udaseg.models.heads import ProjectionHead
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Channels, Count, CountOrZero, NonNegative, Positive
from udaseg.types import IGNORE, Batch, Domain, Loss


class UCDA(Method):
    """Pixels of a class are alike within each domain and across both, by banks of pixels that each domain has.

    1. source cross-entropy;
    2. label expansion: a target cell without pseudo-label takes the class of its nearest pixels in the source's bank,
       where enough of them agree and the class is a hard one;
    3. target cross-entropy with pseudo-labels and what was found;
    4. in-domain contrast: each domain's cells with its own bank, every pixel there of the same class a positive;
    5. cross-domain contrast: each domain's cells with the other's bank;
    6. cells of each class, some an image, enter the bank of their domain.

    Cells are unit vectors that a projection makes of the last features. It is of use in training alone.
    """

    @dataclass(frozen=True, kw_only=True)
    class Config(MethodConfig):
        target_weight: NonNegative = 1.0
        """Of the target's cross-entropy."""
        in_domain_weight: NonNegative = 0.1
        """Of the contrast with a domain's own bank."""
        cross_domain_weight: NonNegative = 0.1
        """Of the contrast with the other domain's bank."""
        temperature: Positive = 0.1
        projection_channels: Channels = 128
        bank_length: Count = 256
        """Pixels of a class in each bank."""
        bank_cells: Count = 8
        """Cells of a class of an image that enter a bank."""
        hard: tuple[int, ...] = (3, 4, 5, 6, 7, 12, 16, 17, 18)
        """Train ids that label expansion may give; none = it is off."""
        neighbours: Count = 8
        """Pixels of the source's bank that vote on a cell."""
        agreeing: Count = 8
        """How many of them must be of the class."""
        expand_from: CountOrZero = 1000
        """Step from which labels are expanded."""

        def build(self, student: Segmenter, *, seed: int) -> UCDA:
            return UCDA(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        classes = student.num_classes
        require_classes("hard", config.hard, student)
        if config.agreeing > config.neighbours:
            raise ValueError(f"method.agreeing is {config.agreeing}, more than method.neighbours {config.neighbours}")
        self.config, self.seed = config, seed
        self.student = student
        self.projection = ProjectionHead(student.feature_channels[-1], config.projection_channels)
        self.source_bank = PixelBank(classes, config.projection_channels, config.bank_length)
        self.target_bank = PixelBank(classes, config.projection_channels, config.bank_length)

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, source, target = self.config, batches["source"], batches["target"]
        out = self.student(source.image, "source", source.index)
        cells = F.normalize(self.projection(out.features[-1]), dim=1)
        yield (
            Loss("source_ce", output_cross_entropy(out, source.labels)),
            *self._contrast("source", cells, source.labels),
        )
        self._remember("source", cells, source.labels, source.index)

        out = self.student(target.image, "target", target.index)
        cells = F.normalize(self.projection(out.features[-1]), dim=1)
        label = target.labels
        if c.hard and step >= c.expand_from:
            label = hybrid_label(label, self._hard_neighbours(cells))
        yield (
            Loss("target_ce", output_cross_entropy(out, label, target.weight), c.target_weight),
            *self._contrast("target", cells, label),
            coverage(label != IGNORE),
            Loss("expanded", (label != target.labels).float().mean(), weight=0),
        )
        self._remember("target", cells, label, target.index)

    def _hard_neighbours(self, cells: Tensor) -> Tensor:
        """(B, h, w) hard classes on which the neighbours of a cell in the source's bank agree, else 255."""
        c, bank = self.config, self.source_bank
        found = nearest_label(
            cells.detach(),
            bank.pixels,
            bank.labels,
            num_classes=self.student.num_classes,
            neighbours=c.neighbours,
            agreeing=c.agreeing,
        )
        return found.where(among(found, c.hard), IGNORE)

    def _contrast(self, domain: Domain, cells: Tensor, label: Tensor) -> tuple[Loss, ...]:
        c, pixels, y = self.config, flatten(cells), self._of_cells(cells, label).flatten()
        own, other = self.source_bank, self.target_bank
        if domain == "target":
            own, other = other, own
        within, across = (
            memory_contrast(pixels, y, bank.pixels, bank.labels, temperature=c.temperature) for bank in (own, other)
        )
        return (
            Loss(f"{domain}_in_domain", within, c.in_domain_weight),
            Loss(f"{domain}_cross_domain", across, c.cross_domain_weight),
        )

    def _remember(self, domain: Domain, cells: Tensor, label: Tensor, index: Tensor) -> None:
        bank = self.source_bank if domain == "source" else self.target_bank
        small, count = self._of_cells(cells, label), self.config.bank_cells
        bank.update(cells.detach(), small, index, count=count, seed=self.seed, purpose=f"bank.{domain}")

    @staticmethod
    def _of_cells(cells: Tensor, label: Tensor) -> Tensor:
        return downscale_label(label, (cells.shape[2], cells.shape[3]))

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [build_optimizer(self.student, optim, heads=[self.projection])]
