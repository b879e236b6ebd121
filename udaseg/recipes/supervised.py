"""Source-only training and the oracle: both ends of the gap that adaptation closes."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, Recipe, Stage, Stream
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import DEEPLAB, ROUND_STEPS, SMALL_DATA, WARM_STEPS, small, warm_start


def source_only() -> Recipe:
    """DeepLabV2-R101 on the source alone, as the warm start of BCL: 720-pixel short side, crop 600, batch 2."""
    data = Data(batch_size=2, short_side=720, scale=(0.5, 1.5), crop=(600, 600), target=None)
    stage = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=60_000,
        model=DEEPLAB,
        data=data,
        optim=Optim(lr=7.5e-5, horizon=1.2),
    )
    return Recipe(name="source_only", stages=(stage,))


def supervised() -> Recipe:
    """The oracle: DeepLabV2-R101 on *labelled* target images, the upper end of the gap that adaptation closes."""
    data = Data(
        batch_size=2,
        short_side=720,
        scale=(0.5, 1.5),
        crop=(600, 600),
        source=None,
        target=Stream(labels="true"),
    )
    stage = replace(
        source_only().stages[0], name="target", method=Supervised.Config(stream="target"), data=data, steps=160_000
    )
    return Recipe(name="supervised", stages=(stage,))


def source_only_small() -> Recipe:
    """A small network on the source alone, as long as `bcl_small` trains in all."""
    return small("source_only_small", warm_start(WARM_STEPS + 2 * ROUND_STEPS))


def supervised_small() -> Recipe:
    """The oracle of the small recipes: labelled target images, and as many steps as `bcl_small` takes in all."""
    data = replace(SMALL_DATA, source=None, target=Stream(labels="true"))
    stage = replace(source_only_small().stages[0], name="target", method=Supervised.Config(stream="target"), data=data)
    return small("supervised_small", stage)
