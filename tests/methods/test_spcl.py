"""SPCL: which cells move the prototypes, and what the released code does otherwise."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal
from torch import nn

from udaseg.methods.spcl import SPCL
from udaseg.types import IGNORE, Batch, Loss, SegOutput

CLASSES, CHANNELS = 3, 5


class Given(nn.Module):
    """A student that says the same of every image."""

    num_classes, feature_channels = CLASSES, (CHANNELS,)

    def __init__(self) -> None:
        super().__init__()
        coarse = normal(2, CLASSES, 6, 8, seed=3)
        self.out = SegOutput(
            logits=normal(2, CLASSES, 12, 16, seed=2),
            embedding=coarse,
            features=(normal(2, CHANNELS, 3, 4, seed=1),),
            aux={"coarse_logits": coarse},
        )

    def forward(self, *_: object) -> SegOutput:
        return self.out


def made(**settings: Any) -> SPCL:
    return SPCL(SPCL.Config(temperature=1.0, **settings), Given()).double()  # type: ignore[arg-type]


def batch() -> Batch:
    return Batch(image=torch.zeros(2, 3, 12, 16), index=torch.arange(2), label=labels(2, 12, 16, classes=CLASSES))


def terms(method: SPCL, batches: dict[str, Batch], step: int = 0) -> dict[str, Loss]:
    return {loss.name: loss for losses in method.losses(batches, step, 10) for loss in losses}


def test_cells_that_are_predicted_right_move_the_prototypes_and_are_contrasted() -> None:
    method, source = made(), batch()
    found, out = terms(method, {"source": source, "target": source}), method.student.out
    right: dict[int, list[torch.Tensor]] = {c: [] for c in range(CLASSES)}
    all_cells = []
    for n, i, j in np.ndindex(2, 3, 4):
        unit, y = F.normalize(out.features[0][n, :, i, j], dim=0), int(source.labels[n, 4 * i, 4 * j])
        if y != IGNORE:
            all_cells.append((unit, y))
            if y == int(out.aux["coarse_logits"][n, :, 2 * i, 2 * j].argmax()):
                right[y].append(unit)
    assert all(right.values()) and sum(map(len, right.values())) < len(all_cells)
    means = torch.stack([torch.stack(units).mean(0) for units in right.values()])
    torch.testing.assert_close(method.classes.prototypes, means)
    keys = F.normalize(means, dim=1)
    for domain, cells in (("source", [(u, y) for y, us in right.items() for u in us]), ("target", all_cells)):
        losses = [float(-(keys @ unit).log_softmax(0)[y]) for unit, y in cells]
        assert float(found[f"{domain}_contrast"].value) == pytest.approx(sum(losses) / len(losses), rel=1e-6)
    divided = F.cross_entropy(out.logits / 1.8, source.labels, ignore_index=IGNORE)
    assert float(found["source_ce"].value) == pytest.approx(float(divided))


def test_the_released_prototypes_fade_and_are_not_of_unit_length() -> None:
    values = []
    for variant in ("fixed", "released"):
        method, batches = made(variant=variant), {"source": batch(), "target": batch()}
        values.append({name: float(loss.value) for name, loss in terms(method, batches).items()})
        before = method.classes.prototypes.clone()
        assert before.any()
        hidden = {d: replace(b, label=torch.full_like(b.labels, IGNORE)) for d, b in batches.items()}
        terms(method, hidden)
        torch.testing.assert_close(method.classes.prototypes, (0.1 if variant == "released" else 1.0) * before)
    differing = {name for name in values[0] if values[0][name] != values[1][name]}
    assert differing == {"source_contrast", "target_contrast"}


def test_the_contrast_waits_until_prototypes_are_filled() -> None:
    method, batches = made(fill_steps=1, contrast_weight=2.0), {"source": batch(), "target": batch()}
    weights = [
        {loss.weight for name, loss in terms(method, batches, step).items() if "contrast" in name} for step in (0, 1)
    ]
    assert weights == [{0.0}, {2.0}]
