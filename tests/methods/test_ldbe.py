"""LDBE: its phases, the place that is drawn, the group it pastes in."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import losses_where_all_is_known, make_batches, make_stage, make_state

from udaseg.methods import ldbe as ldbe_module
from udaseg.methods.ldbe import LDBE, drawn_place


def test_ldbe_pastes_within_its_group_and_weighs_each_image_by_what_is_sure() -> None:
    """From the box: the student sees image i over image i + 1 of the group, and the loss is of those labels."""
    stage = make_stage("ldbe_enhancement")
    state, batch = make_state(stage), make_batches(stage, size=4)["target"]
    seen: list[Tensor] = []
    state.method.train()
    state.method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    (losses,) = state.method.losses({"target": batch}, 0, 10)
    mask = torch.stack([(seen[0][i] == batch.image[i]).all(0) for i in range(4)])
    for i, following in enumerate((1, 0, 3, 2)):
        assert torch.equal(seen[0][i][:, ~mask[i]], batch.image[following][:, ~mask[i]])
        assert 0 < mask[i].float().mean() < 1
    assert 0 < float(losses[1].value) < 1


def test_ldbe_draws_the_place_by_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = make_stage("ldbe_denoising")
    state, batches = make_state(stage), make_batches(stage)
    draws: list[list[int]] = []

    def drawn(classes: int, spread: int, rng: np.random.Generator) -> int:
        draws.append(rng.integers(0, 100, 3).tolist())
        return 2

    monkeypatch.setattr(ldbe_module, "drawn_place", drawn)
    for step in (0, 0, 1):
        list(state.method.losses(batches, step, 10))
    assert draws[0] == draws[1] != draws[2]


@pytest.mark.parametrize(
    ("classes", "least", "most"), [(2, 2, 2), (4, 2, 2), (7, 2, 4), (8, 2, 6), (10, 2, 8), (19, 6, 12)]
)
def test_no_pixel_is_taught_not_to_be_of_its_most_probable_class(classes: int, least: int, most: int) -> None:
    rng = np.random.default_rng(0)
    places = {drawn_place(classes, 3, rng) for _ in range(300)}
    assert places == set(range(least, most + 1))


def test_ldbe_needs_a_group_to_paste_in() -> None:
    with pytest.raises(ValueError, match="group_size"):
        make_state(replace(make_stage("ldbe_denoising"), method=LDBE.Config(phase="boundary_enhancement")))


def test_soft_labels_decide_how_sure_ldbe_is_of_an_image() -> None:
    half = torch.zeros(2, 64, 64)
    half[:, :32] = 1
    found = [losses_where_all_is_known("ldbe_enhancement", w)["coverage"].value.item() for w in (None, half)]
    assert found == [1.0, 0.5]
