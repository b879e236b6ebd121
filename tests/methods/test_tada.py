"""TADA: what becomes of the source's labels, and what the released code does otherwise."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from toy import CLASSES, SEED, changed, collect, collect_frozen, make_batches, make_stage, make_state, snapshot

from udaseg.training.step import RunState, train_step
from udaseg.types import IGNORE, Batch


def made(**settings: object) -> tuple[RunState, dict[str, Batch]]:
    stage = make_stage("tada")
    stage = replace(stage, method=replace(stage.method, **settings))
    return make_state(stage), make_batches(stage)


def test_the_teacher_says_which_class_a_source_pixel_is_of_from_a_step_on() -> None:
    """Ids of classes 1 and 2 become that of either, and those of class 3 unknown."""
    state, batches = made(relabel_from=1, keep=1.0)
    method, source = state.method, batches["source"]
    label = torch.where((source.labels == 1) | (source.labels == 2), CLASSES, source.labels)
    label = torch.where(source.labels == 3, IGNORE, label)
    batches["source"] = replace(source, label=label)
    method.eval().requires_grad_(False)
    logits = method.student(source.image, "source").logits
    guess = method.teacher.network(source.image, "source", detail="everywhere").logits.argmax(1)
    either, unknown = label == CLASSES, label == IGNORE

    def source_ce(step: int) -> float:
        return float(next(method.losses(batches, step, 10))[0].value)

    told = torch.where(either & ((guess == 1) | (guess == 2)) | unknown & (guess == 3), guess, label)
    both = told == CLASSES  # the teacher says neither, so that one of them is drawn
    least = logits.log_softmax(1)[:, 1:3].max(1).values
    bounds = []
    for pick in (least, logits.log_softmax(1)[:, 1:3].min(1).values):
        known = told != IGNORE
        own = logits.log_softmax(1).gather(1, told.masked_fill(~known | both, 0)[:, None])[:, 0]
        bounds.append(float(-torch.where(both, pick, own)[known].sum() / known.sum()))
    assert (unknown & (guess == 3)).any() or (either & ((guess == 1) | (guess == 2))).any()
    assert bounds[0] - 1e-5 <= source_ce(1) <= bounds[1] + 1e-5
    assert source_ce(0) != pytest.approx(source_ce(1), rel=1e-6)


def test_few_shot_images_weigh_as_the_source_and_lie_below_it() -> None:
    state, batches = made()
    plain = collect_frozen(state, batches)["mixed_ce"].value
    blind = replace(batches["fewshot"], label=torch.full_like(batches["fewshot"].labels, IGNORE))
    assert collect_frozen(state, batches | {"fewshot": blind})["mixed_ce"].value != plain
    other = replace(batches["fewshot"], image=torch.zeros_like(batches["fewshot"].image))
    assert collect_frozen(state, batches | {"fewshot": other})["mixed_ce"].value != plain
    assert torch.equal(
        collect_frozen(state, batches | {"fewshot": replace(blind, image=other.image)})["mixed_ce"].value,
        collect_frozen(state, batches | {"fewshot": blind})["mixed_ce"].value,
    )


def test_unknown_pixels_of_the_source_are_pasted_on_request_alone() -> None:
    """Of a source of which nothing is known the whole image is pasted, or nothing."""
    losses = []
    for mix_ignore in (True, False):
        state, batches = made(mix_ignore=mix_ignore, relabel_from=10)
        label = torch.full_like(batches["source"].labels, IGNORE)
        batches["source"] = replace(batches["source"], label=label)
        losses.append(float(collect_frozen(state, batches)["mixed_ce"].value.detach()))
    assert losses[0] == 0 < losses[1]


def test_looking_at_the_source_leaves_the_teacher_s_statistics_alone() -> None:
    state, batches = made()
    state.method.train()
    before = snapshot(state.method.teacher.network)
    next(state.method.losses(batches, 0, 10))
    assert not changed(before, state.method.teacher.network)


@pytest.mark.parametrize("variant", ["fixed", "released"])
def test_the_projection_learns_but_in_the_released_code(variant: str) -> None:
    state, batches = made(variant=variant)
    stage = make_stage("tada")
    before = {name: p.clone() for name, p in state.method.projection.named_parameters()}
    loss = collect(state, batches)["contrast"]
    assert loss.value > 0
    for step in range(2):
        train_step(state, make_batches(stage, step), stage, seed=SEED)
    moved = any(not torch.equal(p, before[name]) for name, p in state.method.projection.named_parameters())
    assert moved == (variant == "fixed")


def test_a_projection_has_unit_vectors() -> None:
    state, _ = made()
    found = state.method.projection(torch.rand(2, state.method.student.feature_channels[-1], 3, 4))
    torch.testing.assert_close(found, F.normalize(found, dim=1))
    assert found.shape == (2, 8, 3, 4)


def test_a_source_that_does_not_say_what_pixels_may_be_is_refused_by_name() -> None:
    state, batches = made()
    plain = replace(batches["source"], candidate=None)
    with pytest.raises(ValueError, match=r"stream 'source'.*data\.source\.labels \"candidates\""):
        collect(state, batches | {"source": plain})
