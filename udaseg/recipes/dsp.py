"""DSP: dual soft-paste (2107.09600)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stream
from udaseg.methods.dsp import DSP
from udaseg.recipes.common import SMALL_DATA, SMALL_RARE, small, warm_start
from udaseg.recipes.dacs import dacs, dacs_small


def dsp() -> Recipe:
    """DSP, GTA5 -> Cityscapes (2107.09600): 55.0 mIoU in the paper.

    DACS's network and schedule, with a template and a long-tail image a sample; the authors start from COCO weights.
    """
    stage = dacs().stages[0]
    template = Stream(labels="true", short_side=720, resample="bicubic")
    rare = replace(template, sampling="rare_class", rare_min_pixels=1, rare_min_crop_pixels=1)
    data = replace(stage.data, group_size=2, template=template, rare=rare)
    return Recipe(
        name="dsp",
        stages=(replace(stage, name="dsp", method=DSP.Config(evaluate="student", mmd_fixed=True), data=data),),
        checkpoint_every=2000,
    )


def dsp_small() -> Recipe:
    """DSP from a source-only warm start, on a small network."""
    stage = replace(
        dacs_small().stages[1],
        name="dsp",
        method=DSP.Config(threshold=0.9, long_tail=(5, 6, 7), mmd_channels=64, group_size=4),
        data=replace(SMALL_DATA, group_size=4, template=Stream(labels="true"), rare=SMALL_RARE),
    )
    return small("dsp_small", warm_start(), stage)
