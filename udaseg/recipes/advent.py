"""ADVENT and MinEnt (1811.12833)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, Recipe, Stage
from udaseg.methods.advent import ADVENT
from udaseg.recipes.common import CAFFE_DEEPLAB, WHOLE_IMAGES, on_synthia, small, warm_start
from udaseg.recipes.dacs import dacs_small


def advent() -> Recipe:
    """ADVENT, GTA5 -> Cityscapes (1811.12833): 43.8 mIoU in the paper, by AdvEnt; 45.5 of AdvEnt and MinEnt together.

    DeepLabV2-R101, 120,000 steps of 1 + 1 images of a schedule of 250,000: 1280 x 720 of GTA5's 1310 x 720, which the
    authors squash to it, and Cityscapes' at 1024 x 512.
    """
    stage = Stage(
        name="advent",
        method=ADVENT.Config(),
        steps=120_000,
        model=CAFFE_DEEPLAB,
        data=replace(WHOLE_IMAGES, batch_size=1, resample="bicubic"),
        optim=Optim(lr=2.5e-4, horizon=250 / 120),
    )
    return Recipe(name="advent", stages=(stage,), checkpoint_every=2000)


def minent() -> Recipe:
    """MinEnt, GTA5 -> Cityscapes (1811.12833): 42.3 mIoU in the paper. ADVENT's settings, the entropy minimised."""
    stage = advent().stages[0]
    stage = replace(stage, name="minent", method=ADVENT.Config(variant="minent"))
    return Recipe(name="minent", stages=(stage,), checkpoint_every=2000)


def advent_synthia() -> Recipe:
    """ADVENT, SYNTHIA -> Cityscapes (1811.12833): 41.2 mIoU-16 (authors' README) and 48.0 mIoU-13, by AdvEnt.

    As on GTA5, with source images of 1280 x 760, in 90,000 steps of a schedule as long (an author in ADVENT#12).
    """
    recipe = on_synthia(advent())
    optim = replace(recipe.stages[0].optim, horizon=1.0)
    return replace(recipe, stages=(replace(recipe.stages[0], steps=90_000, optim=optim),))


def advent_small() -> Recipe:
    """ADVENT from a source-only warm start, on a small network.

    On CamVid -> IDD-Lite at 240 pixels it gains two points over source-only, `classwise` four (docs/figures.md).
    """
    stage = replace(
        dacs_small().stages[1],
        name="advent",
        method=ADVENT.Config(auxiliary_branches=(1, 2), discriminator_channels=16),
    )
    return small("advent_small", warm_start(), stage)


def minent_small() -> Recipe:
    """MinEnt from a source-only warm start, on a small network.

    On CamVid -> IDD-Lite at 240 pixels it gains two points over source-only, `classwise` four (docs/figures.md).
    """
    warm, stage = advent_small().stages
    return small("minent_small", warm, replace(stage, name="minent", method=replace(stage.method, variant="minent")))
