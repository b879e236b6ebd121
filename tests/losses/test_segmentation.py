"""Losses on logits against loops written from the equations."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal
from fake_gpu import GPU, fake_gpu

from udaseg.losses.segmentation import (
    LovaszClasses,
    cross_entropy,
    entropy,
    focal_cross_entropy,
    logit_adjusted,
    lovasz_softmax,
    negative_learning,
    reverse_cross_entropy,
    unbiased_cross_entropy,
    uniform_divergence,
)
from udaseg.types import IGNORE, SegOutput


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_is_the_loop_over_pixels(reduction: str, weighted: bool) -> None:
    logits, label = normal(2, 4, 3, 5), labels(2, 3, 5, classes=4)
    weight = torch.from_numpy(np.random.default_rng(1).choice([0.0, 0.5, 2.0], (2, 3, 5))) if weighted else None
    total, counted = 0.0, 0
    for b, i, j in np.ndindex(2, 3, 5):
        y = int(label[b, i, j])
        loss = 0.0
        if y != IGNORE:
            z = [float(logits[b, k, i, j]) for k in range(4)]
            loss = math.log(sum(map(math.exp, z))) - z[y]
        total += loss if weight is None else loss * float(weight[b, i, j])
        counted += {"valid": y != IGNORE, "all": True, "nonzero": loss > 0}[reduction]
    value = cross_entropy(logits, label, weight, reduction=reduction)  # type: ignore[arg-type]
    assert float(value) == pytest.approx(total / counted, rel=1e-12)


def test_reductions_order_by_their_denominators() -> None:
    logits, label = normal(1, 3, 6, 6), labels(1, 6, 6, classes=3, ignored=0.5)
    kept = float((label != IGNORE).double().mean())
    valid, everything = cross_entropy(logits, label), cross_entropy(logits, label, reduction="all")
    assert float(everything) == pytest.approx(float(valid) * kept, rel=1e-12)


@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_without_any_label_is_zero_and_teaches_nothing(reduction: str) -> None:
    logits = normal(1, 3, 4, 4).requires_grad_()
    value = cross_entropy(logits, torch.full((1, 4, 4), IGNORE), reduction=reduction)  # type: ignore[arg-type]
    value.backward()
    assert float(value.detach()) == 0
    assert logits.grad is not None and not logits.grad.any()


@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_cross_entropy_gradient(reduction: str) -> None:
    label, weight = labels(1, 2, 3, classes=3), torch.rand(1, 2, 3, dtype=torch.float64) + 0.1
    logits = normal(1, 3, 2, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, label, weight, reduction=reduction), logits)  # type: ignore[arg-type]


@pytest.mark.parametrize("form", ["shannon", "double_softmax"])
def test_entropy_is_the_loop_over_pixels(form: str) -> None:
    logits, values = normal(2, 5, 2, 3), []
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
    between = float(entropy(normal(1, 19, 8, 8), form=form))  # type: ignore[arg-type]
    assert lowest < between < math.log(19)


@pytest.mark.parametrize("form", ["shannon", "double_softmax"])
def test_entropy_gradient(form: str) -> None:
    logits = normal(1, 4, 2, 2).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: entropy(z, form=form), logits)  # type: ignore[arg-type]


def test_entropy_of_extreme_logits_is_finite() -> None:
    logits = torch.tensor([1e4, -1e4, 0.0]).view(1, 3, 1, 1).requires_grad_()
    for form in ("shannon", "double_softmax"):
        value = entropy(logits, form=form)
        (gradient,) = torch.autograd.grad(value, logits)
        assert torch.isfinite(value) and torch.isfinite(gradient).all()


def test_negative_learning_is_the_loop_over_pixels() -> None:
    logits = normal(2, 5, 3, 3)
    for place in (1, 3, 5):
        values = []
        for n, i, j in np.ndindex(2, 3, 3):
            p = sorted(logits[n, :, i, j].softmax(0).tolist(), reverse=True)
            values.append(-math.log(1 - p[place - 1]))
        assert negative_learning(logits, place).item() == pytest.approx(np.mean(values), rel=1e-9)
    with pytest.raises(ValueError, match="place is 6"):
        negative_learning(logits, 6)


@pytest.mark.parametrize("gamma", [0.0, 0.5, 2.0])
def test_focal_cross_entropy_is_the_loop_over_pixels(gamma: float) -> None:
    logits, label = (3 * normal(2, 4, 3, 5)).requires_grad_(), labels(2, 3, 5, classes=4)
    p = logits.softmax(1)
    total, count = torch.zeros(()), 0
    for b, y, x in np.ndindex(2, 3, 5):
        if label[b, y, x] != IGNORE:
            q = p[b, int(label[b, y, x]), y, x]
            total, count = total - (1 - q) ** gamma * q.log(), count + 1
    found = focal_cross_entropy(logits, label, gamma=gamma)
    torch.testing.assert_close(found, (total / count).to(found.dtype))
    (expected,) = torch.autograd.grad(total / count, logits)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected)
    if gamma == 0:
        torch.testing.assert_close(found, cross_entropy(logits, label))


def test_focal_cross_entropy_without_labels_or_doubt_teaches_nothing() -> None:
    sure = torch.zeros(1, 3, 2, 2)
    sure[:, 1] = 80.0
    for label, cost in ((IGNORE, 0.0), (1, 0.0), (2, -math.log(1e-9))):
        logits = sure.clone().requires_grad_()
        loss = focal_cross_entropy(logits, torch.full((1, 2, 2), label))
        loss.backward()
        assert float(loss.detach()) == pytest.approx(cost, abs=1e-6)
        assert logits.grad is not None and not logits.grad.any()


def test_lovasz_softmax_is_zero_where_all_is_right_and_sees_no_ignored_pixel() -> None:
    label = labels(2, 6, 6, classes=3)
    right = 50 * F.one_hot(label.clamp_max(2), 3).permute(0, 3, 1, 2).double()
    assert lovasz_softmax(right, label).item() == pytest.approx(0, abs=1e-6)
    logits = normal(2, 3, 6, 6)
    other = torch.where((label == IGNORE)[:, None], 100 * normal(2, 3, 6, 6, seed=1), logits)
    assert lovasz_softmax(logits, label).item() == pytest.approx(lovasz_softmax(other, label).item(), rel=1e-12)
    logits.requires_grad_()
    nothing = lovasz_softmax(logits, torch.full_like(label, IGNORE))
    nothing.backward()
    assert nothing.item() == 0 and logits.grad is not None and not logits.grad.any()


def test_lovasz_softmax_is_the_extension_of_the_jaccard_loss() -> None:
    """At one-hot predictions the surrogate equals the mean over classes of 1 - IoU."""
    truth, guess = labels(1, 5, 5, classes=3, ignored=0), labels(1, 5, 5, classes=3, seed=4, ignored=0)
    hard = 1000 * F.one_hot(guess, 3).permute(0, 3, 1, 2).double()
    missed = [1 - float(((truth == c) & (guess == c)).sum() / ((truth == c) | (guess == c)).sum()) for c in range(3)]
    assert lovasz_softmax(hard, truth).item() == pytest.approx(np.mean(missed), rel=1e-6)


def test_lovasz_softmax_of_the_classes_present_is_the_mean_of_their_extensions() -> None:
    """Berman et al.'s Algorithm 1: errors from the largest on, each with its step of the Jaccard loss."""
    logits, label = normal(2, 4, 5, 6).requires_grad_(), labels(2, 5, 6, classes=3)
    label[1][label[1] == 0] = 2  # of four classes the images show three and two
    total = logits.sum() * 0
    for image, truth in zip(logits.softmax(1), label, strict=True):
        known = truth != IGNORE
        shown = [c for c in range(4) if (truth == c).any()]
        for c in shown:
            fore = (truth[known] == c).double()
            error, order = (fore - image[c][known]).abs().sort(descending=True)
            fore, before = fore[order], 0.0
            for n in range(len(fore)):
                missed, wrong = fore[: n + 1].sum(), (1 - fore[: n + 1]).sum()
                jaccard = float(1 - (fore.sum() - missed) / (fore.sum() + wrong))
                total = total + error[n] * (jaccard - before) / len(shown) / 2
                before = jaccard
    assert [len(truth[truth != IGNORE].unique()) for truth in label] == [3, 2]
    found = lovasz_softmax(logits, label, classes="present")
    assert found.item() == pytest.approx(total.item(), rel=1e-6) != lovasz_softmax(logits, label).item()
    (expected,) = torch.autograd.grad(total, logits, retain_graph=True)
    torch.testing.assert_close(torch.autograd.grad(found, logits)[0], expected, rtol=1e-5, atol=1e-9)
    assert lovasz_softmax(logits, torch.full_like(label, IGNORE), classes="present") == 0


@pytest.mark.parametrize("classes", ["all", "present"])
def test_lovasz_softmax_keeps_its_gradient_alone_for_the_backward_pass(classes: LovaszClasses) -> None:
    logits, label = normal(2, 4, 5, 6).requires_grad_(), labels(2, 5, 6, classes=3)
    loss = lovasz_softmax(2 * logits, label, classes=classes)
    made = loss.grad_fn
    assert made is not None and [kept.shape for kept in made.saved_tensors] == [logits.shape]  # type: ignore[attr-defined]
    assert [node.name() for node, _ in made.next_functions if node is not None] == ["MulBackward0"]
    (0.5 * loss).backward()
    one = logits.detach()[:1].requires_grad_()
    lovasz_softmax(2 * one, label[:1], classes=classes).backward()
    assert logits.grad is not None and one.grad is not None
    torch.testing.assert_close(4 * logits.grad[:1], one.grad, rtol=1e-12, atol=0)


@pytest.mark.parametrize("classes", ["all", "present"])
def test_lovasz_softmax_waits_for_no_gpu(classes: LovaszClasses) -> None:
    with fake_gpu():
        logits, label = normal(2, 4, 5, 6).to(GPU, non_blocking=True), labels(2, 5, 6, classes=3)
        lovasz_softmax(logits, label.to(GPU, non_blocking=True), classes=classes)


def test_reverse_cross_entropy_takes_the_label_s_logarithm() -> None:
    logits, label = normal(2, 4, 3, 3).requires_grad_(), labels(2, 3, 3, classes=4)
    total, count = logits.sum() * 0, 0
    for b, i, j in (label != IGNORE).nonzero().tolist():
        for k in range(4):
            total = total - logits[b, :, i, j].softmax(0)[k] * math.log(1.0 if k == label[b, i, j] else 1e-4)
        count += 1
    (wanted,) = torch.autograd.grad(total / count, logits)
    found = reverse_cross_entropy(logits, label)
    (gradient,) = torch.autograd.grad(found, logits)
    assert found.item() == pytest.approx(total.item() / count, rel=1e-6)
    torch.testing.assert_close(gradient, wanted, rtol=1e-6, atol=1e-9)
    assert reverse_cross_entropy(logits, torch.full_like(label, IGNORE)).item() == 0


def test_uniform_divergence_is_least_for_predictions_without_a_preference() -> None:
    logits = normal(2, 4, 3, 3)
    expected = sum(-math.log(p) for p in logits.softmax(1).flatten().tolist()) / logits.numel()
    assert uniform_divergence(logits).item() == pytest.approx(expected, rel=1e-9)
    assert uniform_divergence(torch.zeros(1, 4, 2, 2)).item() == pytest.approx(math.log(4))
    assert uniform_divergence(3 * logits) > uniform_divergence(logits) > math.log(4)


@pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
def test_adjusted_logits_are_raised_by_the_power_of_the_share(power: float) -> None:
    logits, detail, shares = normal(2, 3, 4, 5), normal(2, 3, 2, 2), torch.tensor([0.7, 0.25, 0.05])
    out = SegOutput(logits=logits, embedding=logits, aux={"detail_logits": detail, "coarse_logits": detail})
    adjusted = logit_adjusted(out, shares, power)
    probability, before = adjusted.logits.softmax(1), logits.softmax(1)
    for b, i, j in np.ndindex(2, 4, 5):
        raised = [float(before[b, c, i, j]) * float(shares[c]) ** power for c in range(3)]
        assert probability[b, :, i, j].tolist() == pytest.approx([r / sum(raised) for r in raised], rel=1e-5)
    assert torch.allclose(adjusted.aux["detail_logits"] - detail, power * shares.log()[:, None, None].double())
    assert adjusted.aux["coarse_logits"] is detail, "what predicts stays as it is"


def test_unbiased_cross_entropy_is_the_loop_over_pixels() -> None:
    logits, label = normal(2, 5, 3, 4).requires_grad_(), labels(2, 3, 4, classes=5)
    total = logits.sum() * 0
    for b, i, j in np.ndindex(2, 3, 4):
        y, probability = int(label[b, i, j]), logits[b, :, i, j].softmax(0)
        if y != IGNORE:
            total = total - (probability[:3].sum() if y < 3 else probability[y]).log()
    expected = total / label.numel()
    (wanted,) = torch.autograd.grad(expected, logits)
    crop = {"detail_logits": logits, "detail_at": torch.zeros(2, 2, dtype=torch.int64)}  # that shows the whole
    for aux in ({}, crop):
        loss = unbiased_cross_entropy(SegOutput(logits=logits, embedding=logits, aux=aux), label, 3)
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == pytest.approx(expected.item(), rel=1e-9)
        torch.testing.assert_close(gradient, wanted)
