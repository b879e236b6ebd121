"""CLAN (1809.09478)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, Recipe
from udaseg.methods.clan import CLAN
from udaseg.recipes.advent import advent
from udaseg.recipes.common import SMALL, on_synthia, small, warm_start
from udaseg.recipes.dacs import dacs_small


def clan() -> Recipe:
    """CLAN, GTA5 -> Cityscapes (1809.09478): 43.2 mIoU (from memory); several users report 41.3 (CLAN#19).

    DeepLabV2-R101 with two classifiers, 100,000 steps of 1 + 1 images, the rate warming up over 5,000. Images as in
    `advent`, here at factors of up to 1.1 where the authors take 0.8, 1 or 1.1, and mirrored.
    """
    stage = advent().stages[0]
    stage = replace(
        stage,
        name="clan",
        method=CLAN.Config(),
        steps=100_000,
        model=replace(stage.model, head_pair=True),
        data=replace(stage.data, scale=(0.8, 1.1), flip=0.5),
        optim=Optim(lr=2.5e-4, warmup_steps=5000, warmup_start=0.0),
    )
    return Recipe(name="clan", stages=(stage,), checkpoint_every=2000)


def clan_synthia() -> Recipe:
    """CLAN, SYNTHIA -> Cityscapes (1809.09478): 47.8 mIoU-13 (from memory). Disagreement weighs 10 instead of 40."""
    recipe = on_synthia(clan())
    return replace(recipe, stages=(replace(recipe.stages[0], method=CLAN.Config(local_weight=10.0)),))


def clan_small() -> Recipe:
    """CLAN on a small network, from a source-only warm start of its own, which has two heads too."""
    model = replace(SMALL, head_pair=True)
    stage = replace(
        dacs_small().stages[1],
        name="clan",
        method=CLAN.Config(preheat_steps=30, discriminator_channels=16),
        model=model,
    )
    return small("clan_small", warm_start(model=model), stage)
