"""Labels of another taxonomy: what a pixel that may be of several classes becomes, and an unknown one."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from udaseg.components.relabelling import relabel
from udaseg.types import IGNORE

CLASSES = 5
CANDIDATES = torch.zeros(2, 3, CLASSES, dtype=torch.bool)
CANDIDATES[:, 0, [1, 3]] = True  # id 5
CANDIDATES[:, 1, [0, 2, 4]] = True  # id 6
CANDIDATES[:, 2, [3]] = True  # 255
INDEX = torch.tensor([7, 8])


def given(value: int, size: int = 60) -> Tensor:
    return torch.full((2, size, size), value)


def shares(label: Tensor) -> dict[int, float]:
    found, counts = label.unique(return_counts=True)
    return {int(c): float(n) / label.numel() for c, n in zip(found, counts, strict=True)}


def test_without_a_guess_any_of_the_classes_is_taken_and_unknown_pixels_stay() -> None:
    label = torch.stack([given(5), given(6), given(IGNORE), given(2)], 1).flatten(1, 2)
    found = relabel(label, CANDIDATES, None, INDEX, seed=3)
    parts = [found[:, 60 * i : 60 * (i + 1)] for i in range(4)]
    assert shares(parts[0]) == pytest.approx({1: 0.5, 3: 0.5}, abs=0.03)
    assert shares(parts[1]) == pytest.approx({0: 1 / 3, 2: 1 / 3, 4: 1 / 3}, abs=0.03)
    assert shares(parts[2]) == {IGNORE: 1} and shares(parts[3]) == {2: 1}


@pytest.mark.parametrize("keep", [1.0, 0.4])
def test_a_guess_among_the_classes_is_kept_with_its_probability(keep: float) -> None:
    rest = (1 - keep) / 2
    expected = {c: share for c, share in {0: rest, 2: keep, 4: rest}.items() if share}
    found = relabel(given(6), CANDIDATES, given(2), INDEX, seed=3, keep=keep)
    assert shares(found) == pytest.approx(expected, abs=0.03)
    other = relabel(given(5), CANDIDATES, given(3), INDEX, seed=3, keep=0.0)
    assert shares(other) == {1: 1}


def test_a_guess_that_does_not_fit_is_none() -> None:
    assert shares(relabel(given(5), CANDIDATES, given(4), INDEX, seed=3)) == pytest.approx({1: 0.5, 3: 0.5}, abs=0.03)


def test_unknown_pixels_become_what_the_source_has_none_of() -> None:
    guess = torch.arange(60).remainder(CLASSES).expand(2, 60, 60)
    found = relabel(given(IGNORE), CANDIDATES, guess, INDEX, seed=3, keep=0.5)
    assert torch.equal(found, torch.where(guess == 3, guess, IGNORE))
    only = CANDIDATES[:, 2:]
    assert torch.equal(relabel(given(IGNORE), only, guess, INDEX, seed=3), found)
    assert torch.equal(relabel(given(1), only, guess, INDEX, seed=3), given(1))


def test_draws_are_those_of_the_sample() -> None:
    both = relabel(given(6), CANDIDATES, None, INDEX, seed=3)
    alone = relabel(given(6)[1:], CANDIDATES[1:], None, INDEX[1:], seed=3)
    assert torch.equal(both[1:], alone) and not torch.equal(both[0], both[1])
