"""The multi-modal metric's losses and the alignment of modes against loops written from the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal
from torch import Tensor

from udaseg.losses.metric import mode_alignment, multimodal_loss
from udaseg.types import IGNORE

CLASSES, MODES, CHANNELS = 3, 2, 4


def _cosines(feature: Tensor, proxies: Tensor) -> Tensor:
    return torch.einsum("kma,bahw->bkmhw", F.normalize(proxies, dim=2), F.normalize(feature, dim=1))


def test_the_nearest_mode_of_each_class_tells_by_distance_and_margin() -> None:
    feature, proxies = normal(2, CHANNELS, 3, 4).requires_grad_(), normal(CLASSES, MODES, CHANNELS, seed=1)
    label = labels(2, 3, 4, classes=CLASSES)
    ce, hinge = [], []
    for b, i, j in np.ndindex(2, 3, 4):
        y = int(label[b, i, j])
        if y == IGNORE:
            continue
        unit = feature[b, :, i, j] / feature[b, :, i, j].norm()
        distance = [
            torch.stack([(unit - proxies[k, m] / proxies[k, m].norm()).norm() for m in range(MODES)]).min()
            for k in range(CLASSES)
        ]
        power = [torch.exp(-(d**2) / (2 * 0.6**2)) for d in distance]
        ce.append(-torch.log(power[y] / sum(power)))
        hinge.append(torch.relu(distance[y] - min(d for k, d in enumerate(distance) if k != y) + 0.3))
    assert any(h > 0 for h in hinge) and any(h == 0 for h in hinge)
    found = multimodal_loss(_cosines(feature, proxies), label, sigma=0.6, margin=0.3)
    for value, each in zip(found, (ce, hinge), strict=True):
        expected = sum(each) / len(each)
        assert value.item() == pytest.approx(expected.item(), rel=1e-9)
        mine, loop = (torch.autograd.grad(v, feature, retain_graph=True)[0] for v in (value, expected))
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, loop, rtol=1e-6, atol=1e-10)


def test_without_labels_and_on_a_mode_gradients_are_finite() -> None:
    feature = normal(1, CHANNELS, 1, 2).requires_grad_()
    proxies = torch.stack([feature.detach()[0, :, 0, 0], normal(CHANNELS)])[:, None]
    for label in (torch.tensor([[[0, 1]]]), torch.full((1, 1, 2), IGNORE)):
        values = multimodal_loss(_cosines(feature, proxies), label, sigma=0.5, margin=1.0)
        (gradient,) = torch.autograd.grad(sum(values), feature)
        assert gradient.isfinite().all()
        assert all(math.isfinite(v.item()) for v in values)
    assert [v.item() for v in values] == [0, 0] and not gradient.any()


def test_means_of_cells_of_one_mode_are_brought_together_pair_by_pair() -> None:
    source, target = normal(2, CHANNELS, 3, 4).requires_grad_(), normal(2, CHANNELS, 3, 4, seed=1).requires_grad_()
    rng = np.random.default_rng(0)
    source_mode, target_mode = (torch.from_numpy(rng.integers(0, 7, (2, 3, 4))) for _ in range(2))  # 6 = none
    source_mode[1][source_mode[1] < 3] = 6
    squares = []
    for b, mode in np.ndindex(2, 6):
        mine, theirs = source[b][:, source_mode[b] == mode], target[b][:, target_mode[b] == mode]
        if mine.shape[1] and theirs.shape[1]:
            squares.append((mine.mean(1) - theirs.mean(1)).square().sum())
    assert 0 < len(squares) < 12
    expected = sum(squares) / len(squares)
    value = mode_alignment(source, source_mode, target, target_mode, modes=6)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for tensor in (source, target):
        mine, loop = (torch.autograd.grad(v, tensor, retain_graph=True)[0] for v in (value, expected))
        torch.testing.assert_close(mine, loop, rtol=1e-7, atol=1e-10)
    nothing = mode_alignment(source, torch.full_like(source_mode, 6), target, target_mode, modes=6)
    assert nothing.item() == 0 and not torch.autograd.grad(nothing, source)[0].any()
