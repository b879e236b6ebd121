"""ADVENT and MinEnt (1811.12833)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, Recipe, Stage, Stream
from udaseg.methods.advent import ADVENT
from udaseg.recipes.common import CAFFE_DEEPLAB, small, warm_start
from udaseg.recipes.dacs import dacs_small


def advent() -> Recipe:
    """ADVENT, GTA5 -> Cityscapes (1811.12833): 43.8 mIoU in the paper, by AdvEnt; 45.5 of AdvEnt and MinEnt together.

    DeepLabV2-R101, 120,000 steps of 1 + 1 images of a schedule of 250,000. The authors feed whole images, GTA5's made
    1280 x 720 and Cityscapes' 1024 x 512; here the source is cropped to 1024 x 512 at its size.
    """
    stage = Stage(
        name="advent",
        method=ADVENT.Config(),
        steps=120_000,
        model=CAFFE_DEEPLAB,
        data=Data(
            batch_size=1,
            short_side=512,
            resample="bicubic",
            crop=(512, 1024),
            flip=0.0,
            source=Stream(labels="true", short_side=720),
        ),
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

    As on GTA5, with source images of 1280 x 760. Of the 19 outputs here three are of classes that SYNTHIA lacks.
    """
    stage = advent().stages[0]
    data = replace(stage.data, source=Stream(labels="true", short_side=760))
    return Recipe(name="advent_synthia", stages=(replace(stage, data=data),), checkpoint_every=2000)


def advent_small() -> Recipe:
    """ADVENT from a source-only warm start, on a small network."""
    stage = replace(
        dacs_small().stages[1],
        name="advent",
        method=ADVENT.Config(auxiliary_branches=(1, 2), discriminator_channels=16),
    )
    return small("advent_small", warm_start(), stage)


def minent_small() -> Recipe:
    """MinEnt from a source-only warm start, on a small network."""
    warm, stage = advent_small().stages
    return small("minent_small", warm, replace(stage, name="minent", method=replace(stage.method, variant="minent")))
