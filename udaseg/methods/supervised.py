"""Plain supervised training on one stream: source-only on the source, the oracle on a labelled target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from udaseg.components.equal_contrast import PNE
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method
from udaseg.models.segmenter import Segmenter
from udaseg.types import Batch, Loss


class Supervised(Method):
    """Cross-entropy on the labels of one stream, and on request PNE's contrast."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        stream: Literal["source", "target"] = "source"
        """Where images and labels come from; also the domain whose own parts of the network are used."""
        pne: PNE = PNE()

        def build(self, student: Segmenter, *, seed: int) -> Supervised:
            return Supervised(self, student, seed)

    def __init__(self, config: Config, student: Segmenter, seed: int) -> None:
        super().__init__()
        self.config, self.seed = config, seed
        self.student = student

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        c, batch = self.config, batches[self.config.stream]
        out = self.student(batch.image, c.stream, batch.index)
        yield (
            Loss("ce", output_cross_entropy(out, batch.labels, batch.weight)),
            *c.pne.losses(out, batch.labels, batch.index, seed=self.seed),
        )
