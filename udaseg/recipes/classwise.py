"""Class-wise self-training, ours: what udaseg recommends."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.classwise import Classwise
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import (
    DAFORMER,
    ROUND_STEPS,
    SMALL_DATA,
    SMALL_RARE,
    TRANSFORMER_OPTIM,
    rare_source,
    small,
    warm_start,
)
from udaseg.recipes.dacs import dacs_small


def classwise() -> Recipe:
    """Class-wise self-training on DAFormer's network, GTA5 -> Cityscapes; not measured at this size.

    A source-only start of 10,000 steps, 20,000 of 2 + 2 crops of 512, and 10,000 of 2 on the target's fixed labels:
    together as many as DAFormer takes.
    """
    data = Data(batch_size=2, short_side=512, crop=(512, 512), source=rare_source(short_side=704, share=0.5))
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=10_000,
        model=DAFORMER,
        data=replace(data, target=None),
        optim=TRANSFORMER_OPTIM,
    )
    adapt = replace(
        source,
        name="classwise",
        method=Classwise.Config(teacher_momentum=0.999),
        steps=20_000,
        data=data,
        init_from="source",
    )
    return Recipe(name="classwise", stages=(source, adapt, _round(adapt, steps=10_000)), checkpoint_every=2000)


def classwise_small() -> Recipe:
    """Class-wise self-training on a small network, from a source-only warm start."""
    adapt = replace(
        dacs_small().stages[1],
        name="classwise",
        method=Classwise.Config(),
        steps=ROUND_STEPS,
        data=replace(SMALL_DATA, source=SMALL_RARE),
    )
    return small("classwise_small", warm_start(), adapt, _round(adapt, steps=ROUND_STEPS))


def _round(adapt: Stage, *, steps: int) -> Stage:
    """Self-training on labels that the adapted network gives the whole target once, each class's most certain half."""
    return replace(
        adapt,
        name="self-training",
        method=Supervised.Config(stream="target"),
        steps=steps,
        data=replace(adapt.data, source=None, target=Stream(labels="pseudo", jitter=0.25)),
        init_from=adapt.name,
        pseudo_label=PseudoLabel(share=0.5, cap=0.9, image_share=0.0),
    )
