"""DSP: dual soft-paste (2107.09600)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stream
from udaseg.methods.dsp import DSP
from udaseg.recipes.common import SMALL_DATA, SMALL_RARE, on_synthia, small, warm_start
from udaseg.recipes.dacs import dacs, dacs_small

LONG_TAIL = (12, 15, 16, 17, 18)
"""Rider, bus, train, motorcycle and bicycle."""


def dsp() -> Recipe:
    """DSP, GTA5 -> Cityscapes (2107.09600): 55.0 mIoU in the paper.

    DACS's network and schedule, with a template and a long-tail image a sample; the authors start from COCO weights.
    """
    stage = dacs().stages[0]
    template = Stream(labels="true", short_side=720, resample="bicubic")
    rare = replace(
        template,
        sampling="rare_class",
        rare_classes=LONG_TAIL,
        rare_temperature=1e3,  # each of them as often
        rare_min_pixels=1,
        rare_min_crop_pixels=1,
    )
    data = replace(stage.data, group_size=2, template=template, rare=rare)
    method = DSP.Config(evaluate="student", mmd_fixed=True, long_tail=LONG_TAIL)
    return Recipe(
        name="dsp",
        stages=(replace(stage, name="dsp", method=method, data=data),),
        checkpoint_every=2000,
    )


def dsp_synthia() -> Recipe:
    """DSP, SYNTHIA -> Cityscapes (2107.09600): 51.0 mIoU-16 and 59.9 mIoU-13 (as listed on OpenCodePapers).

    Of the authors' `train_DSP.py`: less blend and MMD (0.0001 in its later version, 0.005 in the first), long-tail
    images at 1080 pixels, whose classes are wall, fence, traffic light and bus, and the target's crops of 2048 x 1024.
    Where datasets have SYNTHIA's 16 classes alone, bus is 13, in `--method.long-tail` and `--data.rare.rare-classes`.
    """
    stage, tail = on_synthia(dsp()).stages[0], (3, 4, 6, 15)
    assert stage.data.rare is not None
    rare = replace(stage.data.rare, short_side=1080, rare_classes=tail)
    data = replace(stage.data, rare=rare, target=Stream(labels="none", short_side=1024))
    method = replace(stage.method, blend=0.8, long_tail=tail, mmd_weight=0.0001)
    return Recipe(name="dsp_synthia", stages=(replace(stage, method=method, data=data),), checkpoint_every=2000)


def dsp_small() -> Recipe:
    """DSP from a source-only warm start, on a small network."""
    stage = replace(
        dacs_small().stages[1],
        name="dsp",
        method=DSP.Config(threshold=0.9, long_tail=(5, 6, 7), mmd_channels=64, group_size=4),
        data=replace(SMALL_DATA, group_size=4, template=Stream(labels="true"), rare=SMALL_RARE),
    )
    return small("dsp_small", warm_start(), stage)
