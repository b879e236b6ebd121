"""Contrast of pairs that weigh what is known of both, against a loop written from the equation."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal

from udaseg.losses.weighted_contrast import weighted_contrast
from udaseg.types import IGNORE


@pytest.mark.parametrize("released", [False, True])
def test_weighted_contrast_is_the_loop_over_pairs_of_a_group(released: bool) -> None:
    anchor, key = normal(2, 7, 4).requires_grad_(), normal(2, 9, 4, seed=1)
    y, key_y = labels(2, 7, classes=3), labels(2, 9, classes=3, seed=1)
    u, v = normal(2, 7, 2, seed=2).abs(), normal(2, 9, 2, seed=3).abs()
    each = []
    for g in range(2):
        s = F.normalize(anchor[g], dim=1) @ F.normalize(key[g], dim=1).T / 0.5
        for i in range(7):
            real = [j for j in range(9) if key_y[g, j] != IGNORE]
            positives = [j for j in real if key_y[g, j] == y[g, i] and j != i]
            if y[g, i] == IGNORE or not positives:
                continue
            negative = sum(s[g_i].exp() for g_i in [(i, n) for n in real if key_y[g, n] != y[g, i]])
            top = s[i].detach().max() if released else 0
            terms = [
                u[g, i] @ v[g, j] * ((s[i, j] - top) - ((s[i, j] - top).exp() + negative).log()) for j in positives
            ]
            each.append(-sum(terms) / len(positives))
    expected = torch.stack(each).mean()
    (wanted,) = torch.autograd.grad(expected, anchor)
    loss = weighted_contrast(anchor, y, u, key, key_y, v, temperature=0.5, unshifted_negatives=released, rows=3)
    (gradient,) = torch.autograd.grad(loss, anchor)
    assert len(each) > 8 and loss.item() == pytest.approx(expected.item(), rel=1e-9)
    torch.testing.assert_close(gradient, wanted)
    nothing = torch.full_like(y, IGNORE)
    assert weighted_contrast(anchor, nothing, u, key, key_y, v, temperature=0.5).item() == 0


def test_the_released_form_is_finite_at_any_temperature() -> None:
    """What it takes the largest similarity off is in the range of no power then."""
    anchor, y, one = normal(1, 6, 4).requires_grad_(), torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.ones(1, 6, 1)
    both = (anchor, y, one.double()) * 2
    for temperature in (0.011, 0.001):
        loss = weighted_contrast(*both, temperature=temperature, unshifted_negatives=True)
        (gradient,) = torch.autograd.grad(loss, anchor)
        assert loss.item() > 1 and gradient.isfinite().all() and gradient.any()
    nothing = torch.full_like(y, IGNORE)
    ignored = (anchor, nothing, one.double()) * 2
    loss = weighted_contrast(*ignored, temperature=0.001, unshifted_negatives=True)
    assert loss.item() == 0 and not torch.autograd.grad(loss, anchor)[0].any()
