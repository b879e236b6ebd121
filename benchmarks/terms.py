"""Each loss term of a recipe's stages: its size, and its share in the gradient.

    python -m benchmarks.terms --recipe dsp_small --source DIR --target DIR --init MODEL [--steps 8]

For a method that does not help: a term whose gradient is a hundredth of the others' cannot, one whose gradient turns
against theirs does harm. Networks start from `--init`, train `--every` steps between two looks, and every term is
differentiated by itself over the student's backbone. Target streams with pseudo-labels must hold them.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from dataclasses import dataclass, replace

import numpy as np
import torch
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from udaseg.checkpoints.directory import read_card, read_weights
from udaseg.config import Recipe
from udaseg.data.classes import read_classes
from udaseg.jobs.train import make_plan
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.training.batches import to_batches
from udaseg.training.step import RunState, build_state, train_step
from udaseg.types import Batch


@dataclass(frozen=True, kw_only=True)
class Arguments:
    recipe: str
    source: str
    target: str
    init: str
    """Model directory that every stage starts from; its network and image size are taken."""
    looks: int = 4
    """How often terms are looked at."""
    every: int = 10
    """Steps of training between two looks."""
    batch_size: int = 4
    crop: tuple[int, int] = (192, 256)
    things: tuple[int, ...] = (2, 3)
    """Train ids that the feature distance and the long-tail paste mean."""


def gradients(state: RunState, batches: dict[str, Batch], steps: int) -> dict[str, tuple[float, float, Tensor]]:
    """Per term: its value, its weight, and the gradient of weight * value over the student's backbone."""
    parameters = [p for p in state.method.student.net.backbone.parameters() if p.requires_grad]
    state.method.train()
    found: dict[str, tuple[float, float, Tensor]] = {}
    for losses in state.method.losses(batches, state.step, steps):
        for loss in losses:
            gradient = torch.zeros(1)
            if loss.weight and loss.value.requires_grad:
                parts = torch.autograd.grad(loss.weight * loss.value, parameters, retain_graph=True, allow_unused=True)
                gradient = torch.cat(
                    [
                        torch.zeros_like(p).flatten() if g is None else g.flatten()
                        for p, g in zip(parameters, parts, strict=True)
                    ]
                )
            found[loss.name] = (loss.value.item(), loss.weight, gradient)
    return found


def main() -> int:
    a = tyro.cli(Arguments)
    card = read_card(a.init)
    recipe: Recipe = override(RECIPES[a.recipe](), {"data.batch_size": a.batch_size, "data.crop": a.crop})
    for stage in recipe.stages:
        if stage.init_from is None:
            continue
        stage = replace(stage, model=card.model, data=replace(stage.data, short_side=card.short_side))
        for field in ("things", "long_tail"):
            if hasattr(stage.method, field):
                stage = replace(stage, method=replace(stage.method, **{field: a.things}))
        plan = make_plan(stage, {"source": a.source, "target": a.target}, seed=0)
        classes = len(read_classes(a.target))
        state = build_state(stage, classes, seed=0, init=read_weights(a.init), device=torch.device("cpu"), bf16=False)
        seen: dict[str, list[tuple[float, float, float, float]]] = defaultdict(list)
        for step in range(a.looks * a.every):
            index = range(step * a.batch_size, (step + 1) * a.batch_size)
            samples = [plan.load(i) for i in index]
            columns = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
            batches = to_batches(columns, stage.data, seed=0, device=torch.device("cpu"))
            if step % a.every == 0:
                terms = gradients(state, batches, stage.steps)
                learning = [g for _, weight, g in terms.values() if g.numel() > 1]
                total = torch.stack(learning).sum(0)
                for name, (value, weight, g) in terms.items():
                    turn = (
                        torch.dot(g, total - g) / (g.norm() * (total - g).norm()) if g.any() else torch.tensor(np.nan)
                    )
                    share = g.norm() / sum(h.norm() for h in learning)
                    seen[name].append((value, weight, share.item(), turn.item()))
            train_step(state, batches, stage, seed=0)
        table = Table(
            "term", "value", "weight", "share of gradient", "cosine to the rest", title=f"{a.recipe} {stage.name}"
        )
        for name, rows in seen.items():
            value, weight, share, turn = np.mean(rows, 0)
            table.add_row(name, f"{value:.4g}", f"{weight:g}", f"{share:.1%}", f"{turn:+.2f}")
        Console().print(table)
    return 0


if __name__ == "__main__":
    sys.exit(main())
