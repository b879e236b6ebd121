"""Losses of discriminators, and the maps that they are shown, against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
from draws import normal

from udaseg.losses.adversarial import (
    binary_cross_entropy,
    disagreement,
    least_squares,
    self_information,
    weight_discrepancy,
)


def test_a_verdict_costs_minus_the_logarithm_of_its_label() -> None:
    verdict, weight = normal(2, 1, 2, 3).requires_grad_(), normal(2, 1, 2, 3, seed=1).abs()
    expected = {"source": 0.0, "target": 0.0}
    slope = {domain: torch.zeros(12) for domain in expected}
    for i, (x, w) in enumerate(zip(verdict.flatten().tolist(), weight.flatten().tolist(), strict=True)):
        target = 1 / (1 + math.exp(-x))
        expected["source"] -= w * math.log(1 - target) / 12
        expected["target"] -= w * math.log(target) / 12
        slope["source"][i], slope["target"][i] = w * target / 12, -w * (1 - target) / 12
    for domain in ("source", "target"):
        loss = binary_cross_entropy(verdict, domain, weight)
        (gradient,) = torch.autograd.grad(loss, verdict)
        assert loss.item() == pytest.approx(expected[domain], rel=1e-9)
        torch.testing.assert_close(gradient.flatten().float(), slope[domain])
    plain, ones = binary_cross_entropy(verdict, "target"), torch.ones_like(verdict)
    assert plain.item() == pytest.approx(binary_cross_entropy(verdict, "target", ones).item(), rel=1e-12)


def test_a_verdict_far_on_the_wrong_side_has_a_finite_cost() -> None:
    verdict = torch.tensor([[[[-300.0, 300.0]]]], requires_grad=True)
    loss = binary_cross_entropy(verdict, "target")
    loss.backward()
    assert loss.item() == pytest.approx(150) and verdict.grad is not None
    assert verdict.grad.flatten().tolist() == pytest.approx([-0.5, 0])


def test_least_squares_pull_to_the_label() -> None:
    verdict = normal(2, 1, 2, 3)
    for domain, label in (("source", 0), ("target", 1)):
        expected = sum((x - label) ** 2 for x in verdict.flatten().tolist()) / 12
        assert float(least_squares(verdict, domain)) == pytest.approx(expected, rel=1e-9)  # type: ignore[arg-type]


def test_self_information_is_each_class_s_part_of_the_entropy() -> None:
    logits = (3 * normal(2, 5, 2, 3)).requires_grad_()
    found = self_information(logits)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                z = [math.exp(v) for v in logits[b, :, y, x].tolist()]
                p = [v / sum(z) for v in z]
                assert found[b, :, y, x].tolist() == pytest.approx([-q * math.log2(q) / math.log2(5) for q in p])
    uniform, sure = self_information(torch.zeros(1, 4, 1, 1)), self_information(torch.tensor([[[[900.0]], [[0.0]]]]))
    assert float(uniform.sum()) == pytest.approx(1)
    assert sure.sum() == 0


def test_disagreement_is_one_less_the_cosine_of_probabilities() -> None:
    first, second = 2 * normal(2, 4, 2, 3), 2 * normal(2, 4, 2, 3, seed=1)
    found = disagreement(first, second)
    assert found.shape == (2, 1, 2, 3)
    for b in range(2):
        for y in range(2):
            for x in range(3):
                p, q = ([math.exp(v) for v in z[b, :, y, x].tolist()] for z in (first, second))
                cosine = sum(a * c for a, c in zip(p, q, strict=True)) / (math.hypot(*p) * math.hypot(*q))
                assert float(found[b, 0, y, x]) == pytest.approx(1 - cosine, rel=1e-9)
    assert disagreement(first, first).abs().max() < 1e-12


def test_disagreement_with_oneself_is_not_below_zero() -> None:
    logits = 3 * normal(4, 7, 30, 30).float()
    found = disagreement(logits, logits)
    assert found.min() >= 0 and found.max() < 1e-6


def test_classifiers_that_are_equal_differ_least() -> None:
    first, second = normal(7).requires_grad_(), normal(7, seed=1)
    dot = sum(a * b for a, b in zip(first.tolist(), second.tolist(), strict=True))
    expected = 1 + dot / (math.hypot(*first.tolist()) * math.hypot(*second.tolist()))
    loss = weight_discrepancy(first, second)
    assert loss.item() == pytest.approx(expected, rel=1e-9)
    assert weight_discrepancy(first, 3 * first).item() == pytest.approx(2)
    assert weight_discrepancy(first, -first).item() == pytest.approx(0, abs=1e-9)
    (gradient,) = torch.autograd.grad(loss, first)
    assert weight_discrepancy(first - 0.1 * gradient, second).item() < loss.item()
