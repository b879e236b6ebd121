"""Distillation against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from draws import normal

from udaseg.losses.distillation import as_before, distillation, unbiased_distillation


@pytest.mark.parametrize("form", ["kl", "released"])
def test_distillation_is_the_loop_over_pixels(form: str) -> None:
    student, teacher = normal(2, 3, 2, 2).requires_grad_(), normal(2, 3, 2, 2, seed=1).softmax(1)
    teacher[1, :, 0, 0] = torch.tensor([0.0, 1.0, 0.0])
    seen = torch.tensor([[[True, False], [True, True]], [[True, False], [False, True]]])
    total, pixels = student.sum() * 0, seen.nonzero().tolist()
    for b, i, j in pixels:
        own = student[b, :, i, j].softmax(0)
        for k in range(3):
            t = float(teacher[b, k, i, j])
            total = total + (t * math.log(t) if t else 0) - t * (own[k] if form == "released" else own[k].log())
    expected = total / (len(pixels) * (3 if form == "released" else 1))
    (wanted,) = torch.autograd.grad(expected, student)
    found = distillation(student, teacher, seen, form=form)  # type: ignore[arg-type]
    (gradient,) = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, wanted)


def test_only_the_divergence_is_least_where_the_student_agrees() -> None:
    teacher, seen = torch.tensor([0.6, 0.3, 0.1]).view(1, 3, 1, 1), torch.ones(1, 1, 1, dtype=torch.bool)
    same, sharper = teacher.log(), (4 * teacher.log())
    assert distillation(same, teacher, seen).item() == pytest.approx(0, abs=1e-7)
    assert distillation(sharper, teacher, seen) > 0.1
    assert distillation(sharper, teacher, seen, form="released") < distillation(same, teacher, seen, form="released")
    assert distillation(same, teacher, ~seen).item() == 0


@pytest.mark.parametrize("background", [0, 2])
def test_unbiased_distillation_is_the_loop_over_pixels(background: int) -> None:
    logits, old = normal(2, 5, 2, 2).requires_grad_(), normal(2, 3, 2, 2, seed=1)
    total = logits.sum() * 0
    for b in range(2):
        for i in range(2):
            for j in range(2):
                own, before = logits[b, :, i, j].softmax(0), old[b, :, i, j].softmax(0)
                for c in range(3):
                    share = own[c] + own[3] + own[4] if c == background else own[c]
                    total = total - before[c] * share.log() / 3
    expected = total / 8
    (wanted,) = torch.autograd.grad(expected, logits)
    found = unbiased_distillation(logits, old, background=background)
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, wanted)


def test_before_new_classes_were_learned_they_were_background() -> None:
    probability = as_before(normal(2, 5, 3), 3, 1).softmax(1)
    after = normal(2, 5, 3).softmax(1)
    torch.testing.assert_close(probability[:, 1], after[:, 1] + after[:, 3] + after[:, 4])
    torch.testing.assert_close(probability[:, [0, 2]], after[:, [0, 2]])
