"""AdaBN: the batch-norm statistics of the target (1603.04779)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Recipe, Stage
from udaseg.methods.adabn import AdaBN
from udaseg.recipes.common import SMALL, SMALL_DATA, small
from udaseg.recipes.supervised import source_only_small


def adabn_small() -> Recipe:
    """Source-only, then the target's batch-norm statistics and nothing else: what any adaptation must beat."""
    stage = Stage(
        name="adabn",
        method=AdaBN.Config(),
        steps=60,
        model=SMALL,
        data=replace(SMALL_DATA, source=None),
        init_from="source",
    )
    return small("adabn_small", source_only_small().stages[0], stage)
