"""Contrast of misclassified cells with those that are predicted right, positives and negatives weighing alike."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.pixel_bank import cells_at, draw_cells
from udaseg.losses.contrastive import downscale_label, positive_negative_equal_contrast
from udaseg.ranges import Count, NonNegative, Positive
from udaseg.types import IGNORE, Loss, SegOutput


@dataclass(frozen=True, kw_only=True)
class PNE:
    """Positive-negative equal contrast: cells that are predicted wrong learn from those that are predicted right.

    Our reconstruction of PNE (2207.01417), without code; from its abstract come the hard anchors, the features of right
    pixels as what they learn from, and the equal weight of positives and negatives. A part of any method that learns
    from labels.
    """

    weight: NonNegative = 0.0
    """Of the contrast; 0 = off."""
    anchors: Count = 16
    """Misclassified cells of each class of an image that are drawn."""
    keys: Count = 16
    """Cells of each class of an image, predicted right, that they are compared with; they do not move."""
    temperature: Positive = 0.1

    def losses(self, out: SegOutput, label: Tensor, index: Tensor, *, seed: int) -> Iterator[Loss]:
        """The term of an output's embedding and (B, H, W) labels; nothing where it is off."""
        if not self.weight:
            return
        size, classes = (out.embedding.shape[2], out.embedding.shape[3]), out.logits.shape[1]
        label = downscale_label(label, size)
        predicted = downscale_label(out.aux["coarse_logits"].detach().argmax(1), size)
        unit = F.normalize(out.embedding, dim=1)
        sets = []
        for kind, chosen, count in (
            ("anchors", label != predicted, self.anchors),
            ("keys", label == predicted, self.keys),
        ):
            of_kind = label.where(chosen, IGNORE)
            places, drawn = draw_cells(
                of_kind, index, count=count, num_classes=classes, seed=seed, purpose=f"pne.{kind}"
            )
            train_id = torch.arange(classes, device=drawn.device)[:, None].where(drawn, IGNORE)
            sets.append((cells_at(unit, places).flatten(1, 2), train_id.flatten(1)))
        (anchor, anchor_label), (key, key_label) = sets
        value = positive_negative_equal_contrast(
            anchor, anchor_label, key.detach(), key_label, temperature=self.temperature
        )
        yield Loss("equal_contrast", value, self.weight)
