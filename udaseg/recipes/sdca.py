"""SDCA: contrast with the distribution of a class (2105.05013)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.sdca import SDCA
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
    on_synthia,
    small,
    warm_start,
)


def sdca() -> Recipe:
    """SDCA, GTA5 -> Cityscapes (2105.05013): 52.9 mIoU (authors' README). Source-only, contrast, then self-training.

    20,000 steps of 8 whole images, 40,000 of 4 + 4, and from ImageNet's weights 20,000 of 8 crops of larger ones; the
    last network is evaluated at 2048 x 1024. The authors keep batch statistics frozen in the first two stages, here
    they adapt.
    """
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source", lovasz_weight=0.75, lovasz_classes="present"),
        steps=20_000,
        model=SDCA_MODEL,
        data=replace(SDCA_IMAGES, batch_size=8, target=None),
        optim=Optim(lr=5e-4, horizon=31.25 / 20),
    )
    contrast = replace(
        source,
        name="contrast",
        method=SDCA.Config(lovasz_classes="present", fill_steps=1000),
        steps=40_000,
        data=replace(SDCA_IMAGES, source=in_sdca_s_colours(SDCA_SOURCE, grey=0.2, blur=1.0)),
        optim=Optim(lr=2.5e-4, horizon=62.5 / 40),
        init_from="source",
    )
    labelled = in_sdca_s_colours(Stream(labels="pseudo"), grey=0.2, blur=1.0)
    self_training = replace(
        source,
        name="self-training",
        model=replace(SDCA_MODEL, frozen_norm_affine=False),
        method=Supervised.Config(stream="target"),
        data=replace(SDCA_CROPS, target=labelled),
        optim=Optim(lr=5e-4, horizon=31.25 / 20),
        pseudo_label=PseudoLabel(share=0.5, cap=0.9, image_share=0.0, by="contrast"),
    )
    return Recipe(name="sdca", stages=(source, contrast, self_training), checkpoint_every=2000)


def sdca_synthia() -> Recipe:
    """SDCA, SYNTHIA -> Cityscapes (2105.05013): 50.2 mIoU-16 and 56.8 mIoU-13 (authors' README).

    The authors' network has SYNTHIA's 16 classes, as have datasets made with a mapping to them.
    """
    return on_synthia(sdca())


def sdca_small() -> Recipe:
    """SDCA from a source-only warm start on a small network, its contrast at temperature 1; then self-training."""
    contrast = Stage(
        name="contrast",
        method=SDCA.Config(temperature=1.0, fill_steps=60),
        steps=ROUND_STEPS,
        model=SMALL,
        data=SMALL_DATA,
        optim=SMALL_OPTIM,
        init_from="source",
    )
    self_training = replace(
        contrast,
        name="self-training",
        method=Supervised.Config(stream="target"),
        data=replace(SMALL_DATA, source=None, target=Stream(labels="pseudo", jitter=0.25)),
        init_from="contrast",
        pseudo_label=PseudoLabel(share=0.5, cap=0.9, image_share=0.0),
    )
    return small("sdca_small", warm_start(), contrast, self_training)
