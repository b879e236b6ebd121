"""ADVENT: who learns from what, and MinEnt."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn
from toy import SEED, collect, make_batches, make_stage, make_state

from udaseg.losses.adversarial import self_information
from udaseg.losses.segmentation import cross_entropy
from udaseg.training.step import train_step


def gradients(module: nn.Module) -> float:
    return sum(float(p.grad.abs().sum()) for p in module.parameters() if p.grad is not None)


def test_the_network_and_its_adversaries_learn_from_terms_of_their_own() -> None:
    stage = make_stage("advent")
    state, batches = make_state(stage), make_batches(stage)
    method = state.method.train()
    for losses in method.losses(batches, 0, 10):
        method.zero_grad(set_to_none=True)
        torch.stack([loss.value for loss in losses]).sum().backward()
        learns = {level: gradients(network) > 0 for level, network in method.discriminators.items()}
        judging = [level for level in learns if losses[0].name.startswith(f"{level}_discriminator")]
        assert learns == {level: level in judging for level in learns}
        assert (gradients(method.student) > 0) == (gradients(method.auxiliary) > 0) == (not judging)


def test_the_auxiliary_classifier_reads_the_level_before_the_last() -> None:
    stage = make_stage("advent")
    state, batches = make_state(stage), make_batches(stage)
    found, source = collect(state, batches), batches["source"]
    method = state.method
    with torch.no_grad():
        levels = method.student.levels(source.image, "source")
        coarse = sum(branch(levels[-2]) for branch in method.auxiliary.branches)
        up = nn.functional.interpolate(coarse, size=source.image.shape[-2:], mode="bilinear", align_corners=False)
        torch.testing.assert_close(found["auxiliary_ce"].value.detach(), cross_entropy(up, source.labels))
    assert not any("auxiliary" in name for name in method.predictor.state_dict())


def test_minent_has_no_adversary_and_makes_the_target_certain() -> None:
    stage = make_stage("advent", name="adamw", lr=2e-3)
    stage = replace(stage, method=replace(stage.method, variant="minent", target_weight=1.0))
    state, batches = make_state(stage), make_batches(stage)
    assert not any("discriminator" in name for name in state.method.state_dict())
    assert len(state.optimizers) == 1
    found = collect(state, batches)
    with torch.no_grad():
        logits = state.method.student(batches["target"].image, "target").logits
    assert found["main_entropy"].value.item() == pytest.approx(float(self_information(logits).sum(1).mean()), rel=1e-5)
    logs = [train_step(state, batches, stage, seed=SEED) for _ in range(8)]
    assert logs[-1]["main_entropy"] < 0.9 * logs[0]["main_entropy"]


def test_discriminators_have_an_adam_of_their_own() -> None:
    """Whose first step moves each weight by about its rate, whatever the stage's."""
    stage = make_stage("advent")
    state, batches = make_state(stage), make_batches(stage)
    assert state.optimizers[1].defaults["betas"] == (0.9, 0.99)
    before = {name: p.detach().clone() for name, p in state.method.discriminators.named_parameters()}
    train_step(state, batches, stage, seed=SEED)
    moved = [(p.detach() - before[name]).abs().max() for name, p in state.method.discriminators.named_parameters()]
    assert all(float(m) == pytest.approx(stage.method.discriminator_lr, rel=0.05) for m in moved)


def test_a_backbone_of_one_level_is_refused() -> None:
    stage = make_stage("advent")
    student = make_state(stage).method.student
    student.feature_channels = student.feature_channels[-1:]
    with pytest.raises(ValueError, match="backbone has one alone"):
        stage.method.build(student, seed=SEED)
