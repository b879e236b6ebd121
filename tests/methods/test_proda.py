"""ProDA: what each phase learns from, and what moves beside the student."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from toy import SEED, changed, collect, make_batches, make_stage, make_state, snapshot

from udaseg.data.confidence import distribution_size
from udaseg.recipes import RECIPES
from udaseg.training.step import train_step
from udaseg.types import Batch

DENOISE = make_stage("proda")


def test_the_discriminator_learns_after_the_student_and_only_then() -> None:
    stage = make_stage("proda_warm_up")
    state, batches = make_state(stage), make_batches(stage)
    deceive, tell = state.method.losses(batches, 0, 10)
    judge = list(state.method.discriminator.parameters())  # type: ignore[union-attr]
    deceive[1].value.backward()
    assert all(p.grad is None for p in judge) and any(p.grad is not None for p in state.method.student.parameters())
    state.method.student.zero_grad()
    tell[0].value.backward()
    assert all(p.grad is not None for p in judge) and all(p.grad is None for p in state.method.student.parameters())
    student, own = (optimizer.param_groups[0] for optimizer in state.optimizers)
    train_step(state, batches, stage, seed=SEED)
    assert own["lr"] / own["base_lr"] == student["lr"] / student["base_lr"] and own["base_lr"] == 1e-4


def test_prototypes_fill_before_labels_are_denoised() -> None:
    state = make_state(DENOISE)
    method = state.method
    assert "prototype_consistency" not in collect(state, make_batches(DENOISE))
    assert (method.prototypes.count > 0).all()
    found = [loss.name for part in method.losses(make_batches(DENOISE), 1, 10) for loss in part]
    assert found[-1] == "prototype_consistency"


def test_labels_are_the_stored_ones_until_prototypes_speak_against_them() -> None:
    """Stored probabilities that lean to class 0 everywhere; prototypes that find the teacher's own class again."""
    state, batches = make_state(DENOISE), make_batches(DENOISE)
    method, target = state.method, batches["target"]
    stored = torch.tensor([0.4, 0.2, 0.2, 0.2]).view(1, 4, 1, 1).expand(2, -1, *distribution_size(64, 64))
    leaning = batches | {"target": replace(target, distribution=stored)}

    def ce(step: int, sharpness: float) -> float:
        method.config = replace(method.config, temperature=1 / sharpness)
        losses = {loss.name: loss for part in method.losses(leaning, step, 10) for loss in part}
        return float(losses["target_ce"].value.detach())

    method.eval()
    logits = method.student(target.image, "target", target.index).logits[:, 0]
    first = ce(0, 1.0)
    assert first == pytest.approx(ce(1, 1e-6), rel=1e-4), "all prototypes are as near: the stored class stays"
    assert abs(first - ce(1, 1e4)) > 1e-3, "the nearest prototype is all that counts"
    assert logits.isfinite().all()


def test_nothing_is_asked_of_pixels_that_no_one_knows() -> None:
    state, batches = make_state(DENOISE), make_batches(DENOISE)
    nothing = torch.zeros_like(batches["target"].distributions)
    losses = collect(state, batches | {"target": replace(batches["target"], distribution=nothing)})
    assert losses["target_ce"].value.item() == losses["target_rce"].value.item() == 0


def test_the_teacher_begins_as_the_student_and_follows_slowly() -> None:
    state = make_state(DENOISE)
    start = snapshot(state.method.student)
    train_step(state, make_batches(DENOISE), DENOISE, seed=SEED)
    for name, now in state.method.student.named_parameters():
        teacher = state.method.teacher.network.get_parameter(name)  # type: ignore[union-attr]
        torch.testing.assert_close(teacher, 0.9 * start[name] + 0.1 * now, rtol=1e-4, atol=1e-6)


def test_distillation_reads_sure_labels_and_all_probabilities() -> None:
    stage = make_stage("proda_distil")
    state, batches = make_state(stage), make_batches(stage)
    losses = collect(state, batches)
    assert 0 < float(losses["coverage"].value) < 1 and float(losses["distillation"].value.detach()) > -1
    before = snapshot(state.method)
    train_step(state, batches, stage, seed=SEED)
    assert not [name for name in changed(before, state.method) if not name.startswith("student.")]


def test_a_stream_without_distributions_says_what_is_missing() -> None:
    target = Batch(image=torch.zeros(1, 3, 8, 8), index=torch.arange(1), stream="target")
    with pytest.raises(ValueError, match=r'data\.target\.labels "distribution"'):
        _ = target.distributions


def test_the_published_recipes_differ_in_the_regulariser() -> None:
    gta, synthia = (RECIPES[name]().stages for name in ("proda", "proda_synthia"))
    assert [stage.name for stage in gta] == ["warm-up", "denoise", "distil-1", "distil-2"]
    assert (gta[1].method.uniform_weight, synthia[1].method.uniform_weight) == (0.1, 0.0)
    for stage in (*gta, *synthia):
        stage.check()
