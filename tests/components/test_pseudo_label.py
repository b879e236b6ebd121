"""Pseudo-labels on the fly: shares, transfer by prototypes, hybrid labels, certainty."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from draws import labels, normal

from udaseg.components.pseudo_label import confident_share, hybrid_label, nearest_label, prototype_transfer
from udaseg.components.thresholds import threshold_top1
from udaseg.types import IGNORE


def test_confident_share_counts_the_threshold_itself() -> None:
    confidence = torch.tensor([[[0.5, 0.968], [0.97, 0.1]]])
    assert float(confident_share(confidence, 0.968)) == 0.5
    assert float(confident_share(confidence, 0.0)) == 1


def test_transfer_is_the_loop_over_cells() -> None:
    rng = np.random.default_rng(0)
    feature, prototypes = rng.standard_normal((2, 3, 4, 5)), rng.standard_normal((2, 6, 3))
    present = np.array([[1, 1, 0, 1, 0, 0], [0, 1, 1, 1, 1, 1]], bool)
    label = prototype_transfer(
        torch.from_numpy(feature),
        torch.from_numpy(prototypes),
        torch.from_numpy(present),
        temperature=0.1,
        threshold=0.8,
    )
    for b, i, j in np.ndindex(2, 4, 5):
        f = feature[b, :, i, j]
        cosine = np.array([p @ f / np.linalg.norm(p) / np.linalg.norm(f) for p in prototypes[b]])
        cosine[~present[b]] = -1
        probability = np.exp(cosine / 0.1) / np.exp(cosine / 0.1).sum()
        best = int(probability.argmax())
        assert int(label[b, i, j]) == (best if probability[best] > 0.8 else IGNORE)
    assert (label == IGNORE).any() and (label != IGNORE).any()


def test_transfer_gives_no_absent_class_and_no_gradient() -> None:
    feature = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_()
    present = torch.tensor([[False, True], [False, False]])
    label = prototype_transfer(feature, torch.ones(2, 2, 3), present, temperature=10.0, threshold=0.0)
    assert (label[0] == 1).sum() > 0 and not (label[0] == 0).any(), "class 0 has no prototype"
    assert (label[1] == IGNORE).all(), "without any prototype nothing is known"
    assert not label.requires_grad


def test_fill_keeps_what_is_known_and_upsamples_the_rest() -> None:
    static = torch.full((1, 4, 4), IGNORE)
    static[0, 0, 0] = 7
    filled = hybrid_label(static, torch.tensor([[[1, 2], [IGNORE, 3]]]))
    x = IGNORE
    assert filled.tolist() == [[[7, 1, 2, 2], [1, 1, 2, 2], [x, x, 3, 3], [x, x, 3, 3]]]


def test_what_networks_disagree_on_is_never_kept() -> None:
    label, confidence = np.zeros((2, 3), np.int64), np.array([[0, 0.5, 0.9], [0, 0.2, 0]], np.float32)
    kept = threshold_top1(label, confidence, np.zeros(1, np.float32), 1.0)
    assert np.array_equal(kept != IGNORE, confidence > 0)


def test_certainty_is_one_minus_the_normalised_entropy() -> None:
    from udaseg.components.pseudo_label import normalised_certainty

    probability = torch.tensor([[1.0, 0, 0, 0], [0.25] * 4, [0.5, 0.5, 0, 0], [0.7, 0.1, 0.1, 0.1]]).T[None, :, :, None]
    got = normalised_certainty(probability)[0, :, 0]
    expected = []
    for column in probability[0, :, :, 0].T.tolist():
        entropy = -sum(p * np.log(p) for p in column if p > 0)
        expected.append(1 - entropy / np.log(4))
    np.testing.assert_allclose(got.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize("rows", [5, 1000])
def test_a_cell_takes_the_class_on_which_its_neighbours_agree(rows: int) -> None:
    feature, memory = normal(2, 3, 4, 5), normal(17, 3, seed=1)
    memory_label = labels(17, classes=3, seed=2)
    given = nearest_label(feature, memory, memory_label, num_classes=4, neighbours=5, agreeing=3, rows=rows)
    known = [(m, c) for m, c in zip(memory, memory_label.tolist(), strict=True) if c != IGNORE]
    for b, i, j in np.ndindex(2, 4, 5):
        nearest = sorted(known, key=lambda entry: -float(feature[b, :, i, j] @ entry[0]))[:5]
        classes = [c for _, c in nearest]
        agreed = [c for c in set(classes) if classes.count(c) >= 3]
        assert int(given[b, i, j]) == (agreed[0] if agreed else IGNORE)
    assert (given == IGNORE).any() and (given != IGNORE).any()
    few = memory_label.clone()
    few[2:] = IGNORE
    assert (nearest_label(feature, memory, few, num_classes=4, neighbours=5, agreeing=3) == IGNORE).all()
