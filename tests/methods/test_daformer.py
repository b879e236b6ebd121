"""DAFormer: features of things are held near the network that the stage began with, which never moves."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import SEED, changed, collect, collect_frozen, make_batches, make_stage, make_state, snapshot

from udaseg.training.step import train_step


def test_the_distance_is_from_where_the_stage_began() -> None:
    stage = make_stage("daformer")
    state, batches = make_state(stage), make_batches(stage)
    beginning = snapshot(state.method.beginning)
    assert collect_frozen(state, batches)["feature_distance"].value.item() == pytest.approx(0, abs=1e-6)
    for step in range(2):
        train_step(state, make_batches(stage, step), stage, seed=SEED)
    moved = collect_frozen(state, batches)["feature_distance"]
    assert moved.value.item() > 1e-3 and moved.weight == 0.1
    assert not changed(beginning, state.method.beginning)


def test_without_a_distance_no_second_network_is_kept() -> None:
    stage = make_stage("daformer")
    stage = replace(stage, method=replace(stage.method, feature_weight=0.0))
    state = make_state(stage)
    assert state.method.beginning is None and not any("beginning" in name for name in state.method.state_dict())
    assert "feature_distance" not in collect(state, make_batches(stage))


def test_things_must_be_classes() -> None:
    stage = make_stage("daformer")
    with pytest.raises(ValueError, match=r"method\.things \(1, 4\) names classes beyond 0 \.\.\. 3"):
        make_state(replace(stage, method=replace(stage.method, things=(1, 4))))


def test_rows_at_the_border_weigh_nothing_in_the_mixture() -> None:
    """With every row of the target ignored, what the teacher calls them cannot matter."""
    stage = make_stage("daformer")
    stage = replace(stage, method=replace(stage.method, ignore_top=64))
    state, batches = make_state(stage), make_batches(stage)
    first = collect(state, batches)["mixed_ce"].value.item()
    with torch.no_grad():
        for parameter in state.method.teacher.network.net.head.parameters():
            parameter.neg_()
    assert collect(state, batches)["mixed_ce"].value.item() == first > 0


def test_the_student_is_evaluated_on_request() -> None:
    stage = make_stage("daformer")
    assert make_state(stage).method.predictor is not make_state(stage).method.student
    student = make_state(replace(stage, method=replace(stage.method, evaluate="student"))).method
    assert student.predictor is student.student


def test_the_teacher_moves_before_or_after_the_losses() -> None:
    stage = make_stage("daformer")
    state = make_state(replace(stage, method=replace(stage.method, teacher_moves="before")))
    train_step(state, make_batches(stage, 0), stage, seed=SEED)
    first = snapshot(state.method.student)
    for _ in state.method.losses(make_batches(stage, 1), 1, 40):
        break  # the teacher moves before the first term
    teacher, start = state.method.teacher.network, snapshot(make_state(stage).method.student)
    for name, parameter in teacher.named_parameters():
        torch.testing.assert_close(parameter, 0.5 * (start[name] + first[name]), msg=name)
