"""Consistency of pixels' relations: which pixels are alike is the same to student and teacher."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.losses.consistency import relation_consistency
from udaseg.models.teacher import EMATeacher
from udaseg.ranges import Count, NonNegative
from udaseg.rng import keyed
from udaseg.types import Loss


@dataclass(frozen=True, kw_only=True)
class CRDA:
    """Of pixels drawn from each mixed image, the cosines of all pairs of logits are as the teacher's are.

    Source: CRDA (2208.11084; kw01sg/CRDA). A part of any method that mixes and has a teacher.
    """

    weight: NonNegative = 0.0
    """Of the consistency; 1 in CRDA, 0 = off."""
    pixels: Count = 512
    """Drawn from each image; one with fewer gives all of them."""

    def losses(self, logits: Tensor, teacher: EMATeacher, image: Tensor, index: Tensor, *, seed: int) -> Iterator[Loss]:
        """The term of the student's (B, K, H, W) logits of mixed images, (B, 3, H, W); nothing where it is off."""
        if not self.weight:
            return
        count = logits[0, 0].numel()
        drawn = [keyed(seed, int(i), "relations").choice(count, min(self.pixels, count), replace=False) for i in index]
        places = on_device(np.stack(drawn), logits.device)
        places = places[:, None].expand(-1, logits.shape[1], -1)
        student, taught = (x.flatten(2).gather(2, places) for x in (logits, teacher(image).logits))
        yield Loss("relation_consistency", relation_consistency(student, taught), self.weight)
