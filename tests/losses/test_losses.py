"""Every loss against a loop of its own, written from the equation."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.losses.contrastive import (
    bidirectional_contrast,
    cell_label_counts,
    downscale_label,
    masked_average_pool,
    pixel_prototype_contrast,
)
from udaseg.losses.segmentation import cross_entropy, entropy
from udaseg.types import IGNORE


def _random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def _labels(*shape: int, classes: int, seed: int = 0, ignored: float = 0.2) -> Tensor:
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape)
    label[rng.random(shape) < ignored] = IGNORE
    return torch.from_numpy(label)


# --- cross-entropy and entropy --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_is_the_loop_over_pixels(reduction: str, weighted: bool) -> None:
    logits, label = _random(2, 4, 3, 5), _labels(2, 3, 5, classes=4)
    weight = torch.from_numpy(np.random.default_rng(1).choice([0.0, 0.5, 2.0], (2, 3, 5))) if weighted else None
    total, counted = 0.0, 0
    for b, i, j in np.ndindex(2, 3, 5):
        y = int(label[b, i, j])
        loss = 0.0
        if y != IGNORE:
            z = [float(logits[b, k, i, j]) for k in range(4)]
            loss = math.log(sum(map(math.exp, z))) - z[y]
            if weight is not None:
                loss *= float(weight[b, i, j])
        total += loss
        counted += {"valid": y != IGNORE, "all": True, "nonzero": loss > 0}[reduction]
    value = cross_entropy(logits, label, weight, reduction=reduction)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(total / counted, rel=1e-12)


def test_reductions_order_by_their_denominators() -> None:
    logits, label = _random(1, 3, 6, 6), _labels(1, 6, 6, classes=3, ignored=0.5)
    kept = float((label != IGNORE).double().mean())
    valid, everything = cross_entropy(logits, label), cross_entropy(logits, label, reduction="all")
    assert float(everything) == pytest.approx(float(valid) * kept, rel=1e-12)


@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_without_any_label_is_zero_and_teaches_nothing(reduction: str) -> None:
    logits = _random(1, 3, 4, 4).requires_grad_()
    value = cross_entropy(logits, torch.full((1, 4, 4), IGNORE), reduction=reduction)  # type: ignore[arg-type]
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_gradient(reduction: str) -> None:
    label, weight = _labels(1, 2, 3, classes=3), torch.rand(1, 2, 3, dtype=torch.float64) + 0.1
    logits = _random(1, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, label, weight, reduction=reduction), logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["shannon", "double_softmax"])
def test_entropy_is_the_loop_over_pixels(form: str) -> None:
    logits, values = _random(2, 5, 2, 3), []
    for b, i, j in np.ndindex(2, 2, 3):
        z = [math.exp(float(logits[b, k, i, j])) for k in range(5)]
        p = [value / sum(z) for value in z]
        if form == "shannon":
            values.append(-sum(q * math.log(q) for q in p))
        else:
            normaliser = math.log(sum(map(math.exp, p)))
            values.append(-sum(q * (q - normaliser) for q in p))
    assert float(entropy(logits, form=form)) == pytest.approx(np.mean(values), rel=1e-12)  # type: ignore[arg-type]


@pytest.mark.parametrize(("form", "lowest"), [("shannon", 0.0), ("double_softmax", math.log(math.e + 19 - 1) - 1)])
def test_entropy_spans_its_stated_range(form: str, lowest: float) -> None:
    certain = torch.zeros(1, 19, 1, 1, dtype=torch.float64)
    certain[:, 3] = 100
    assert float(entropy(certain, form=form)) == pytest.approx(lowest, abs=1e-9)  # type: ignore[arg-type]
    assert float(entropy(0 * certain, form=form)) == pytest.approx(math.log(19), rel=1e-12)  # type: ignore[arg-type]
    between = float(entropy(_random(1, 19, 8, 8), form=form))  # type: ignore[arg-type]
    assert lowest < between < math.log(19)


@pytest.mark.parametrize("form", ["shannon", "double_softmax"])
def test_entropy_gradient(form: str) -> None:
    logits = _random(1, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: entropy(z, form=form), logits)  # type: ignore[arg-type]


def test_entropy_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    for form in ("shannon", "double_softmax"):
        value = entropy(logits, form=form)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


# --- pixel-prototype contrast ---------------------------------------------------------------------------------------


def _contrast_at_full_resolution(
    anchors: Tensor, keys: Tensor, anchor_label: Tensor, key_label: Tensor, classes: int, temperature: float
) -> Tensor:
    """One direction for one pair, step by step: features (A, h, w), labels (H, W)."""
    size, full = tuple(anchors.shape[1:]), tuple(anchor_label.shape)
    small = F.interpolate(key_label[None, None].double(), size=size, mode="nearest")[0, 0].long()
    anchor_small = F.interpolate(anchor_label[None, None].double(), size=size, mode="nearest")[0, 0].long()
    similarity = []
    for c in range(classes):
        cells = [keys[:, i, j] for i, j in np.ndindex(*size) if small[i, j] == c]
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


@pytest.mark.parametrize(("small", "full"), SIZES)
def test_bidirectional_contrast_is_the_loop_at_full_resolution(small: tuple[int, int], full: tuple[int, int]) -> None:
    classes = 5
    fs, ft = _random(2, 6, *small, seed=1).requires_grad_(), _random(2, 6, *small, seed=2).requires_grad_()
    ys, yt = _labels(2, *full, classes=4, seed=3), _labels(2, *full, classes=5, seed=4, ignored=0.5)
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
    label = _labels(3, 11, 14, classes=4)
    counts = cell_label_counts(label, (3, 4), 4)
    for b in range(3):
        for c in range(4):
            assert int(counts[b, c].sum()) == int((label[b] == c).sum())


def test_masked_average_pool_is_the_mean_of_the_cells() -> None:
    feature, label = _random(2, 3, 4, 4), _labels(2, 4, 4, classes=3)
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
    feature = F.normalize(_random(1, 3, 1, 1), dim=1)
    label, both = torch.zeros(1, 1, 1, dtype=torch.int64), torch.ones(1, 4, dtype=torch.float64)
    prototypes = torch.zeros(1, 4, 3, dtype=torch.float64)
    prototypes[0, 0] = feature[0, :, 0, 0]
    present = torch.tensor([[True, False, False, False]])
    value = pixel_prototype_contrast(feature, prototypes, present, label, both, temperature=0.5)
    assert float(value) == pytest.approx(math.log(1 + 3 * math.exp(-4)), rel=1e-9)


def test_without_a_common_class_the_contrast_is_zero_with_finite_gradients() -> None:
    fs, ft = _random(1, 4, 2, 2, seed=1).requires_grad_(), _random(1, 4, 2, 2, seed=2).requires_grad_()
    nothing = torch.full((1, 8, 8), IGNORE)
    for ys, yt in [(torch.zeros_like(nothing), torch.ones_like(nothing)), (torch.zeros_like(nothing), nothing)]:
        forward, backward = bidirectional_contrast(fs, ys, ft, yt, num_classes=3)
        assert float(forward.detach()) == 0 and float(backward.detach()) == 0
        for gradient in torch.autograd.grad(forward + backward, (fs, ft)):
            assert not gradient.any()


def test_a_pair_without_common_class_counts_as_zero_in_the_mean() -> None:
    fs, ft = _random(2, 4, 2, 2, seed=1), _random(2, 4, 2, 2, seed=2)
    ys, yt = torch.zeros(2, 8, 8, dtype=torch.int64), torch.zeros(2, 8, 8, dtype=torch.int64)
    ys[:, :4], yt[1] = 1, 2
    yt[0, 4:] = 1
    joint = bidirectional_contrast(fs, ys, ft, yt, num_classes=3)
    alone = bidirectional_contrast(fs[:1], ys[:1], ft[:1], yt[:1], num_classes=3)
    for both, one in zip(joint, alone, strict=True):
        assert float(one) > 0
        assert float(both) == pytest.approx(float(one) / 2)


def test_a_zero_feature_has_finite_gradients() -> None:
    fs, ft = torch.zeros(1, 4, 2, 2, requires_grad=True), _random(1, 4, 2, 2, dtype=torch.float32).requires_grad_()
    label = torch.tensor([0, 1]).repeat(1, 4, 2)
    forward, backward = bidirectional_contrast(fs, label, ft, label, num_classes=2)
    for gradient in torch.autograd.grad(forward + backward, (fs, ft)):
        assert torch.isfinite(gradient).all()


def test_contrast_gradient() -> None:
    ys, yt = _labels(1, 5, 7, classes=3, seed=1), _labels(1, 5, 7, classes=3, seed=2)
    fs, ft = _random(1, 4, 2, 3, seed=3).requires_grad_(), _random(1, 4, 2, 3, seed=4).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda a, b: bidirectional_contrast(a, ys, b, yt, num_classes=3, temperature=0.5), (fs, ft)
    )


def test_downscaled_labels_are_picked_never_mixed() -> None:
    label = _labels(1, 12, 12, classes=19, ignored=0.5)
    assert torch.equal(downscale_label(label, (3, 4)), label[:, ::4, ::3])
