"""CLUDA: contrast across classes, domains and resolutions (2208.14227)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe
from udaseg.methods.cluda import CLUDA
from udaseg.recipes.common import on_synthia, small
from udaseg.recipes.daformer import daformer_small
from udaseg.recipes.hrda import hrda


def cluda() -> Recipe:
    """CLUDA, GTA5 -> Cityscapes (2208.14227): 74.4 mIoU (authors' README). HRDA with contrast of pixels.

    `--model.detail-crop None` and DAFormer's crops give its single-resolution form.
    """
    stage = hrda().stages[0]
    method = CLUDA.Config(
        ignore_top=30,
        ignore_bottom=240,
        pool="batch",
        jitter_form="hsv",
        teacher_moves="before",
        evaluate="student",
    )
    stage = replace(stage, name="cluda", method=method)
    return Recipe(name="cluda", stages=(stage,), checkpoint_every=2000)


def cluda_synthia() -> Recipe:
    """CLUDA, SYNTHIA -> Cityscapes (2208.14227): 67.2 mIoU-16 (abstract). The authors' file is not public: HRDA's."""
    return on_synthia(cluda(), short_side=1520)


def cluda_small() -> Recipe:
    """CLUDA at one resolution from a source-only warm start, on a small network.

    Target pixels count by thresholds of their class, as in `dacs_small`.
    On CamVid -> IDD-Lite at 240 pixels it gains a point over source-only, `classwise` four (docs/figures.md).
    """
    warm_start, stage = daformer_small().stages
    method = CLUDA.Config(
        threshold=0.9,
        reliability="class",
        teacher_momentum=0.99,
        things=(5, 6),
        ignore_top=0,
        ignore_bottom=0,
        contrast_size=32,
        attention_channels=32,
    )
    stage = replace(stage, name="cluda", method=method, data=replace(stage.data, group_size=2))
    return small("cluda_small", warm_start, stage)
