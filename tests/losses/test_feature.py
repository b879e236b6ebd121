"""Losses on features against loops written from the equations."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from draws import normal

from udaseg.losses.feature import mmd, upsampled_mean


def test_mmd_is_the_loop_over_pairs() -> None:
    source, target = normal(3, 5), normal(3, 5, seed=1) + 1
    z = torch.cat([source, target])
    d = [[float((z[i] - z[j]).square().sum()) for j in range(6)] for i in range(6)]
    width = sum(map(sum, d)) / 30 / 4
    k = [[sum(math.exp(-d[i][j] / (width * 2**n)) for n in range(5)) for j in range(6)] for i in range(6)]
    expected = sum(k[i][j] * (1 if (i < 3) == (j < 3) else -1) for i in range(6) for j in range(6)) / 9
    assert mmd(source, target).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_of_equal_sets_is_zero_and_grows_with_the_distance() -> None:
    x = normal(4, 6).requires_grad_()
    assert mmd(x, x.detach()).item() == pytest.approx(0, abs=1e-12)
    values = [mmd(x, x.detach() + shift).item() for shift in (0.1, 1.0, 10.0)]
    assert values == sorted(values)
    same = torch.ones(2, 3, requires_grad=True)
    (1000 * mmd(same, same.detach())).backward()
    assert same.grad is not None and not same.grad.any()


def test_upsampled_mean_is_that_of_the_upsampled_features() -> None:
    feature, mask = normal(2, 3, 4, 5).requires_grad_(), normal(2, 17, 23, seed=1).abs()
    up = F.interpolate(feature, size=(17, 23), mode="bilinear", align_corners=True)
    expected = (up * mask[:, None]).mean((2, 3))
    found = upsampled_mean(feature, mask)
    assert torch.allclose(found, expected, rtol=1e-9)
    (mine,) = torch.autograd.grad(found.square().sum(), feature)
    (theirs,) = torch.autograd.grad(expected.square().sum(), feature)
    assert torch.allclose(mine, theirs, rtol=1e-9)
