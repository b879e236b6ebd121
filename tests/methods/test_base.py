"""The optimiser that most methods use."""

from __future__ import annotations

from dataclasses import replace

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
