"""BCL: bi-directional pixel-prototype contrastive learning (2207.10892)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.bcl import BCL
from udaseg.recipes.common import (
    CAFFE_DEEPLAB,
    ROUND_STEPS,
    SMALL,
    SMALL_DATA,
    SMALL_OPTIM,
    SMALL_RARE,
    small,
    warm_start,
)
from udaseg.recipes.supervised import source_only


def bcl() -> Recipe:
    """BCL, GTA5 -> Cityscapes (2207.10892): about 57.1 mIoU (from memory; no table in the authors' README).

    A source-only stage, then ten rounds of two epochs, each on pseudo-labels made anew; the rate halves every round.
    Labels are made, and networks evaluated, at 1460 x 730.
    `--method.variant paper` adds dynamic labels and calibration.
    """
    warm_up = source_only().stages[0]
    source = Stream(labels="true", short_side=720)
    data = replace(warm_up.data, short_side=730, resample="bicubic", source=source)
    warm_up = replace(warm_up, model=CAFFE_DEEPLAB, data=data)
    data = Data(
        batch_size=2,
        short_side=730,
        resample="bicubic",
        scale=(0.8, 1.2),
        crop=(730, 730),
        source=replace(source, short_side=850),
        target=Stream(labels="pseudo", short_side=850),
    )
    rounds = tuple(
        Stage(
            name=f"round-{r}",
            method=BCL.Config(),
            steps=10_000,
            model=replace(CAFFE_DEEPLAB, per_domain="stem"),
            data=data,
            optim=Optim(lr=7.5e-5 / 2**r, horizon=1.2),
            init_from="source" if r == 0 else f"round-{r - 1}",
            pseudo_label=PseudoLabel(share=0.1, image_share=0.1, rule="any_class", rare_class="keep_all"),
        )
        for r in range(10)
    )
    return Recipe(name="bcl", stages=(warm_up, *rounds), checkpoint_every=1500)


def bcl_small(count: int = 2) -> Recipe:
    """BCL from a source-only warm start, on a small network, with the mixed view (see docs/methods/bcl.md).

    All its steps are shared by `count` rounds.
    """
    rounds = tuple(
        Stage(
            name=f"round-{r}",
            method=BCL.Config(target_weight=1.0, entropy_weight=0.0, teacher_momentum=0.98, mix=True, mix_jitter=0.5),
            steps=2 * ROUND_STEPS // count,
            model=SMALL,
            data=replace(SMALL_DATA, target=Stream(labels="pseudo")),
            optim=SMALL_OPTIM,
            init_from="source" if r == 0 else f"round-{r - 1}",
            pseudo_label=PseudoLabel(share=0.1, image_share=0.0),
        )
        for r in range(count)
    )
    return small("bcl_small", warm_start(), *rounds)


def bcl_demo() -> Recipe:
    """`bcl_small` in one round, within minutes, with rare-class sampling of the source."""
    warm_start, adapt = bcl_small(count=1).stages
    stages = (warm_start, replace(adapt, data=replace(adapt.data, source=SMALL_RARE)))
    return small("bcl_demo", *stages)


def bcl_paper_small() -> Recipe:
    """`bcl_small` with dynamic and hybrid pseudo-labels and calibrated prototypes (`variant="paper"`)."""
    recipe = bcl_small()
    stages = tuple(
        replace(stage, method=replace(stage.method, variant="paper")) if isinstance(stage.method, BCL.Config) else stage
        for stage in recipe.stages
    )
    return replace(recipe, name="bcl_paper_small", stages=stages)
