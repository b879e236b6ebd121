"""The optimiser that most methods use."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import make_stage, make_state

from udaseg.config import Optim


def test_vectors_and_positions_decay_only_on_request() -> None:
    stage = make_stage("cluda", name="adamw", weight_decay=0.3, decay_vectors=False)
    stage = replace(stage, model=replace(stage.model, backbone="test_vit"))
    method = make_state(stage).method
    decay = {
        id(p): group["weight_decay"]
        for optimizer in method.optimizers(stage.optim)
        for group in optimizer.param_groups
        for p in group["params"]
    }
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    assert decay.keys() == {id(p) for p in learning.values()}
    undecayed = {name for name, p in learning.items() if decay[id(p)] == 0}
    assert undecayed == {name for name, p in learning.items() if p.ndim <= 1 or name.endswith("pos_embed")}
    assert any(name.endswith("pos_embed") for name in undecayed)
    every = method.optimizers(replace(stage.optim, decay_vectors=True))
    assert all(group["weight_decay"] == 0.3 for optimizer in every for group in optimizer.param_groups)


def test_every_optimiser_of_the_configuration_builds() -> None:
    for name, kind in [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)]:
        optimizer = make_state(make_stage("supervised", name=name)).optimizers[0]
        assert isinstance(optimizer, kind)
        backbone, head = optimizer.param_groups
        assert head["lr"] == 2 * backbone["lr"] == 1e-2
        assert Optim(name=name).lr == 2.5e-4  # type: ignore[arg-type]


def test_parameters_named_so_do_not_decay() -> None:
    stage = make_stage("cluda", name="adamw", weight_decay=0.3, undecayed=("bn1", "classify"))
    method = make_state(stage).method
    groups = [group for optimizer in method.optimizers(stage.optim) for group in optimizer.param_groups]
    decay = {id(p): group["weight_decay"] for group in groups for p in group["params"]}
    learning = {name: p for name, p in method.named_parameters() if p.requires_grad}
    spared = {name for name in learning if "bn1" in name or "classify" in name}
    assert {name for name, p in learning.items() if decay[id(p)] == 0} == spared
    assert any("bn1" in name for name in spared) and any("attention.classify" in name for name in spared)


def test_the_warm_up_begins_where_it_is_told() -> None:
    """mmcv's linear warm-up of DAFormer: (t / 1500) (1 - 1e-6) + 1e-6 of the polynomial rate."""
    optim = Optim(power=1.0, warmup_steps=1500, warmup_start=1e-6)
    for step in (0, 1, 700, 1499):
        expected = (1 - step / 40_000) * (step / 1500 * (1 - 1e-6) + 1e-6)
        assert optim.lr_factor(step, 40_000) == pytest.approx(expected, rel=1e-12)
    assert optim.lr_factor(1500, 40_000) == pytest.approx(1 - 1500 / 40_000)
    assert Optim(power=1.0, warmup_steps=4).lr_factor(0, 10**9) == pytest.approx(1 / 5)
