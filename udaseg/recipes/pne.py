"""PNE, our reconstruction: contrast whose positives weigh as much as its negatives (2207.01417)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.components.equal_contrast import PNE
from udaseg.config import Data, Model, Optim, Recipe, Stage, Stream
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import small
from udaseg.recipes.supervised import supervised_small


def pne() -> Recipe:
    """PNE, our reconstruction, supervised on Cityscapes (2207.01417): the paper's figures could not be read.

    DeepLabV3-R101, one of the paper's networks, on a *labelled* target: 60,000 steps of 8 crops of 512 by 1024, with
    settings of ours. The contrast adds a projection of the embedding, and 19 x 16 anchors and as many keys an image.
    """
    stage = Stage(
        name="target",
        method=Supervised.Config(stream="target", pne=PNE(weight=0.1)),
        steps=60_000,
        model=Model(
            backbone="resnet101",
            pretrained=True,
            output_stride=8,
            head="deeplabv3",
            head_branches=(12, 24, 36),
            head_channels=256,
            projection=128,
        ),
        data=Data(
            batch_size=8,
            short_side=1024,
            scale=(0.5, 2.0),
            crop=(512, 1024),
            source=None,
            target=Stream(labels="true", jitter=0.25),
        ),
        optim=Optim(lr=1e-3),
    )
    return Recipe(name="pne", stages=(stage,), checkpoint_every=2000)


def pne_small() -> Recipe:
    """The oracle of the small recipes with PNE's contrast: labelled target images."""
    stage = supervised_small().stages[0]
    method = replace(stage.method, pne=PNE(weight=0.1))
    return small("pne_small", replace(stage, method=method))
