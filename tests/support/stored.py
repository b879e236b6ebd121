"""Losses of three steps of every small recipe, kept so that no change moves them unnoticed.

After a change that is meant to move them, or with a new recipe: .venv/bin/python tests/support/stored.py NAME...
writes those of these recipes anew, without a name those of all.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from toy import SEED, adapting_stage, make_batches, make_state

from udaseg.recipes import RECIPES
from udaseg.training.step import train_step

FILE = Path(__file__).parents[1] / "assets" / "losses.json"
SMALL = [name for name in RECIPES if name.endswith("_small")]
STEPS = 3


def losses(recipe: str) -> list[dict[str, float]]:
    """What three steps of the recipe's last stage that adapts return."""
    stage = adapting_stage(recipe)
    state = make_state(stage)
    return [train_step(state, make_batches(stage, step), stage, seed=SEED) for step in range(STEPS)]


if __name__ == "__main__":
    torch.set_num_threads(1)  # as tests have it
    kept = json.loads(FILE.read_text()) if len(sys.argv) > 1 else {}
    kept |= {name: losses(name) for name in sys.argv[1:] or SMALL}
    FILE.write_text(json.dumps(dict(sorted(kept.items())), indent=1) + "\n")
