"""STvM and MOCM, our reconstruction: source-free self-training by a learned metric (2212.04227)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, Recipe, Stage, Stream
from udaseg.methods.stvm import STvM
from udaseg.recipes.common import DEEPLAB, ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small


def stvm() -> Recipe:
    """STvM with MOCM, our reconstruction, GTA5 -> Cityscapes (2212.04227): the paper's figure could not be read.

    Source-free: it takes `--target` alone. The source model, a `source_only` run's, is `--stages.0.init-from`.
    40,000 steps of 4 crops of 512, each seen by the teacher and by the student, on DeepLabV2-R101; all settings ours.
    """
    stage = Stage(
        name="stvm",
        method=STvM.Config(group_size=4),
        steps=40_000,
        model=DEEPLAB,
        data=Data(
            batch_size=4,
            group_size=4,
            short_side=720,
            scale=(0.5, 1.5),
            crop=(512, 512),
            source=None,
            target=Stream(labels="none"),
        ),
        optim=Optim(lr=1e-4),
        init_from="runs/source_only/model",
    )
    return Recipe(name="stvm", stages=(stage,), checkpoint_every=2000)


def stvm_small() -> Recipe:
    """STvM with MOCM on a small network. The source model is `--stages.0.init-from`."""
    stage = Stage(
        name="stvm",
        method=STvM.Config(metric_channels=32, group_size=4),
        steps=2 * ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, group_size=4, source=None, target=Stream(labels="none")),
        optim=replace(SMALL_OPTIM, lr=1e-3),
        init_from="runs/source_only_small/model",
    )
    return small("stvm_small", stage)
