"""HRDA: DAFormer at two resolutions (2204.13132)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe
from udaseg.recipes.common import SMALL, on_synthia, rare_source, small
from udaseg.recipes.daformer import daformer, daformer_small


def hrda() -> Recipe:
    """HRDA, GTA5 -> Cityscapes (2204.13132): 73.8 mIoU (authors' README).

    DAFormer at twice the resolution: 2 + 2 crops of 1024, seen at half of it, with a detail crop of 512 in each. The
    authors weigh also 30 pixels at the left and right end of a target image 0, which here count. Its model, as those of
    MIC and CLUDA on it, predicts in windows of the crop's size, as the authors do.
    """
    stage = daformer().stages[0]
    data = replace(stage.data, short_side=1024, crop=(1024, 1024), source=rare_source(short_side=1407, share=2.0))
    stage = replace(
        stage,
        name="hrda",
        method=replace(stage.method, ignore_top=30, ignore_bottom=240),
        model=replace(stage.model, detail_crop=(512, 512)),
        data=data,
    )
    return Recipe(name="hrda", stages=(stage,), checkpoint_every=2000)


def hrda_synthia() -> Recipe:
    """HRDA, SYNTHIA -> Cityscapes (2204.13132): 65.8 mIoU-16 (authors' README). SYNTHIA's images twice as large."""
    return on_synthia(hrda(), short_side=1520)


def hrda_acdc() -> Recipe:
    """HRDA, Cityscapes -> ACDC or Dark Zurich (2204.13132): 68.0 and 55.9 mIoU of their test sets (README).

    Both domains at their own size, and no margin of the target without weight.
    """
    stage = hrda().stages[0]
    data = replace(stage.data, short_side=1080, source=rare_source(short_side=1024, share=2.0))
    stage = replace(stage, method=replace(stage.method, ignore_top=0, ignore_bottom=0), data=data)
    return Recipe(name="hrda_acdc", stages=(stage,), checkpoint_every=2000)


def hrda_small() -> Recipe:
    """HRDA on a small network: context at half the resolution, detail crops of half the side. Evaluated likewise.

    For images of a few hundred pixels it is of no help: on CamVid -> IDD-Lite at 240 pixels already its warm start
    finds few people and roadside objects (docs/log.md, 2026-11-29).
    """
    model = replace(SMALL, detail_crop=(64, 96))
    warm_start, stage = (replace(stage, model=model) for stage in daformer_small().stages)
    return small("hrda_small", warm_start, replace(stage, method=replace(stage.method, reliability="quality")))
