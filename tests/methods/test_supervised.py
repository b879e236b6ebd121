"""Source-only and the oracle: one stream's labels, and nothing of the other stream."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import collect_frozen, make_batches, make_stage, make_state

from udaseg.losses.segmentation import cross_entropy, lovasz_softmax


@pytest.mark.parametrize(
    ("name", "stream", "other"), [("supervised", "source", "target"), ("oracle", "target", "source")]
)
def test_it_is_the_cross_entropy_of_its_stream_alone(name: str, stream: str, other: str) -> None:
    stage = make_stage(name)
    state, batches = make_state(stage), make_batches(stage)
    batches[other] = replace(batches[other], image=torch.full_like(batches[other].image, torch.nan), label=None)
    (loss,) = collect_frozen(state, batches).values()
    own = batches[stream]
    expected = cross_entropy(state.method.student(own.image, stream, own.index).logits, own.labels)
    assert loss.name == "ce" and loss.weight == 1
    torch.testing.assert_close(loss.value, expected)


def test_lovasz_softmax_comes_on_request() -> None:
    stage = make_stage("supervised")
    stage = replace(stage, method=replace(stage.method, lovasz_weight=0.75))
    state, batches = make_state(stage), make_batches(stage)
    losses = collect_frozen(state, batches)
    logits = state.method.student(batches["source"].image).logits
    torch.testing.assert_close(losses["lovasz"].value, lovasz_softmax(logits, batches["source"].labels))
    assert losses["lovasz"].weight == 0.75 and losses["ce"].weight == 1


def test_logits_are_divided_on_request() -> None:
    stage = make_stage("supervised")
    stage = replace(stage, method=replace(stage.method, ce_temperature=1.8))
    state, batches = make_state(stage), make_batches(stage)
    found = collect_frozen(state, batches)["ce"].value
    logits = state.method.student(batches["source"].image).logits
    torch.testing.assert_close(found, cross_entropy(logits / 1.8, batches["source"].labels))
