"""SPCL: contrast with prototypes of the source's classes (2111.12358)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.spcl import SPCL
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import (
    ROUND_STEPS,
    SDCA_CROPS,
    SDCA_IMAGES,
    SDCA_MODEL,
    SDCA_SOURCE,
    SMALL,
    SMALL_DATA,
    SMALL_OPTIM,
    in_sdca_s_colours,
    small,
    warm_start,
)

LABELS = PseudoLabel(share=0.5, cap=0.9, image_share=0.0)
"""The authors': each class's median confidence, at most 0.9."""


def spcl() -> Recipe:
    """SPCL, GTA5 -> Cityscapes (2111.12358): 52.1 mIoU (as listed on Papers with Code). DeepLabV2-R101 in three stages.

    100,000 steps of 4 + 4 whole images, in self-training of 8: a warm-up, contrast, self-training. The authors warm up
    with an adversary on the softmax besides and keep batch statistics frozen until self-training; here the warm-up is
    source-only, and they adapt.
    """
    data = replace(SDCA_IMAGES, source=in_sdca_s_colours(SDCA_SOURCE), target=Stream(labels="pseudo"))
    target = in_sdca_s_colours(Stream(labels="pseudo"))
    warm_up = Stage(
        name="source",
        method=Supervised.Config(stream="source", ce_temperature=1.8),
        steps=40_000,
        model=SDCA_MODEL,
        data=replace(data, target=None),
        optim=Optim(lr=2.5e-4, horizon=62.5 / 40),
    )
    contrast = replace(
        warm_up,
        name="contrast",
        method=SPCL.Config(variant="released", fill_steps=100),
        data=data,
        init_from="source",
        pseudo_label=LABELS,
    )
    self_training = replace(
        contrast,
        name="self-training",
        method=Supervised.Config(stream="target"),
        model=replace(SDCA_MODEL, frozen_norm_affine=False),
        steps=20_000,
        data=replace(SDCA_CROPS, short_side=512, target=replace(target, short_side=1024)),
        optim=Optim(lr=5e-4, horizon=31.25 / 20),
        init_from="contrast",
    )
    return Recipe(name="spcl", stages=(warm_up, contrast, self_training), checkpoint_every=2000)


def spcl_small() -> Recipe:
    """SPCL from a source-only warm start on a small network, its contrast at temperature 1; then self-training."""
    contrast = Stage(
        name="contrast",
        method=SPCL.Config(temperature=1.0, fill_steps=20),
        steps=ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, target=Stream(labels="pseudo")),
        optim=SMALL_OPTIM,
        init_from="source",
        pseudo_label=LABELS,
    )
    self_training = replace(
        contrast,
        name="self-training",
        method=Supervised.Config(stream="target"),
        data=replace(SMALL_DATA, source=None, target=Stream(labels="pseudo", jitter=0.25)),
        init_from="contrast",
    )
    return small("spcl_small", warm_start(), contrast, self_training)
