"""Losses on features and on pairs of pixels, and class distributions, against loops written from the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from two_ranks import TwoRanks

from udaseg.components.feature_distance import feature_distance, majority_label
from udaseg.components.prototypes import ClassGaussians
from udaseg.losses.contrastive import distribution_contrast
from udaseg.losses.feature import mmd, upsampled_mean
from udaseg.losses.pixel_pair import flatten, multi_resolution_contrast, pair_contrast, pixel_contrast
from udaseg.losses.segmentation import lovasz_softmax, negative_learning
from udaseg.types import IGNORE


def _random(*shape: int, seed: int = 0) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape))


def _labels(*shape: int, classes: int, seed: int = 0, ignored: float = 0.2) -> Tensor:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape)
    label[rng.random(shape) < ignored] = IGNORE
    return torch.from_numpy(label)


# --- pairs of pixels ------------------------------------------------------------------------------------------------


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
    anchor, key = _random(13, 4), _random(keys, 4, seed=1)
    y, key_y = _labels(13, classes=3), _labels(keys, classes=3, seed=1)
    weight = _random(13, keys, seed=2).abs()
    sums, counts = pair_contrast(anchor, y, key, key_y, weight=lambda part: weight[part], rows=rows)
    expected, expected_counts = _pair_loop(anchor, y, key, key_y, weight)
    assert sums.tolist() == pytest.approx(expected, rel=1e-9)
    assert counts.tolist() == expected_counts


def test_pair_contrast_gradient() -> None:
    anchor, key = _random(6, 3).requires_grad_(), _random(5, 3, seed=1).requires_grad_()
    y, key_y = _labels(6, classes=2), _labels(5, classes=2, seed=1)
    assert torch.autograd.gradcheck(lambda a, k: pair_contrast(a, y, k, key_y, rows=4)[0], (anchor, key))


def test_one_class_alone_gives_zero_with_finite_gradients() -> None:
    feature = _random(1, 4, 3, 3).requires_grad_()
    loss = pixel_contrast(feature, torch.zeros(1, 3, 3, dtype=torch.int64))
    loss.backward()
    assert loss.item() == pytest.approx(0, abs=1e-12)
    assert feature.grad is not None and feature.grad.isfinite().all()


def test_multi_resolution_contrast_is_the_loop() -> None:
    shape, plane = (2, 4, 2, 3), (2, 2, 3)
    low, high = _random(*shape), _random(*shape, seed=1)
    y = _labels(*plane, classes=3, ignored=0)
    inside = y * (torch.arange(3) > 0)
    attention, pixel = _random(*plane, seed=2).sigmoid(), _random(*plane, seed=3).abs()
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
    anchor, key = _random(9, 4), _random(12, 4, seed=1)
    y, key_y = _labels(9, classes=3, ignored=0), _labels(12, classes=3, seed=1, ignored=0)
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
    feature, label = _random(4, 5, 3, 3), _labels(4, 3, 3, classes=3)
    valid = label != IGNORE
    whole = pixel_contrast(feature, label, valid=valid, group_size=2)
    noise = torch.where(valid[:, None], feature, _random(4, 5, 3, 3, seed=9))
    assert pixel_contrast(noise, label, valid=valid, group_size=2).item() == pytest.approx(whole.item(), rel=1e-12)
    parts = [pixel_contrast(feature[g], label[g], valid=valid[g]) * valid[g].sum() for g in (slice(2), slice(2, 4))]
    assert whole.item() == pytest.approx((sum(parts) / valid.sum()).item(), rel=1e-12)
    assert pixel_contrast(feature, label, valid=torch.zeros_like(valid)).item() == 0


def test_multi_resolution_contrast_of_groups_is_the_mean_over_them() -> None:
    low, high = _random(4, 3, 2, 3), _random(4, 3, 2, 3, seed=1)
    y, attention = _labels(4, 2, 3, classes=3) + 1, _random(4, 2, 3, seed=2).sigmoid()
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
    feature = _random(2, 3, 2, 2)
    pixels = {tuple(v) for v in flatten(feature).tolist()}
    assert flatten(feature)[:4].tolist() == feature[0].flatten(1).T.tolist()
    assert {tuple(v) for v in flatten(feature, position_major=True).tolist()} == pixels
    assert torch.equal(flatten(feature[:1]), flatten(feature[:1], position_major=True))
    label = _labels(2, 2, 2, classes=2, ignored=0)
    assert pixel_contrast(feature, label) != pixel_contrast(feature, label, position_major=True)


def test_no_full_matrix_of_similarities_is_kept_for_the_backward_pass() -> None:
    feature, label = _random(1, 8, 32, 32).requires_grad_(), _labels(1, 32, 32, classes=5)
    saved: list[int] = []

    def pack(tensor: Tensor) -> Tensor:
        saved.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        loss = pixel_contrast(feature, label, rows=64)
    assert max(saved) < 1024 * 64  # n is 1024: not even one block of rows is saved
    loss.backward()


# --- features -------------------------------------------------------------------------------------------------------


def test_mmd_is_the_loop_over_pairs() -> None:
    source, target = _random(3, 5), _random(3, 5, seed=1) + 1
    z = torch.cat([source, target])
    d = [[float((z[i] - z[j]).square().sum()) for j in range(6)] for i in range(6)]
    width = sum(map(sum, d)) / 30 / 4
    k = [[sum(math.exp(-d[i][j] / (width * 2**n)) for n in range(5)) for j in range(6)] for i in range(6)]
    expected = sum(k[i][j] * (1 if (i < 3) == (j < 3) else -1) for i in range(6) for j in range(6)) / 9
    assert mmd(source, target).item() == pytest.approx(expected, rel=1e-9)


def test_mmd_of_equal_sets_is_zero_and_grows_with_the_distance() -> None:
    x = _random(4, 6).requires_grad_()
    assert mmd(x, x.detach()).item() == pytest.approx(0, abs=1e-12)
    values = [mmd(x, x.detach() + shift).item() for shift in (0.1, 1.0, 10.0)]
    assert values == sorted(values)
    same = torch.ones(2, 3, dtype=torch.float64, requires_grad=True)
    mmd(same, same.detach()).backward()
    assert same.grad is not None and same.grad.isfinite().all()


def test_upsampled_mean_is_that_of_the_upsampled_features() -> None:
    feature, mask = _random(2, 3, 4, 5).requires_grad_(), _random(2, 17, 23, seed=1).abs()
    up = F.interpolate(feature, size=(17, 23), mode="bilinear", align_corners=True)
    expected = (up * mask[:, None]).mean((2, 3))
    found = upsampled_mean(feature, mask)
    assert torch.allclose(found, expected, rtol=1e-9)
    (mine,) = torch.autograd.grad(found.square().sum(), feature)
    (theirs,) = torch.autograd.grad(expected.square().sum(), feature)
    assert torch.allclose(mine, theirs, rtol=1e-9)


def test_feature_distance_is_the_loop_over_the_mask() -> None:
    a, b = _random(2, 3, 4, 4), _random(2, 3, 4, 4, seed=1)
    mask = _random(2, 4, 4, seed=2) > 0
    found = [float((a[n, :, i, j] - b[n, :, i, j]).norm()) for n, i, j in mask.nonzero().tolist()]
    assert feature_distance(a, b, mask).item() == pytest.approx(sum(found) / len(found), rel=1e-9)
    a.requires_grad_()
    nothing = feature_distance(a, b, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0 and a.grad is not None and not a.grad.any()


def test_equal_features_have_a_finite_gradient() -> None:
    a = _random(1, 3, 2, 2).requires_grad_()
    feature_distance(a, a.detach(), torch.ones(1, 2, 2, dtype=torch.bool)).backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_majority_label_counts_each_window() -> None:
    label = _labels(2, 8, 12, classes=3, ignored=0.3)
    label[0, :4, :4] = 1
    found = majority_label(label, 4, num_classes=3, min_share=0.4)
    assert found.shape == (2, 2, 3)
    for n, i, j in np.ndindex(2, 2, 3):
        window = label[n, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        counts = [int((window == c).sum()) for c in (0, 1, 2, IGNORE)]
        best = int(np.argmax(counts))
        expected = IGNORE if best == 3 or counts[best] < 0.4 * 16 else best
        assert found[n, i, j] == expected
    assert found[0, 0, 0] == 1


# --- pixels and distributions ---------------------------------------------------------------------------------------


def test_distribution_contrast_is_the_loop_over_pixels() -> None:
    feature, label = _random(20, 5), _labels(20, classes=3)
    mean, variance = _random(3, 5, seed=1), _random(3, 5, seed=2).abs()
    t = 2.0
    values = []
    for f, y in zip(feature, label.tolist(), strict=True):
        if y == IGNORE:
            continue
        q = f / f.norm()
        spread = [float((q**2 * variance[c] / variance[c].norm()).sum()) for c in range(3)]
        logit = [(float(q @ mean[c] / mean[c].norm()) + spread[c] / (2 * t)) / t for c in range(3)]
        values.append(math.log(sum(map(math.exp, logit))) - logit[y] + spread[y] / (2 * t * t))
    found = distribution_contrast(feature, label, mean, variance, temperature=t)
    assert found.item() == pytest.approx(np.mean(values), rel=1e-9)


def test_distribution_contrast_gradient_and_emptiness() -> None:
    feature, label = _random(6, 4).requires_grad_(), _labels(6, classes=3)
    mean, variance = _random(3, 4, seed=1), _random(3, 4, seed=2).abs()
    assert torch.autograd.gradcheck(lambda f: distribution_contrast(f, label, mean, variance, temperature=1.0), feature)
    nothing = distribution_contrast(feature, torch.full((6,), IGNORE), mean, variance)
    nothing.backward()
    assert nothing.item() == 0 and feature.grad is not None and not feature.grad.any()


def _features(part: slice) -> tuple[Tensor, Tensor]:
    return _random(90, 4).float()[part], _labels(90, classes=3)[part]


def test_gaussians_are_those_of_everything_seen() -> None:
    bank = ClassGaussians(4, 4)
    for part in (slice(0, 10), slice(10, 11), slice(11, 90)):
        bank.update(*_features(part))
    feature, label = (v.numpy() for v in _features(slice(0, 90)))
    for c in range(3):
        mine = feature[label == c]
        assert bank.count[c] == len(mine)
        assert bank.mean[c].tolist() == pytest.approx(mine.mean(0), rel=1e-4, abs=1e-6)
        assert bank.variance[c].tolist() == pytest.approx(mine.var(0), rel=1e-4)
    assert not bank.count[3] and not bank.mean[3].any() and not bank.variance[3].any()


def _bank(rank: int | None) -> list[np.ndarray]:
    bank = ClassGaussians(4, 4)
    for first, last in ((0, 30), (30, 90)):
        middle = first + (last - first) // 3
        part = {None: slice(first, last), 0: slice(first, middle), 1: slice(middle, last)}[rank]
        bank.update(*_features(part))
    return [v.numpy() for v in (bank.count, bank.mean, bank.variance)]


def test_gaussians_on_two_ranks_equal_one(two_ranks: TwoRanks) -> None:
    one, both = _bank(None), two_ranks.run(_bank)
    for rank in both:
        for mine, theirs in zip(one, rank, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


# --- classification -------------------------------------------------------------------------------------------------


def test_negative_learning_is_the_loop_over_pixels() -> None:
    logits = _random(2, 5, 3, 3)
    for place in (1, 3, 5):
        values = []
        for n, i, j in np.ndindex(2, 3, 3):
            p = sorted(logits[n, :, i, j].softmax(0).tolist(), reverse=True)
            values.append(-math.log(1 - p[place - 1]))
        assert negative_learning(logits, place).item() == pytest.approx(np.mean(values), rel=1e-9)
    with pytest.raises(ValueError, match="place is 6"):
        negative_learning(logits, 6)


def test_lovasz_softmax_is_zero_where_all_is_right_and_sees_no_ignored_pixel() -> None:
    label = _labels(2, 6, 6, classes=3)
    right = 50 * F.one_hot(label.clamp_max(2), 3).permute(0, 3, 1, 2).double()
    assert lovasz_softmax(right, label).item() == pytest.approx(0, abs=1e-6)
    logits = _random(2, 3, 6, 6)
    other = torch.where((label == IGNORE)[:, None], 100 * _random(2, 3, 6, 6, seed=1), logits)
    assert lovasz_softmax(logits, label).item() == pytest.approx(lovasz_softmax(other, label).item(), rel=1e-12)
    logits.requires_grad_()
    nothing = lovasz_softmax(logits, torch.full_like(label, IGNORE))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_lovasz_softmax_is_the_extension_of_the_jaccard_loss() -> None:
    """At one-hot predictions the surrogate equals the mean over classes of 1 - IoU."""
    truth, guess = _labels(1, 5, 5, classes=3, ignored=0), _labels(1, 5, 5, classes=3, seed=4, ignored=0)
    hard = 1000 * F.one_hot(guess, 3).permute(0, 3, 1, 2).double()
    missed = [1 - float(((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum()) for c in range(3)]
    assert lovasz_softmax(hard, truth).item() == pytest.approx(np.mean(missed), rel=1e-6)
