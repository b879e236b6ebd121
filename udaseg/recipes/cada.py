"""CADA, our reconstruction: cross-domain attention with adversaries on the output (2003.04010)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stream
from udaseg.methods.cada import CADA
from udaseg.recipes.advent import advent
from udaseg.recipes.common import small, warm_start
from udaseg.recipes.dacs import dacs_small


def cada() -> Recipe:
    """CADA, our reconstruction, GTA5 -> Cityscapes (2003.04010): the paper's figure could not be read.

    The network, images and schedule are ADVENT's: DeepLabV2-R101, 120,000 steps of 1 + 1 crops of 512 by 1024, in which
    8385 positions attend to as many. Both images need one size, so GTA5's are made 1024 wide.
    """
    stage = advent().stages[0]
    data = replace(stage.data, source=Stream(labels="true", short_side=564))
    stage = replace(stage, name="cada", method=CADA.Config(), data=data)
    return Recipe(name="cada", stages=(stage,), checkpoint_every=2000)


def cada_small() -> Recipe:
    """CADA from a source-only warm start, on a small network.

    On CamVid -> IDD-Lite at 240 pixels it gains a point over source-only, `classwise` four (docs/figures.md).
    """
    stage = replace(
        dacs_small().stages[1],
        name="cada",
        method=CADA.Config(
            attention_channels=32, context_branches=(1, 2), discriminator_channels=16, context_weight=0.5
        ),
    )
    return small("cada_small", warm_start(), stage)
