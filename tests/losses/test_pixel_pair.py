"""Contrast of pairs of pixels against loops written from the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal
from torch import Tensor

from udaseg.losses import pixel_pair
from udaseg.losses.pixel_pair import (
    flatten,
    memory_contrast,
    multi_resolution_contrast,
    pair_contrast,
    pixel_contrast,
    region_contrast,
    two_view_contrast,
    view_contrast,
)
from udaseg.types import IGNORE


def _pair_loop(anchor: Tensor, y: Tensor, key: Tensor, key_y: Tensor, weight: Tensor) -> tuple[list[float], list[int]]:
    s = (anchor @ key.T).tolist()
    sums, counts = [], []
    for i in range(len(anchor)):
        negative = sum(math.exp(s[i][n]) for n in range(len(key)) if key_y[n] != y[i])
        positives = [j for j in range(len(key)) if key_y[j] == y[i] and j != i]
        shares = [
            -float(weight[i, j]) * math.log(math.exp(s[i][j]) / (math.exp(s[i][j]) + negative)) for j in positives
        ]
        sums.append(sum(shares))
        counts.append(len(positives))
    return sums, counts


@pytest.mark.parametrize("rows", [1, 5, 100])
@pytest.mark.parametrize("keys", [11, 17])
def test_pair_contrast_is_the_loop_whatever_the_block(rows: int, keys: int) -> None:
    anchor, key = normal(13, 4), normal(keys, 4, seed=1)
    y, key_y = labels(13, classes=3), labels(keys, classes=3, seed=1)
    weight = normal(13, keys, seed=2).abs()
    sums, counts = pair_contrast(anchor, y, key, key_y, weight=lambda part: weight[part], rows=rows)
    expected, expected_counts = _pair_loop(anchor, y, key, key_y, weight)
    assert sums.tolist() == pytest.approx(expected, rel=1e-9)
    assert counts.tolist() == expected_counts


def test_pair_contrast_gradient() -> None:
    anchor, key = normal(6, 3).requires_grad_(), normal(5, 3, seed=1).requires_grad_()
    y, key_y = labels(6, classes=2), labels(5, classes=2, seed=1)
    assert torch.autograd.gradcheck(lambda a, k: pair_contrast(a, y, k, key_y, rows=4)[0], (anchor, key))


@pytest.mark.parametrize("temperature", [1.0, 0.1, 0.02, 0.002])
@pytest.mark.parametrize("released", [False, True])
def test_pair_contrast_keeps_what_lies_far_below_the_anchor_s_own_pixel(temperature: float, released: bool) -> None:
    """A positive and a negative opposite to the anchor, whose powers are nothing beside that of itself."""
    anchor = torch.tensor([[1.0, 0], [-1, 0], [-1, 0]], requires_grad=True)
    y = torch.tensor([0, 0, 1])
    scaled = anchor / temperature
    sums, counts = pair_contrast(scaled, y, anchor, y, unshifted_negatives=released)
    shift = 1 / temperature if released else 0  # the anchor's own pixel is the most similar
    assert counts[0] == 1 and sums[0].item() == pytest.approx(float(np.logaddexp(0, shift)), rel=1e-5)
    (gradient,) = torch.autograd.grad(sums[0], scaled)
    (exact,) = torch.autograd.grad(_far(scaled.double(), anchor.double(), shift), scaled)
    torch.testing.assert_close(gradient, exact, rtol=1e-5, atol=1e-6)
    alone, _ = pair_contrast(scaled, torch.zeros(3).long(), anchor, torch.zeros(3).long(), unshifted_negatives=released)
    assert alone.tolist() == [0, 0, 0] and not torch.autograd.grad(alone.sum(), anchor)[0].any()


def _far(anchor: Tensor, key: Tensor, shift: float) -> Tensor:
    s = anchor[0] @ key.T
    return torch.logaddexp(s[1] - shift, s[2]) - (s[1] - shift)


def test_one_class_alone_gives_zero_with_finite_gradients() -> None:
    feature = normal(1, 4, 3, 3).requires_grad_()
    loss = pixel_contrast(feature, torch.zeros(1, 3, 3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert feature.grad is not None and feature.grad.isfinite().all()


def test_multi_resolution_contrast_is_the_loop() -> None:
    shape, plane = (2, 4, 2, 3), (2, 2, 3)
    low, high = normal(*shape), normal(*shape, seed=1)
    y = labels(*plane, classes=3, ignored=0)
    inside = y * (torch.arange(3) > 0)
    attention, pixel = normal(*plane, seed=2).sigmoid(), normal(*plane, seed=3).abs()
    q, k = (F.normalize(f.permute(0, 2, 3, 1).reshape(-1, 4), dim=1) for f in (low, high))
    a, h, p, label = attention.flatten(), inside.flatten(), pixel.flatten(), y.flatten()
    context = torch.tensor([[a[i] * a[j] * (h[i] != 0) for j in range(12)] for i in range(12)])
    outer = p[:, None] * p
    low_sums, counts = _pair_loop(q, label, q, label, context * outer)
    high_sums, _ = _pair_loop(q, label, k, torch.where(h != 0, h, label), (1 - context) * outer)
    expected = np.mean([(m + n) / max(1, c) for m, n, c in zip(low_sums, high_sums, counts, strict=True)]) / 2
    loss = multi_resolution_contrast(low, high, y, inside, attention, pixel, rows=5)
    assert loss.item() == pytest.approx(expected, rel=1e-9)


def test_keys_that_are_not_valid_neither_attract_nor_repel() -> None:
    anchor, key = normal(9, 4), normal(12, 4, seed=1)
    y, key_y = labels(9, classes=3, ignored=0), labels(12, classes=3, seed=1, ignored=0)
    valid = torch.arange(12) % 3 != 1
    sums, counts = pair_contrast(anchor, y, key, key_y, valid=valid)
    elsewhere = torch.where(valid, key_y, -1)  # a positive of nobody; its part in N_i is taken off by hand
    s = (anchor @ key.T).double()
    for i in range(9):
        others = [n for n in range(12) if valid[n] and key_y[n] != y[i]]
        negative = s[i, others].exp().sum()
        positives = [j for j in range(12) if elsewhere[j] == y[i] and j != i]
        expected = -(s[i, positives] - (s[i, positives].exp() + negative).log()).sum()
        assert sums[i].item() == pytest.approx(expected.item(), rel=1e-9, abs=1e-12)
        assert counts[i] == len(positives)


def test_ignored_pixels_leave_no_trace_and_groups_do_not_see_each_other() -> None:
    feature, label = normal(4, 5, 3, 3), labels(4, 3, 3, classes=3)
    valid = label != IGNORE
    whole = pixel_contrast(feature, label, valid=valid, group_size=2)
    noise = torch.where(valid[:, None], feature, normal(4, 5, 3, 3, seed=9))
    assert pixel_contrast(noise, label, valid=valid, group_size=2).item() == pytest.approx(whole.item(), rel=1e-12)
    parts = [pixel_contrast(feature[g], label[g], valid=valid[g]) * valid[g].sum() for g in (slice(2), slice(2, 4))]
    assert whole.item() == pytest.approx((sum(parts) / valid.sum()).item(), rel=1e-12)
    assert pixel_contrast(feature, label, valid=torch.zeros_like(valid)).item() == 0


def test_multi_resolution_contrast_of_groups_is_the_mean_over_them() -> None:
    low, high = normal(4, 3, 2, 3), normal(4, 3, 2, 3, seed=1)
    y, attention = labels(4, 2, 3, classes=3) + 1, normal(4, 2, 3, seed=2).sigmoid()
    valid = y != IGNORE + 1
    inside = torch.arange(3) > 0
    options = {"valid": valid, "detail_valid": valid & inside}
    whole = multi_resolution_contrast(low, high, y, y * inside, attention, **options, group_size=2)
    total = sum(
        multi_resolution_contrast(
            low[g], high[g], y[g], (y * inside)[g], attention[g], **{k: v[g] for k, v in options.items()}
        )
        * valid[g].sum()
        for g in (slice(2), slice(2, 4))
    )
    assert whole.item() == pytest.approx((total / valid.sum()).item(), rel=1e-9)  # type: ignore[union-attr]
    noise = torch.where((valid & inside)[:, None], high, torch.zeros_like(high))
    masked = multi_resolution_contrast(low, noise, y, y * inside, attention, **options, group_size=2)
    assert masked.item() == pytest.approx(whole.item(), rel=1e-12)


def test_orders_differ_only_between_images() -> None:
    feature = normal(2, 3, 2, 2)
    pixels = {tuple(v) for v in flatten(feature).tolist()}
    assert flatten(feature)[:4].tolist() == feature[0].flatten(1).T.tolist()
    assert {tuple(v) for v in flatten(feature, position_major=True).tolist()} == pixels
    assert torch.equal(flatten(feature[:1]), flatten(feature[:1], position_major=True))
    label = labels(2, 2, 2, classes=2, ignored=0)
    assert pixel_contrast(feature, label) != pixel_contrast(feature, label, position_major=True)


def test_no_full_matrix_of_similarities_is_kept_for_the_backward_pass() -> None:
    feature, label = normal(1, 8, 32, 32).requires_grad_(), labels(1, 32, 32, classes=5)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = pixel_contrast(feature, label, rows=64)
    assert max(saved) < 1024 * 64  # n is 1024: not even one block of rows is saved
    loss.backward()


def _unit(*shape: int, seed: int = 0) -> Tensor:
    return F.normalize(normal(*shape, seed=seed), dim=1)


@pytest.mark.parametrize("rows", [2, 100])
def test_region_contrast_is_the_loop(rows: int) -> None:
    anchor, positive, bank = _unit(7, 4).requires_grad_(), _unit(7, 4, seed=1), _unit(12, 4, seed=2)
    label, bank_label = labels(7, classes=3, ignored=0), labels(12, classes=3, seed=1)
    bank_label[[2, 5]] = -1  # nothing is there yet
    counted = torch.arange(7) % 3 != 1
    expected = []
    for i in range(7):
        own = math.exp(float(anchor[i].detach() @ positive[i]) / 0.2)
        there = [n for n in range(12) if bank_label[n] >= 0 and bank_label[n] != label[i]]
        total = own + sum(math.exp(float(anchor[i].detach() @ bank[n]) / 0.2) for n in there)
        expected.append(-math.log(own / total + 1e-8))

    def ours(anchor: Tensor) -> Tensor:
        return region_contrast(anchor, positive, label, counted, bank, bank_label, temperature=0.2, rows=rows)

    mean = np.mean([x for x, c in zip(expected, counted, strict=True) if c])
    assert ours(anchor).item() == pytest.approx(mean, rel=1e-9)
    assert torch.autograd.gradcheck(ours, (anchor,))


def test_region_contrast_of_an_empty_bank_or_of_no_cell_is_zero_with_finite_gradients() -> None:
    anchor, counted = _unit(3, 4).requires_grad_(), torch.ones(3, dtype=torch.bool)
    for bank_label, used in ((torch.full((5,), -1), counted), (torch.arange(5), ~counted)):
        value = region_contrast(anchor, _unit(3, 4, seed=1), torch.zeros(3).long(), used, _unit(5, 4), bank_label)
        (gradient,) = torch.autograd.grad(value, anchor)
        assert value.item() == pytest.approx(0, abs=1e-7) and gradient.isfinite().all()


@pytest.mark.parametrize("rows", [3, 100])
@pytest.mark.parametrize("all_valid", [True, False])
def test_view_contrast_is_the_loop(rows: int, all_valid: bool) -> None:
    first, second = normal(5, 4).softmax(1).requires_grad_(), normal(5, 4, seed=1).softmax(1).requires_grad_()
    valid = torch.tensor([True, all_valid, True, all_valid, True])
    both, there = torch.cat([first, second]).tolist(), torch.cat([valid, valid]).tolist()
    expected = []
    for i in (i for i in range(10) if there[i]):
        s = [7 * sum(a * b for a, b in zip(both[i], row, strict=True)) for row in both]
        others = sum(math.exp(s[j]) for j in range(10) if there[j] and j != i)
        expected.append(-math.log(math.exp(s[(i + 5) % 10]) / others))
    value = view_contrast(first, second, None if all_valid else valid, scale=7, rows=rows)
    assert value.item() == pytest.approx(np.mean(expected), rel=1e-9)
    assert torch.autograd.gradcheck(lambda a, b: view_contrast(a, b, valid, scale=7, rows=rows), (first, second))


def test_view_contrast_without_a_row_is_zero_with_finite_gradients() -> None:
    view = normal(3, 4).requires_grad_()
    value = view_contrast(view, view, torch.zeros(3, dtype=torch.bool), scale=7)
    value.backward()
    assert value.item() == 0 and view.grad is not None and view.grad.isfinite().all()


def test_two_views_are_contrasted_between_classes_that_are_there_and_between_cells() -> None:
    weak, strong = normal(2, 3, 2, 2), normal(2, 3, 2, 2, seed=1)
    label = torch.tensor([[[0, 0], [2, IGNORE]], [[IGNORE, IGNORE], [IGNORE, IGNORE]]])
    big = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    classes, cells = two_view_contrast(weak, strong, big, class_scale=3, cell_scale=5)
    means = [torch.stack([view[0][:, label[0] == c].mean(1) for c in (0, 2)]).softmax(1) for view in (strong, weak)]
    assert classes[0].item() == pytest.approx(view_contrast(*means, scale=3).item(), rel=1e-6)
    assert classes[1].item() == 0
    for i in range(2):
        rows = [view[i].flatten(1).T.softmax(1) for view in (strong, weak)]
        assert cells[i].item() == pytest.approx(view_contrast(*rows, scale=5).item(), rel=1e-9)


@pytest.mark.parametrize("rows", [3, 100])
def test_memory_contrast_is_the_loop_over_remembered_pixels(rows: int) -> None:
    """Memory i is no pixel of the step: where its class is that of pixel i, it is a positive like any other."""
    feature, y = normal(11, 4).requires_grad_(), labels(11, classes=4)
    memory, memory_y = normal(14, 4, seed=1), labels(14, classes=3, seed=1)  # none of class 3
    found = []
    for f, c in zip(feature, y.tolist(), strict=True):
        power = [torch.exp(f @ m / 0.5) for m in memory]
        negative = sum(p for p, d in zip(power, memory_y.tolist(), strict=True) if d not in (c, IGNORE))
        each = [
            -torch.log(p / (p + negative)) for p, d in zip(power, memory_y.tolist(), strict=True) if d == c != IGNORE
        ]
        if each:
            found.append(sum(each) / len(each))
    assert 0 < len(found) < (y != IGNORE).sum()
    expected = sum(found) / len(found)
    value = memory_contrast(feature, y, memory, memory_y, temperature=0.5, rows=rows)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    mine, loop = (torch.autograd.grad(v, feature, retain_graph=True)[0] for v in (value, expected))
    assert mine.abs().max() > 0
    torch.testing.assert_close(mine, loop, rtol=1e-7, atol=1e-10)


def test_a_single_pixel_of_two_ranks_counts_as_one_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    """The mean count of ranks is a half, and of the ranks' losses, of which one is 0, a half is taken later."""
    feature, y = normal(3, 4), torch.tensor([1, IGNORE, IGNORE])
    memory, memory_y = normal(6, 4, seed=1), torch.tensor([0, 1, 2, 0, 1, 2])
    alone = memory_contrast(feature, y, memory, memory_y, temperature=0.5)
    monkeypatch.setattr(pixel_pair, "mean_over_ranks", lambda count: count / 2)
    assert memory_contrast(feature, y, memory, memory_y, temperature=0.5) == pytest.approx(2 * alone.item())


def test_with_an_empty_memory_its_contrast_is_zero_with_finite_gradients() -> None:
    feature, nothing = normal(5, 4).requires_grad_(), torch.full((6,), IGNORE)
    value = memory_contrast(feature, labels(5, classes=2), torch.zeros(6, 4).double(), nothing, temperature=0.1)
    value.backward()
    assert value.item() == 0 and feature.grad is not None and not feature.grad.any()


def test_pairs_of_pixels_weigh_the_product_of_their_weights() -> None:
    feature, label, pixel = normal(2, 4, 2, 3), labels(2, 2, 3, classes=3, ignored=0), normal(2, 2, 3, seed=1).abs()
    unit = F.normalize(feature.permute(0, 2, 3, 1).reshape(-1, 4), dim=1)
    y, p = label.flatten(), pixel.flatten()
    sums, counts = _pair_loop(unit, y, unit, y, p[:, None] * p)
    expected = np.mean([s / max(1, c) for s, c in zip(sums, counts, strict=True)])
    assert pixel_contrast(feature, label, pixel, rows=5).item() == pytest.approx(expected, rel=1e-9)
    assert pixel_contrast(feature, label, torch.zeros_like(pixel)).item() == 0
