"""MIC: masked image consistency (2212.01322)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.components.masked_consistency import MIC
from udaseg.config import Recipe
from udaseg.recipes.common import small
from udaseg.recipes.daformer import daformer_small
from udaseg.recipes.hrda import hrda


def mic() -> Recipe:
    """MIC, GTA5 -> Cityscapes (2212.01322): 75.9 mIoU (authors' README). HRDA with masked consistency."""
    stage = hrda().stages[0]
    method = replace(stage.method, mic=MIC(weight=1.0, jitter_form="hsv"))
    return Recipe(name="mic", stages=(replace(stage, name="mic", method=method),), checkpoint_every=2000)


def mic_small() -> Recipe:
    """`daformer_small` with masked consistency: patches of 16 pixels, half of them hidden."""
    warm_start, stage = daformer_small().stages
    method = replace(stage.method, mic=MIC(weight=1.0, block=16, ratio=0.5))
    return small("mic_small", warm_start, replace(stage, name="mic", method=method))
