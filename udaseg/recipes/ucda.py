"""UCDA, our reconstruction: contrast within and across domains with label expansion (2204.08399)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.supervised import Supervised
from udaseg.methods.ucda import UCDA
from udaseg.recipes.common import DEEPLAB, ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small, warm_start

LABELS = PseudoLabel(share=0.5, cap=0.9, image_share=0.0)
"""Each class's most certain half, and what is 0.9 certain."""


def ucda() -> Recipe:
    """UCDA, our reconstruction, GTA5 -> Cityscapes (2204.08399): 60.2 mIoU in the paper (abstract), by settings unread.

    DeepLabV2-R101: a source-only start of 20,000 steps, then two rounds of pseudo-labels of 40,000 steps with 2 + 2
    crops of 512 by 1024; settings ours. The contrast of a step compares 16,384 cells with 19 x 256 remembered ones in
    each of two banks, in blocks.
    """
    data = Data(
        batch_size=2,
        short_side=512,
        crop=(512, 1024),
        source=Stream(labels="true", short_side=720, jitter=0.25, blur=0.5),
        target=Stream(labels="pseudo", jitter=0.25, blur=0.5),
    )
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=20_000,
        model=DEEPLAB,
        data=replace(data, target=None),
        optim=Optim(lr=2.5e-4, horizon=5.0),
    )
    rounds = tuple(
        replace(
            source,
            name=f"round-{r}",
            method=UCDA.Config(),
            steps=40_000,
            data=data,
            optim=Optim(lr=2.5e-4 / 2**r),
            init_from="source" if r == 0 else "round-0",
            pseudo_label=LABELS,
        )
        for r in range(2)
    )
    return Recipe(name="ucda", stages=(source, *rounds), checkpoint_every=2000)


def ucda_small() -> Recipe:
    """UCDA from a source-only warm start on a small network, in one round; rare things are its hard classes."""
    stage = Stage(
        name="round",
        method=UCDA.Config(projection_channels=32, bank_length=64, hard=(5, 6, 7), expand_from=100),
        steps=2 * ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, target=Stream(labels="pseudo", jitter=0.25)),
        optim=SMALL_OPTIM,
        init_from="source",
        pseudo_label=LABELS,
    )
    return small("ucda_small", warm_start(), stage)
