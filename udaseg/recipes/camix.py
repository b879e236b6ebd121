"""CAMix, on DeepLabV2 and on DAFormer (2108.03557)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stream
from udaseg.methods.camix import CAMix
from udaseg.recipes.common import on_synthia, small, warm_start
from udaseg.recipes.dacs import dacs, dacs_small
from udaseg.recipes.daformer import daformer

PRIOR = Stream(labels="none", prior=True)
LARGE = replace(PRIOR, short_side=1024)
"""As the authors' loader has it, which crops Cityscapes without DACS's resizing."""


def camix() -> Recipe:
    """CAMix, GTA5 -> Cityscapes (2108.03557): 55.2 mIoU in the paper. DACS's network and schedule.

    250,000 steps of 2 + 2 crops of 512, the target's of images of 2048 x 1024, with ClassMix for the first 110,000. As
    in the authors' code the significance has no effect, so that the teacher sees the target once for it;
    `--method.significance paper --method.passes 8` costs seven passes of the teacher more. The source dataset needs its
    spatial prior, which `udaseg prepare` makes.
    """
    stage = dacs().stages[0]
    method = CAMix.Config(significance="released", passes=1, noise=0.0, evaluate="student")
    stage = replace(stage, name="camix", method=method, data=replace(stage.data, target=LARGE))
    return Recipe(name="camix", stages=(stage,), checkpoint_every=2000)


def camix_synthia() -> Recipe:
    """CAMix, SYNTHIA -> Cityscapes (2108.03557): 59.7 mIoU-13 in the paper.

    As on GTA5, with source images of 1280 x 760 and ClassMix for the first 40,000 steps.
    """
    recipe = on_synthia(camix())
    stage = recipe.stages[0]
    method = replace(stage.method, context_from=40_000, ramp_steps=10_000)
    return replace(recipe, stages=(replace(stage, method=method),))


def camix_daformer() -> Recipe:
    """CAMix on DAFormer, GTA5 -> Cityscapes (2108.03557): 70.0 mIoU in the paper. MiT-B5 in 40,000 steps.

    The authors publish no script of it: DAFormer's network and settings with the contextual mask from step 0 on, and a
    threshold that rises for half of the steps, as on DeepLabV2, are our reconstruction.
    """
    base = daformer().stages[0]
    method = CAMix.Config(
        teacher_momentum=0.999,
        ignore_top=15,
        ignore_bottom=120,
        jitter=0.2,
        jitter_form="hsv",
        teacher_moves="before",
        evaluate="student",
        context_from=0,
        ramp_steps=20_000,
        feature_weight=0.005,
        source_reduction="all",
    )
    stage = replace(base, name="camix", method=method, data=replace(base.data, group_size=1, target=PRIOR))
    return Recipe(name="camix_daformer", stages=(stage,), checkpoint_every=2000)


def camix_daformer_synthia() -> Recipe:
    """CAMix on DAFormer, SYNTHIA -> Cityscapes (2108.03557): 69.2 mIoU-13 in the paper. A reconstruction as on GTA5."""
    return on_synthia(camix_daformer())


def camix_small() -> Recipe:
    """CAMix from a source-only warm start, on a small network, its mask contextual from the start.

    On CamVid -> IDD-Lite at 240 pixels it is no better than source-only (docs/figures.md).
    """
    base = dacs_small().stages[1]
    method = CAMix.Config(threshold=0.9, context_from=0, companions=(), passes=2, ramp_steps=base.steps)
    stage = replace(base, name="camix", method=method, data=replace(base.data, target=PRIOR))
    return small("camix_small", warm_start(), stage)
