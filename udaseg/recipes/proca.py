"""ProCA: class-centred alignment of both domains (2207.06654)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.proca import ProCA
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import (
    DEEPLAB,
    ROUND_STEPS,
    SDCA_CROPS,
    SDCA_IMAGES,
    SDCA_SOURCE,
    SMALL,
    SMALL_DATA,
    SMALL_OPTIM,
    in_sdca_s_colours,
    on_synthia,
    small,
    warm_start,
)

LABELS = PseudoLabel(share=0.4, cap=0.9, image_share=0.0)
"""The authors': the confidence that four tenths of a class's pixels reach, at most 0.9."""


def proca() -> Recipe:
    """ProCA, GTA5 -> Cityscapes (2207.06654): 55.1 mIoU at one scale (authors' README). DeepLabV2-R101 in three stages.

    Source-only for 20,000 steps of 8, class-centred alignment for 90,000 of 4 + 4 whole images, self-training from
    ImageNet's weights for 90,000 of 8. The paper's 56.3 is at several scales.
    """
    data = replace(SDCA_IMAGES, source=in_sdca_s_colours(SDCA_SOURCE, grey=0.2, blur=1.0))
    labelled = in_sdca_s_colours(Stream(labels="pseudo"), grey=0.2, blur=1.0)
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source", lovasz_weight=0.75),
        steps=20_000,
        model=replace(DEEPLAB, align_corners=True),
        data=replace(SDCA_IMAGES, batch_size=8, target=None),
        optim=Optim(lr=5e-4, horizon=31.25 / 20),
    )
    alignment = replace(
        source,
        name="alignment",
        method=ProCA.Config(confidence="logit", fill_steps=1000),
        steps=90_000,
        data=data,
        optim=Optim(lr=2.5e-4),
        init_from="source",
    )
    self_training = replace(
        source,
        name="self-training",
        method=Supervised.Config(stream="target"),
        steps=90_000,
        data=replace(SDCA_CROPS, target=labelled),
        optim=Optim(lr=5e-4),
        pseudo_label=replace(LABELS, by="alignment"),
    )
    return Recipe(name="proca", stages=(source, alignment, self_training), checkpoint_every=2000)


def proca_synthia() -> Recipe:
    """ProCA, SYNTHIA -> Cityscapes (2207.06654): 52.0 mIoU-16 at one scale (authors' README).

    The authors' network has SYNTHIA's 16 classes, as have datasets made with a mapping to them.
    """
    return on_synthia(proca())


def proca_small() -> Recipe:
    """ProCA from a source-only warm start on a small network, its contrast at temperature 0.5; then self-training."""
    alignment = Stage(
        name="alignment",
        method=ProCA.Config(temperature=0.5, fill_steps=60),
        steps=ROUND_STEPS,
        model=SMALL,
        data=SMALL_DATA,
        optim=SMALL_OPTIM,
        init_from="source",
    )
    self_training = replace(
        alignment,
        name="self-training",
        method=Supervised.Config(stream="target"),
        data=replace(SMALL_DATA, source=None, target=Stream(labels="pseudo", jitter=0.25)),
        init_from="alignment",
        pseudo_label=LABELS,
    )
    return small("proca_small", warm_start(), alignment, self_training)
