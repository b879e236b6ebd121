"""Plain supervised training on one stream: source-only on the source, the oracle on a labelled target."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal

from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method
from udaseg.models.segmenter import Segmenter
from udaseg.types import Batch, Loss


class Supervised(Method):
    """Cross-entropy on the labels of one stream."""

    @dataclass(frozen=True, kw_only=True)
    class Config:
        stream: Literal["source", "target"] = "source"
        """Where images and labels come from; also the domain whose own parts of the network are used."""

        def build(self, student: Segmenter, *, seed: int) -> Supervised:
            return Supervised(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config = config
        self.student = student

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        batch = batches[self.config.stream]
        out = self.student(batch.image, self.config.stream, batch.index)
        yield (Loss("ce", output_cross_entropy(out, batch.labels, batch.weight)),)
