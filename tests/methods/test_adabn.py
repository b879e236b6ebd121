"""AdaBN: statistics of the target, and nothing else."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import small_network
from toy import SEED, changed, make_batches, make_stage, make_state, snapshot, warm_up

from udaseg.training.step import train_step


def test_adabn_changes_the_statistics_and_nothing_else() -> None:
    stage = make_stage("adabn")
    state, batches = make_state(stage), [make_batches(stage, step) for step in range(3)]
    warm_up(state.method.student)
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED))
    before = snapshot(state.method)
    seen = []
    norm = state.method.student.net.backbone.bn1
    hook = norm.register_forward_pre_hook(lambda _, x: seen.append(x[0].movedim(1, -1).flatten(0, 2)))
    for brightness, batch in zip((0.2, 1.0, 0.6), batches, strict=True):
        target = replace(batch["target"], image=brightness * batch["target"].image)
        assert train_step(state, {**batch, "target": target}, stage, seed=SEED)["grad_norm"] == 0
    hook.remove()
    moved = changed(before, state.method)
    assert moved and all(name.endswith(("running_mean", "running_var", "num_batches_tracked")) for name in moved)
    pixels = torch.cat(seen)  # of all batches; what was before is forgotten
    torch.testing.assert_close(norm.running_mean, pixels.mean(0))
    torch.testing.assert_close(norm.running_var, pixels.var(0), rtol=1e-3, atol=0.0)  # of 3 batches, unbiased each
    assert (norm.running_var > 1.005 * torch.stack([x.var(0) for x in seen]).mean(0)).any()


def test_adabn_refuses_a_network_that_sees_an_image_in_parts() -> None:
    with pytest.raises(ValueError, match=r"leave model.detail_crop out"):
        make_stage("adabn").method.build(small_network(detail_crop=(32, 32)), seed=SEED)


def test_adabn_of_a_network_per_domain_estimates_the_target_s_statistics() -> None:
    stage = make_stage("adabn")
    stage = replace(stage, model=replace(stage.model, per_domain="stem+statistics"))
    state, batch = make_state(stage), make_batches(stage)
    warm_up(state.method.student)
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED))
    seen = []
    state.method.student.net.backbone.bn1.register_forward_pre_hook(lambda _, x: seen.append(x[0].mean((0, 2, 3))))
    train_step(state, batch, stage, seed=SEED)
    own = dict(state.method.student.target_buffers.named_buffers())
    torch.testing.assert_close(own["backbone/bn1/running_mean"], seen[0])


def test_adabn_leaves_what_the_source_alone_uses() -> None:
    """No target image would fill it again, and the network still answers for source images by it."""
    stage = make_stage("adabn")
    stage = replace(stage, model=replace(stage.model, per_domain="stem+statistics"))
    state, batch = make_state(stage), make_batches(stage)
    warm_up(state.method.student)
    norm = state.method.student.net.backbone.bn1
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}
    state = replace(state, method=stage.method.build(state.method.student, seed=SEED))
    train_step(state, batch, stage, seed=SEED)
    assert norm.running_mean.abs().max() > 0
    assert all(torch.equal(before[name], buffer) for name, buffer in norm.named_buffers())
