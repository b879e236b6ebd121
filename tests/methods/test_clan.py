"""CLAN: two heads that answer together, and weights that begin late and fade."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from toy import CLASSES, SEED, make_batches, make_stage, make_state

from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.data.classes import Classes
from udaseg.models.heads import HeadPair
from udaseg.training.step import train_step


def test_the_adversarial_terms_fade_in_a_straight_line() -> None:
    stage = make_stage("clan")
    state, batches = make_state(stage), make_batches(stage)
    for step in (0, 25, 99):
        found = {loss.name: loss for losses in state.method.losses(batches, step, 100) for loss in losses}
        assert found["adversarial"].weight == pytest.approx(0.1 * (1 - step / 100))
        assert found["weight_discrepancy"].weight == pytest.approx(0.02 * (1 - step / 100))
        assert found["first_ce"].weight == found["discriminator_target"].weight == 1


def test_disagreement_weighs_once_the_preheat_is_over() -> None:
    stage = make_stage("clan")
    stage = replace(stage, method=replace(stage.method, preheat_steps=3, local_weight=0.0, epsilon=0.25))
    state, batches = make_state(stage), make_batches(stage)
    state.method.eval()
    costs = []
    for step in (3, 4):
        found = {loss.name: loss for losses in state.method.losses(batches, step, 100) for loss in losses}
        costs.append(
            [found[f"{n}"].value.item() for n in ("adversarial", "discriminator_target", "discriminator_source")]
        )
    plain, weighted = costs
    assert weighted == pytest.approx([0.25 * plain[0], 0.25 * plain[1], plain[2]])


def test_a_network_of_one_head_is_refused() -> None:
    stage = make_stage("clan")
    for model in (replace(stage.model, head_pair=False), replace(stage.model, projection=8)):
        with pytest.raises(ValueError, match=r"model\.head_pair"):
            make_state(replace(stage, model=model))


def test_heads_become_unlike() -> None:
    stage = make_stage("clan", lr=2e-2)
    stage = replace(stage, method=replace(stage.method, discrepancy_weight=5.0))
    state, batches = make_state(stage), make_batches(stage)
    logs = [train_step(state, batches, stage, seed=SEED) for _ in range(6)]
    assert logs[-1]["weight_discrepancy"] < logs[0]["weight_discrepancy"] - 0.05


def test_the_predictor_is_rebuilt_from_its_card_and_answers_by_the_sum(tmp_path: Path) -> None:
    stage = make_stage("clan")
    network = make_state(stage).method.predictor.eval()
    classes = Classes(names=tuple("abcd"), palette=((0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, 0)))
    card = ModelCard(model=stage.model, classes=classes, short_side=64, recipe="clan", stage="clan", step=1)
    save_model(tmp_path / "model", network, card)
    loaded, _ = load_model(str(tmp_path / "model"))
    assert isinstance(loaded.net.head, HeadPair)
    image = make_batches(stage)["target"].image
    with torch.no_grad():
        out = loaded(image, "target")
        torch.testing.assert_close(out.logits, network(image, "target").logits)
        first, second = out.embedding.split(CLASSES, 1)
        torch.testing.assert_close(out.aux["coarse_logits"], first + second)
        levels = loaded.levels(image, "target")
        torch.testing.assert_close(first, loaded.net.head.first(levels)[0])
