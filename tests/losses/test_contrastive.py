"""Contrast with prototypes and with distributions against loops written from the equations."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal
from torch import Tensor

from udaseg.losses import contrastive
from udaseg.losses.contrastive import (
    bank_contrast,
    bidirectional_contrast,
    cell_label_counts,
    distribution_contrast,
    downscale_label,
    labelled_cells,
    masked_average_pool,
    mean_feature_regulariser,
    pixel_prototype_contrast,
    positive_negative_equal_contrast,
    prototype_contrast,
)
from udaseg.types import IGNORE


def _contrast_at_full_resolution(
    anchors: Tensor, keys: Tensor, anchor_label: Tensor, key_label: Tensor, classes: int, temperature: float
) -> Tensor:
    """One direction for one pair, step by step: features (A, h, w), labels (H, W)."""
    size, full, key_size = tuple(anchors.shape[1:]), tuple(anchor_label.shape), tuple(keys.shape[1:])
    small = F.interpolate(key_label[None, None].double(), size=key_size, mode="nearest")[0, 0].long()
    anchor_small = F.interpolate(anchor_label[None, None].double(), size=size, mode="nearest")[0, 0].long()
    similarity = []
    for c in range(classes):
        cells = [keys[:, i, j] for i, j in np.ndindex(*key_size) if small[i, j] == c]
        if not cells:
            similarity.append(torch.full(size, -1.0, dtype=anchors.dtype))
            continue
        prototype = torch.stack(cells).mean(0)
        pixels = [anchors[:, i, j] for i, j in np.ndindex(*size)]
        cosines = [torch.dot(prototype, pixel) / (prototype.norm() * pixel.norm()) for pixel in pixels]
        similarity.append(torch.stack(cosines).view(size))
    upsampled = F.interpolate(torch.stack(similarity)[None].float(), size=full, mode="nearest")[0].double()
    shared = {int(c) for c in small.unique()} & {int(c) for c in anchor_small.unique()} - {IGNORE}
    total, count = torch.zeros((), dtype=torch.float64), 0
    for i, j in np.ndindex(*full):
        y = int(anchor_label[i, j])
        if y in shared:
            total = total - (upsampled[:, i, j] / temperature).log_softmax(0)[y]
            count += 1
    return total / count if count else total


SIZES = [((3, 4), (12, 16)), ((3, 4), (13, 17)), ((4, 5), (10, 11)), ((5, 3), (5, 3))]


@pytest.mark.parametrize(("source", "target"), [*((size, size) for size in SIZES), (SIZES[0], SIZES[2])])
def test_bidirectional_contrast_is_the_loop_at_full_resolution(source: Any, target: Any) -> None:
    """Each of a size of features and one of labels."""
    classes = 5
    fs, ft = normal(2, 6, *source[0], seed=1).requires_grad_(), normal(2, 6, *target[0], seed=2).requires_grad_()
    ys, yt = labels(2, *source[1], classes=4, seed=3), labels(2, *target[1], classes=5, seed=4, ignored=0.5)
    pairs = [
        (
            _contrast_at_full_resolution(ft[b], fs[b], yt[b], ys[b], classes, 0.2),
            _contrast_at_full_resolution(fs[b], ft[b], ys[b], yt[b], classes, 0.2),
        )
        for b in range(2)
    ]
    forward, backward = bidirectional_contrast(fs, ys, ft, yt, num_classes=classes, temperature=0.2)
    for ours, theirs in [(forward, (pairs[0][0] + pairs[1][0]) / 2), (backward, (pairs[0][1] + pairs[1][1]) / 2)]:
        assert float(ours.detach()) == pytest.approx(float(theirs.detach()), rel=1e-5)  # the loop upsamples in float32
        for tensor in (fs, ft):
            (mine,) = torch.autograd.grad(ours, tensor, retain_graph=True)
            (loop,) = torch.autograd.grad(theirs, tensor, retain_graph=True)
            assert mine.abs().max() > 0
            torch.testing.assert_close(mine, loop, rtol=1e-4, atol=1e-7)


def test_cells_are_those_of_nearest_upsampling() -> None:
    """Also at sizes such as 365 of 730, where floor(i * h / H) depends on the precision of the ratio."""
    for full in [*range(5, 40), 75, 182, 350, 512, 600, 714, 730, 742, 798]:
        for small in {max(1, full // 8), -(-full // 8), full // 8 + 1, max(1, full // 4), -(-full // 4)}:
            cell = torch.arange(small, dtype=torch.float32).view(1, 1, small, 1)
            row = F.interpolate(cell, size=(full, 1), mode="nearest")[0, 0, :, 0].long()
            counts = cell_label_counts(torch.zeros(1, full, 1, dtype=torch.int64), (small, 1), 1)[0, 0, :, 0]
            assert torch.equal(counts.long(), torch.bincount(row, minlength=small)), (full, small)


def test_cell_counts_hold_every_labelled_pixel_once() -> None:
    label = labels(3, 11, 14, classes=4)
    counts = cell_label_counts(label, (3, 4), 4)
    for b in range(3):
        for c in range(4):
            assert int(counts[b, c].sum()) == int((label[b] == c).sum())


def test_masked_average_pool_is_the_mean_of_the_cells() -> None:
    feature, label = normal(2, 3, 4, 4), labels(2, 4, 4, classes=3)
    label[1][label[1] == 2] = IGNORE
    prototypes, present = masked_average_pool(feature, label, 4)
    for b in range(2):
        for c in range(4):
            cells = feature[b][:, label[b] == c]
            assert bool(present[b, c]) == (cells.shape[1] > 0)
            expected = cells.mean(1) if cells.shape[1] else torch.zeros(3, dtype=torch.float64)
            torch.testing.assert_close(prototypes[b, c], expected)
    assert not present[1, 2] and not present[:, 3].any()


def test_absent_classes_stand_at_minus_one() -> None:
    """The softmax runs over all columns: more absent classes raise the loss, by a known amount."""
    feature = F.normalize(normal(1, 3, 1, 1), dim=1)
    label, both = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 4, dtype=torch.float64)
    prototypes = torch.zeros(1, 4, 3, dtype=torch.float64)
    prototypes[0, 0] = feature[0, :, 0, 0]
    present = torch.tensor([[True, False, False, False]])
    value = pixel_prototype_contrast(feature, prototypes, present, label, both, temperature=0.5)
    assert float(value) == pytest.approx(math.log(1 + 3 * math.exp(-4)), rel=1e-9)


def test_without_a_common_class_the_contrast_is_zero_with_finite_gradients() -> None:
    fs, ft = normal(1, 4, 2, 2, seed=1).requires_grad_(), normal(1, 4, 2, 2, seed=2).requires_grad_()
    nothing = torch.full((1, 8, 8), IGNORE)
    for ys, yt in [(torch.zeros_like(nothing), torch.ones_like(nothing)), (torch.zeros_like(nothing), nothing)]:
        forward, backward = bidirectional_contrast(fs, ys, ft, yt, num_classes=3)
        assert float(forward.detach()) == 0 and float(backward.detach()) == 0
        for gradient in torch.autograd.grad(forward + backward, (fs, ft)):
            assert not gradient.any()


def test_a_pair_without_common_class_counts_as_zero_in_the_mean() -> None:
    fs, ft = normal(2, 4, 2, 2, seed=1), normal(2, 4, 2, 2, seed=2)
    ys, yt = torch.zeros(2, 8, 8, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.int64)
    ys[:, :4], yt[1] = 1, 2
    yt[0, 4:] = 1
    joint = bidirectional_contrast(fs, ys, ft, yt, num_classes=3)
    alone = bidirectional_contrast(fs[:1], ys[:1], ft[:1], yt[:1], num_classes=3)
    for both, one in zip(joint, alone, strict=True):
        assert float(one) > 0
        assert float(both) == pytest.approx(float(one) / 2)


def test_a_zero_feature_has_finite_gradients() -> None:
    fs, ft = torch.zeros(1, 4, 2, 2, requires_grad=True), normal(1, 4, 2, 2, dtype=torch.float32).requires_grad_()
    label = torch.tensor([0, 1]).repeat(1, 4, 2)
    forward, backward = bidirectional_contrast(fs, label, ft, label, num_classes=2)
    for gradient in torch.autograd.grad(forward + backward, (fs, ft)):
        assert torch.isfinite(gradient).all()


def test_contrast_gradient() -> None:
    ys, yt = labels(1, 5, 7, classes=3, seed=1), labels(1, 5, 7, classes=3, seed=2)
    fs, ft = normal(1, 4, 2, 3, seed=3).requires_grad_(), normal(1, 4, 2, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: bidirectional_contrast(a, ys, b, yt, num_classes=3, temperature=0.5), (fs, ft)
    )


def test_downscaled_labels_are_picked_never_mixed() -> None:
    label = labels(1, 12, 12, classes=19, ignored=0.5)
    assert torch.equal(downscale_label(label, (3, 4)), label[:, ::4, ::3])


def test_distribution_contrast_is_the_loop_over_pixels() -> None:
    feature, label = normal(20, 5), labels(20, classes=3)
    mean, variance = normal(3, 5, seed=1), normal(3, 5, seed=2).abs()
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
    feature, label = normal(6, 4).requires_grad_(), labels(6, classes=3)
    mean, variance = normal(3, 4, seed=1), normal(3, 4, seed=2).abs()
    assert torch.autograd.gradcheck(lambda f: distribution_contrast(f, label, mean, variance, temperature=1.0), feature)
    nothing = distribution_contrast(feature, torch.full((6,), IGNORE), mean, variance)
    nothing.backward()
    assert nothing.item() == 0 and feature.grad is not None and not feature.grad.any()


def test_a_cell_goes_with_the_label_at_its_place() -> None:
    feature, label = normal(2, 3, 2, 4), labels(2, 6, 8, classes=4)
    cells, small = labelled_cells(feature, label)
    for n, i, j in np.ndindex(2, 2, 4):
        place = (n * 2 + i) * 4 + j
        assert torch.equal(cells[place], feature[n, :, i, j]) and small[place] == label[n, 3 * i, 2 * j]


def test_prototype_contrast_is_the_loop_over_pixels_of_any_length() -> None:
    feature, label, prototypes = normal(40, 5).requires_grad_(), labels(40, classes=4), normal(4, 5, seed=1)
    found = []
    for f, y in zip(feature, label.tolist(), strict=True):
        if y != IGNORE:
            exps = [math.exp(float(f.detach() @ p) / 0.5) for p in prototypes]
            found.append(-math.log(exps[y] / sum(exps)))
    value = prototype_contrast(feature, label, prototypes, temperature=0.5)
    assert value.item() == pytest.approx(sum(found) / len(found), rel=1e-9)
    assert torch.autograd.gradcheck(lambda f: prototype_contrast(f, label, prototypes, temperature=0.5), feature)


def test_distributions_may_be_taken_as_they_are() -> None:
    feature, label = normal(30, 5), labels(30, classes=3)
    mean, variance = normal(3, 5, seed=1), normal(3, 5, seed=2).square()
    found = []
    for f, y in zip(feature, label.tolist(), strict=True):
        if y != IGNORE:
            logits = [float(f @ m + f.square() @ v / 4) / 2 for m, v in zip(mean, variance, strict=True)]
            own = float(f.square() @ variance[y]) / 8
            found.append(math.log(sum(map(math.exp, logits))) - logits[y] + own)
    value = distribution_contrast(feature, label, mean, variance, temperature=2, normalise=False)
    assert value.item() == pytest.approx(sum(found) / len(found), rel=1e-9)
    units = (F.normalize(x, dim=1) for x in (feature, mean, variance))
    unit, mean_, variance_ = units
    as_is = distribution_contrast(unit, label, mean_, variance_, temperature=2, normalise=False)
    torch.testing.assert_close(as_is, distribution_contrast(feature, label, mean, variance, temperature=2))


def test_bank_contrast_is_the_loop_over_entries() -> None:
    feature, label = normal(40, 5).requires_grad_(), labels(40, classes=3)
    bank, filled = normal(4, 6, 5, seed=1), torch.tensor([6, 2, 4, 1])
    bank = (
        bank * (torch.arange(6) < filled[:, None])[..., None] + 99.0 * (torch.arange(6) >= filled[:, None])[..., None]
    )
    found = []
    for f, y in zip(feature.detach(), label.tolist(), strict=True):
        if y != IGNORE:
            similar = [[float(f @ e) / 0.7 for e in bank[c, : filled[c]]] for c in range(4)]
            negative = sum(math.exp(sum(s) / len(s)) for c, s in enumerate(similar) if c != y)
            each = [-math.log(math.exp(s) / (math.exp(s) + negative)) for s in similar[y]]
            found.append(sum(each) / len(each))
    value = bank_contrast(feature, label, bank, filled, temperature=0.7)
    assert value.item() == pytest.approx(sum(found) / len(found), rel=1e-9)
    assert torch.autograd.gradcheck(lambda f: bank_contrast(f, label, bank, filled, temperature=0.7), feature)


def test_the_regulariser_is_lowest_where_the_mean_pixel_is_of_one_class() -> None:
    feature, label, prototypes = normal(20, 4).requires_grad_(), labels(20, classes=3), normal(3, 4, seed=1)
    mean = feature.detach()[label != IGNORE].mean(0)
    exps = [math.exp(float(mean @ p) / 0.3) for p in prototypes]
    expected = sum(math.log(e / sum(exps)) for e in exps) / (3 * math.log(3))
    value = mean_feature_regulariser(feature, label, prototypes, temperature=0.3)
    assert value.item() == pytest.approx(expected, rel=1e-9) and value.item() < -1
    same = prototypes[:1].expand(3, -1)
    assert mean_feature_regulariser(feature, label, same, temperature=0.3).item() == pytest.approx(-1)
    assert torch.autograd.gradcheck(lambda f: mean_feature_regulariser(f, label, prototypes, temperature=0.3), feature)


def test_the_regulariser_of_a_single_pixel_of_two_ranks_is_that_of_one_process(monkeypatch: pytest.MonkeyPatch) -> None:
    feature, label, prototypes = normal(2, 4), torch.tensor([1, IGNORE]), normal(3, 4, seed=1)
    alone = mean_feature_regulariser(feature, label, prototypes, temperature=0.3)
    for function in ("mean_over_ranks", "joined_mean"):  # the other rank has none
        monkeypatch.setattr(contrastive, function, lambda value: value / 2)
    assert mean_feature_regulariser(feature, label, prototypes, temperature=0.3) == pytest.approx(alone.item())


@pytest.mark.parametrize("name", ["prototype", "bank", "regulariser"])
def test_without_a_labelled_pixel_a_contrast_is_zero_with_finite_gradients(name: str) -> None:
    feature, label = normal(6, 4).requires_grad_(), torch.full((6,), IGNORE)
    prototypes = normal(3, 4, seed=1)
    value = {
        "prototype": lambda: prototype_contrast(feature, label, prototypes, temperature=1.0),
        "bank": lambda: bank_contrast(
            feature, label, prototypes[:, None], torch.ones(3, dtype=torch.long), temperature=1.0
        ),
        "regulariser": lambda: mean_feature_regulariser(feature, label, prototypes, temperature=1.0),
    }[name]()
    value.backward()
    assert value.item() == 0 and feature.grad is not None and not feature.grad.any()


def test_positives_and_negatives_weigh_alike_however_many_there_are() -> None:
    anchor, key = normal(2, 6, 4).requires_grad_(), normal(2, 9, 4, seed=1).requires_grad_()
    y, key_y = labels(2, 6, classes=3, seed=2), labels(2, 9, classes=3, seed=3)
    key_y[1][key_y[1] == 0] = IGNORE  # anchors of class 0 of the second image have no positive
    found = []
    for b, n in np.ndindex(2, 6):
        power = {True: [], False: []}
        for m in range(9):
            if int(key_y[b, m]) != IGNORE:
                power[bool(key_y[b, m] == y[b, n])].append(torch.exp(anchor[b, n] @ key[b, m] / 0.5))
        if int(y[b, n]) != IGNORE and power[True] and power[False]:
            positive, negative = (sum(power[kind]) / len(power[kind]) for kind in (True, False))
            found.append(-torch.log(positive / (positive + negative)))
    assert 0 < len(found) < int((y != IGNORE).sum())
    expected = sum(found) / len(found)
    value = positive_negative_equal_contrast(anchor, y, key, key_y, temperature=0.5)
    assert value.item() == pytest.approx(expected.item(), rel=1e-9)
    for tensor in (anchor, key):
        mine, loop = (torch.autograd.grad(v, tensor, retain_graph=True)[0] for v in (value, expected))
        assert mine.abs().max() > 0
        torch.testing.assert_close(mine, loop, rtol=1e-7, atol=1e-10)
    often = torch.cat([key_y, key_y, key_y], 1), torch.cat([key, key, key], 1)
    again = positive_negative_equal_contrast(anchor, y, often[1], often[0], temperature=0.5)
    torch.testing.assert_close(again, value)


@pytest.mark.parametrize("which", ["anchors", "positives", "negatives"])
def test_an_equal_contrast_without_pairs_is_zero_with_finite_gradients(which: str) -> None:
    anchor = normal(1, 3, 4, dtype=torch.float32).requires_grad_()
    y, key_y = torch.zeros(1, 3, dtype=torch.long), torch.tensor([[0, 1]])
    if which == "anchors":
        y[:] = IGNORE
    else:
        key_y[key_y == (0 if which == "positives" else 1)] = IGNORE
    value = positive_negative_equal_contrast(anchor, y, normal(1, 2, 4).float(), key_y, temperature=0.1)
    value.backward()
    assert value.item() == 0 and anchor.grad is not None and not anchor.grad.any()
