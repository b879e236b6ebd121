"""CLUDA: contrast at one resolution or two, and the pixels that it leaves out."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import collect, make_batches, make_stage, make_state

from udaseg.types import IGNORE


def test_cluda_s_contrast_of_two_resolutions_waits_for_a_detail_crop() -> None:
    found = {name: collect(make_state(make_stage(name)), make_batches(make_stage(name))) for name in ("cluda", "mic")}
    assert {"source_contrast", "mixed_contrast"} <= found["cluda"].keys()
    assert not {"source_contrast", "mixed_contrast"} & found["mic"].keys()
    assert "masked_ce" in found["mic"] and "masked_ce" not in found["cluda"]
    stage = make_stage("cluda")
    state, batches = make_state(stage), make_batches(stage)
    state.method.train()
    value = next(iter(state.method.losses(batches, 0, 10)))[1].value
    with torch.no_grad():
        state.method.attention.classify.bias.add_(3)
    assert torch.equal(next(iter(state.method.losses(batches, 0, 10)))[1].value, value), "one resolution: no attention"
    stage = make_stage("cluda_hrda")
    state = make_state(stage)
    state.method.eval()
    values = []
    for shift in (0, 3):
        with torch.no_grad():
            state.method.attention.classify.bias.add_(shift)
        values.append(next(iter(state.method.losses(batches, 0, 10)))[1].value.item())
    assert values[0] != values[1]


def test_cluda_leaves_ignored_pixels_out_unless_as_released() -> None:
    for name, same in (("cluda_hrda", True), ("cluda_released_hrda", False)):
        state = make_state(make_stage(name))
        out = state.method.student(torch.rand(2, 3, 64, 64), "source", torch.arange(2))
        label = torch.zeros(2, 64, 64, dtype=torch.int64)
        label[:, :, 32:] = 1
        label[:, :20] = IGNORE
        noise = out.embedding.clone()
        noise[:, :, :2] = torch.rand_like(noise[:, :, :2])  # context cells of 8 pixels, all of them ignored
        values = [state.method._contrast(replace(out, embedding=e), label).item() for e in (out.embedding, noise)]
        assert (values[0] == pytest.approx(values[1], rel=1e-6)) == same


@pytest.mark.parametrize("name", ["cluda", "cluda_hrda"])
def test_a_mixture_s_pixels_of_no_weight_are_contrasted_with_nothing(name: str) -> None:
    state = make_state(make_stage(name))
    out = state.method.student(torch.rand(2, 3, 64, 64), "source", torch.arange(2))
    label = torch.zeros(2, 64, 64, dtype=torch.int64)
    label[:, :, 32:] = 1
    values = [state.method._contrast(out, label, torch.full((2, 64, 64), w)).item() for w in (1.0, 0.5, 0.0)]
    assert values[0] == pytest.approx(4 * values[1], rel=1e-5) and values[0] > values[2] == 0
