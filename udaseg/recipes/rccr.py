"""RCCR (2110.05170)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stream
from udaseg.methods.rccr import RCCR
from udaseg.recipes.common import on_synthia, small, warm_start
from udaseg.recipes.dacs import dacs, dacs_small


def rccr() -> Recipe:
    """RCCR, GTA5 -> Cityscapes (2110.05170): 53.5 mIoU in the paper (from memory). DACS's network and schedule.

    250,000 steps of 2 + 2 crops of 512, the target's of images of 2048 x 1024 as the authors' loader has them, with a
    third pass of the student over the pasted regions; the bank takes 12 MiB. The authors' script leaves the contrast
    off on GTA5, as `--method.contrast-from 300000` does.
    """
    stage = dacs().stages[0]
    data = replace(stage.data, target=Stream(labels="none", short_side=1024))
    stage = replace(stage, name="rccr", method=RCCR.Config(evaluate="student", projection_fixed=True), data=data)
    return Recipe(name="rccr", stages=(stage,), checkpoint_every=2000)


def rccr_synthia() -> Recipe:
    """RCCR, SYNTHIA -> Cityscapes (2110.05170): 56.8 mIoU-13 in the paper (from memory)."""
    return on_synthia(rccr())


def rccr_small() -> Recipe:
    """RCCR from a source-only warm start, on a small network."""
    method = RCCR.Config(threshold=0.9, contrast_weight=0.1, projection_channels=32, bank_length=2000, bank_cells=64)
    return small("rccr_small", warm_start(), replace(dacs_small().stages[1], name="rccr", method=method))
