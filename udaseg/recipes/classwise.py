"""Class-wise self-training, ours: what udaseg recommends."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Recipe, Stage
from udaseg.methods.classwise import Classwise
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import DAFORMER, SMALL_DATA, SMALL_RARE, TRANSFORMER_OPTIM, rare_source, small, warm_start
from udaseg.recipes.dacs import dacs_small


def classwise() -> Recipe:
    """Class-wise self-training on DAFormer's network, GTA5 -> Cityscapes; not measured at this size.

    A source-only start of 10,000 steps, then 30,000 of 2 + 2 crops of 512: together as many as DAFormer takes.
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
        steps=30_000,
        data=data,
        init_from="source",
    )
    return Recipe(name="classwise", stages=(source, adapt), checkpoint_every=2000)


def classwise_small() -> Recipe:
    """Class-wise self-training on a small network, from a source-only warm start."""
    stage = replace(
        dacs_small().stages[1],
        name="classwise",
        method=Classwise.Config(),
        data=replace(SMALL_DATA, source=SMALL_RARE),
    )
    return small("classwise_small", warm_start(), stage)
