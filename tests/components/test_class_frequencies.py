"""Running shares of classes against counts, over steps and on two ranks."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor
from two_ranks import TwoRanks

from udaseg.components.class_frequencies import LEAST, ClassFrequencies
from udaseg.types import IGNORE


def _label(step: int) -> Tensor:
    rng = np.random.default_rng([step, 3])
    return torch.from_numpy(rng.choice([0, 1, 2, IGNORE], p=[0.7, 0.2, 0.05, 0.05], size=(4, 5, 6)))


def test_shares_are_those_of_the_faded_counts() -> None:
    running = ClassFrequencies(4, momentum=0.5)
    counts = np.zeros(4)
    for step in range(3):
        running.update(_label(step))
        counts = counts * 0.5 + [int((_label(step) == c).sum()) for c in range(4)]
    expected = np.maximum(counts / counts.sum(), LEAST)
    np.testing.assert_allclose(running.shares().numpy(), expected, rtol=1e-6)
    assert float(running.shares()[3]) == pytest.approx(LEAST), "not seen, but with a finite logarithm"


def test_all_classes_are_alike_until_a_label_is_seen() -> None:
    running = ClassFrequencies(4)
    running.update(torch.full((1, 2, 2), IGNORE))
    assert running.shares().tolist() == [0.25] * 4


def _seen(rank: int | None) -> np.ndarray:
    running = ClassFrequencies(4)
    for step in range(2):
        running.update(_label(step)[{None: slice(None), 0: slice(0, 1), 1: slice(1, 4)}[rank]])
    return running.shares().numpy()


def test_two_ranks_equal_one(two_ranks: TwoRanks) -> None:
    one = _seen(None)
    assert all(np.array_equal(one, found) for found in two_ranks.run(_seen))


def test_shares_stay_while_no_step_shows_a_label() -> None:
    frequencies = ClassFrequencies(3)
    frequencies.update(torch.tensor([1, 1, 1, 0]))
    before = frequencies.shares()
    for _ in range(3000):
        frequencies.update(torch.tensor([255]))
    torch.testing.assert_close(frequencies.shares(), before)
