"""UCD (2203.14098): classes are learned in steps, a run each; the first is ordinary training on the first classes."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Model, Optim, Recipe, Stage
from udaseg.methods.supervised import Supervised
from udaseg.methods.ucd import UCD
from udaseg.recipes.common import ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small

_DEEPLABV3 = Model(
    backbone="resnet101",
    pretrained=True,
    output_stride=16,
    head="deeplabv3",
    head_branches=(6, 12, 18),
    head_channels=256,
)
_DATA = Data(batch_size=24, short_side=512, scale=(1.0, 1.22), crop=(512, 512), target=None)


def ucd_first() -> Recipe:
    """UCD's first step: DeepLabV3-R101 on the classes that there are, about 12,000 steps of 24 crops (PASCAL VOC)."""
    stage = Stage(
        name="first",
        method=Supervised.Config(),
        steps=12_000,
        model=_DEEPLABV3,
        data=_DATA,
        optim=Optim(lr=1e-2, head_lr_factor=1.0, weight_decay=1e-4),
    )
    return Recipe(name="ucd_first", stages=(stage,))


def ucd() -> Recipe:
    """UCD on MiB, a step of new classes (2203.14098): PASCAL VOC 15-5, about 2,700 steps of 24 crops of 512.

    `--stages.0.init-from` is the network of the step before, `--source` a dataset whose classes begin with its classes,
    and `--method.old-classes` says how many these are: 16 with the background here. A step runs the network twice, once
    without gradient. Two GPUs with 12 images each in the paper's code, which contrasts those of a GPU.
    """
    stage = replace(
        ucd_first().stages[0],
        name="ucd",
        method=UCD.Config(variant="released", group_size=12),
        steps=2_700,
        data=replace(_DATA, group_size=12),
        optim=Optim(lr=1e-3, head_lr_factor=1.0, weight_decay=1e-4),
        init_from="runs/ucd_first/model",
    )
    return Recipe(name="ucd", stages=(stage,))


def ucd_small() -> Recipe:
    """UCD on a small network. The network of the old classes is `--stages.0.init-from`."""
    stage = Stage(
        name="ucd",
        method=UCD.Config(old_classes=4),
        steps=ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, target=None),
        optim=replace(SMALL_OPTIM, lr=1e-3),
        init_from="runs/source_only_small/model",
    )
    return small("ucd_small", stage)
