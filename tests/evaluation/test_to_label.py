"""The images to label next."""

from __future__ import annotations

import numpy as np
import pytest

from udaseg.evaluation.to_label import label_next, layout


def test_layout_is_what_is_where() -> None:
    probability = np.zeros((2, 8, 12), np.float32)
    probability[0, :4], probability[1, 4:] = 1, 1
    cells = layout(probability).reshape(16, 2)
    assert cells[:8] == pytest.approx(np.tile([1, 0], (8, 1))) and cells[8:] == pytest.approx(np.tile([0, 1], (8, 1)))


@pytest.mark.parametrize("size", [(1, 1), (3, 3), (2, 4), (4, 4)])
def test_layout_of_a_few_pixels(size: tuple[int, int]) -> None:
    probability = np.random.default_rng(0).dirichlet([1, 1, 1], size).transpose(2, 0, 1)
    cells = layout(probability).reshape(4, 4, 3)
    assert cells.sum(2) == pytest.approx(np.ones((4, 4)))
    corners = [cells[i, j] for i in (0, -1) for j in (0, -1)]
    assert np.array(corners) == pytest.approx(np.array([probability[:, i, j] for i in (0, -1) for j in (0, -1)]))


def test_the_least_certain_comes_first_and_copies_last() -> None:
    entropy = np.array([0.1, 0.9, 0.89, 0.88, 0.5])
    layouts = np.array([[0, 0], [1, 1], [1, 1], [5, 5], [1, 2]], np.float32)
    assert label_next(entropy, layouts, 4) == [1, 3, 0, 4]


def test_certain_images_are_left_out() -> None:
    entropy = np.linspace(1, 0, 100)
    layouts = np.random.default_rng(0).normal(size=(100, 4))
    chosen = label_next(entropy, layouts, 4)
    assert len(set(chosen)) == 4 and max(chosen) < 20 and chosen[0] == 0


def test_of_few_images_all_are_chosen() -> None:
    same = np.ones((3, 2))
    assert sorted(label_next(np.array([0.2, 0.1, 0.3]), same, 20)) == [0, 1, 2]
    assert label_next(np.zeros(0), np.zeros((0, 2)), 20) == []
