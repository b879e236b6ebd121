"""DAFormer (2111.14887)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Recipe, Stage
from udaseg.methods.daformer import DAFormer
from udaseg.recipes.common import (
    DAFORMER,
    SMALL_DATA,
    SMALL_RARE,
    TRANSFORMER_OPTIM,
    on_synthia,
    rare_source,
    small,
    warm_start,
)
from udaseg.recipes.dacs import dacs_small


def daformer() -> Recipe:
    """DAFormer, GTA5 -> Cityscapes (2111.14887): 68.3 mIoU in the paper. MiT-B5 and its context-aware head.

    40,000 steps of 2 + 2 crops of 512; GTA5's images, 1914 x 1052, are made 1280 wide. As the authors do, the student
    is evaluated. `--model.backbone` takes any hierarchical backbone of timm instead.
    """
    stage = Stage(
        name="daformer",
        method=DAFormer.Config(
            pool="batch",
            group_size=2,
            jitter_form="hsv",
            teacher_moves="before",
            evaluate="student",
        ),
        steps=40_000,
        model=DAFORMER,
        data=Data(
            batch_size=2,
            group_size=2,
            short_side=512,
            resample="bilinear",
            crop=(512, 512),
            source=rare_source(short_side=704, share=0.5),
        ),
        optim=TRANSFORMER_OPTIM,
    )
    return Recipe(name="daformer", stages=(stage,), checkpoint_every=2000)


def daformer_synthia() -> Recipe:
    """DAFormer, SYNTHIA -> Cityscapes (2111.14887): 60.9 mIoU-16 (authors' README)."""
    return on_synthia(daformer())


def daformer_acdc() -> Recipe:
    """DAFormer, Cityscapes -> ACDC or Dark Zurich (2111.14887): 55.4 and 53.8 mIoU of their test sets (README).

    Images of the target at 960 x 540, those of the source at 1024 x 512. Evaluation brings images to whole cells, here
    960 x 544: `--inference.window 540 960` keeps the authors' size.
    """
    stage = daformer().stages[0]
    data = replace(stage.data, short_side=540, source=rare_source(short_side=512, share=0.5))
    return Recipe(name="daformer_acdc", stages=(replace(stage, data=data),), checkpoint_every=2000)


def daformer_small() -> Recipe:
    """DAFormer on a small network, from a source-only warm start, near whose features things stay.

    Target pixels count by thresholds of their class, as in `dacs_small`.
    """
    stage = replace(
        dacs_small().stages[1],
        name="daformer",
        method=DAFormer.Config(
            threshold=0.9,
            reliability="class",
            teacher_momentum=0.99,
            things=(5, 6),
            ignore_top=0,
            ignore_bottom=0,
            feature_weight=0.005,
        ),
        data=replace(SMALL_DATA, source=SMALL_RARE),
    )
    return small("daformer_small", warm_start(), stage)
