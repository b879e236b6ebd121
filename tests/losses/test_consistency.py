"""Consistency losses against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from draws import labels, normal

from udaseg.losses.consistency import assignment_consistency, relation_consistency, significant_cross_entropy
from udaseg.losses.segmentation import Reduction
from udaseg.types import IGNORE, SegOutput


def test_relations_are_the_cosines_of_all_pairs() -> None:
    student, teacher = normal(2, 4, 5).requires_grad_(), normal(2, 4, 5, seed=1)

    def cosine(x: torch.Tensor, b: int, i: int, j: int) -> torch.Tensor:
        return (x[b, :, i] @ x[b, :, j]) / (x[b, :, i].norm() * x[b, :, j].norm())

    pairs = [(b, i, j) for b in range(2) for i in range(5) for j in range(5)]
    expected = torch.stack([(cosine(student, *pair) - cosine(teacher, *pair)) ** 2 for pair in pairs]).mean()
    (wanted,) = torch.autograd.grad(expected, student)
    found = relation_consistency(student, teacher)
    (gradient,) = torch.autograd.grad(found, student)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, wanted)


def test_relations_do_not_ask_for_the_length_of_logits() -> None:
    student = normal(2, 4, 5)
    assert relation_consistency(3 * student, student).item() == pytest.approx(0, abs=1e-12)
    assert relation_consistency(student, normal(2, 4, 5, seed=1).requires_grad_()).requires_grad is False


def test_assignments_are_compared_where_both_views_show_the_pixel() -> None:
    logits, teacher = normal(2, 3, 2, 2).requires_grad_(), normal(2, 3, 2, 2, seed=1).softmax(1)
    teacher[0, :, 0, 0] = torch.tensor([1.0, 0.0, 0.0])  # 0 log 0 = 0
    seen = torch.tensor([[[True, False], [True, True]], [[False, False], [True, False]]])
    total = logits.sum() * 0
    for b, i, j in seen.nonzero().tolist():
        own = logits[b, :, i, j].softmax(0)
        for k in range(3):
            t = float(teacher[b, k, i, j])
            total = total + (t * (math.log(t) - own[k].log()) if t else 0)
    expected = total / (int(seen.sum()) * 3)
    (wanted,) = torch.autograd.grad(expected, logits)
    found = assignment_consistency(logits, teacher, seen)
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, wanted)


def test_nothing_seen_is_nothing_to_learn() -> None:
    logits = normal(1, 3, 2, 2).requires_grad_()
    loss = assignment_consistency(logits, logits.detach().flip(1).softmax(1), torch.zeros(1, 2, 2, dtype=torch.bool))
    loss.backward()
    assert loss.item() == 0 and logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("reduction", ["all", "valid", "nonzero"])
def test_only_significant_pixels_are_learned_from(reduction: Reduction) -> None:
    logits, label = normal(2, 3, 4, 5).requires_grad_(), labels(2, 4, 5, classes=3)
    weight, significance = normal(2, 4, 5, seed=1).abs(), normal(2, 4, 5, seed=2).sigmoid()
    significance[:, :2] = 0
    total = parts = 0.0
    for b in range(2):
        for i in range(4):
            for j in range(5):
                known = int(label[b, i, j]) != IGNORE
                parts += float(significance[b, i, j]) if known or reduction == "all" else 0
                if known:
                    z = logits[b, :, i, j].tolist()
                    loss = math.log(sum(map(math.exp, z))) - z[int(label[b, i, j])]
                    total += float(significance[b, i, j] * weight[b, i, j]) * loss
    out = SegOutput(logits=logits, embedding=logits)
    value = significant_cross_entropy(out, label, weight, significance, reduction=reduction)
    value.backward()
    assert value.item() == pytest.approx(total / parts, rel=1e-9)
    assert logits.grad is not None and not logits.grad[:, :, :2].any() and logits.grad[:, :, 2:].any()
    nothing = significant_cross_entropy(SegOutput(logits=logits, embedding=logits), label, weight, 0 * significance)
    assert nothing.item() == 0


@pytest.mark.parametrize("reduction", ["all", "valid", "nonzero"])
@pytest.mark.parametrize("significant", ["left", "right"])
def test_the_mean_over_significant_pixels_of_a_detail_crop_is_of_the_crop(
    significant: str, reduction: Reduction
) -> None:
    """Each pixel of the whole loses ln 4, of the crop, which is the left upper quarter, less."""
    logits, label = torch.zeros(1, 4, 8, 8), torch.zeros(1, 8, 8, dtype=torch.int64)
    significance = torch.zeros(1, 8, 8)
    significance[:, :, slice(0, 4) if significant == "left" else slice(4, 8)] = 1
    detail = torch.zeros(1, 4, 4, 4)
    detail[:, 0] = 1.0
    aux = {"detail_logits": detail, "detail_at": torch.tensor([[0, 0]])}
    out = SegOutput(logits=logits, embedding=logits, aux=aux)
    found = significant_cross_entropy(out, label, torch.ones(1, 8, 8), significance, reduction=reduction)
    of_crop = math.log(math.e + 3) - 1 if significant == "left" else 0
    assert found.item() == pytest.approx(0.9 * math.log(4) + 0.1 * of_crop, rel=1e-6)
