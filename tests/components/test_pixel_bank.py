"""Cells drawn by class, and a bank of them against lists of bounded length, on two ranks too."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from draws import labels, normal
from torch import Tensor
from two_ranks import TwoRanks

from udaseg.components.pixel_bank import PixelBank, cells_at, draw_cells
from udaseg.types import IGNORE

CLASSES, CHANNELS, LENGTH, COUNT = 4, 3, 5, 2


def _step(step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor, Tensor]:
    """Class 3 is never seen, and only class 0 from step 3 on."""
    label = labels(4, 3, 4, classes=1 if step > 2 else 3, seed=step, ignored=0.3)
    feature = normal(4, CHANNELS, 3, 4, seed=step, dtype=torch.float32)
    return feature[part], label[part], torch.arange(4)[part] + 100 * step


def test_cells_of_every_class_are_drawn_by_the_sample_s_key() -> None:
    feature, label, index = _step(0)
    label[0, 0] = 1
    label[1][label[1] == 2] = IGNORE
    places, drawn = draw_cells(label, index, count=3, num_classes=CLASSES, seed=0, purpose="test")
    cells = cells_at(feature, places)
    for b, c in np.ndindex(4, CLASSES):
        here = [place for place, is_drawn in zip(places[b, c].tolist(), drawn[b, c].tolist(), strict=True) if is_drawn]
        assert len(set(here)) == len(here) == min(3, int((label[b] == c).sum()))
        assert all(label[b].flatten()[place] == c for place in here)
        for n, place in enumerate(places[b, c].tolist()):
            assert torch.equal(cells[b, c, n], feature[b].flatten(1)[:, place])
    alone, _ = draw_cells(label[2:3], index[2:3], count=3, num_classes=CLASSES, seed=0, purpose="test")
    assert torch.equal(alone[drawn[2:3]], places[2:3][drawn[2:3]])
    other, _ = draw_cells(label, index, count=3, num_classes=CLASSES, seed=1, purpose="test")
    assert not torch.equal(other[drawn], places[drawn])


def test_the_bank_keeps_the_last_pixels_of_each_class() -> None:
    bank = PixelBank(CLASSES, CHANNELS, LENGTH)
    lists: list[deque[list[float]]] = [deque(maxlen=LENGTH) for _ in range(CLASSES)]
    for step in range(6):
        feature, label, index = _step(step)
        bank.update(feature, label, index, count=COUNT, seed=0, purpose="test")
        places, drawn = draw_cells(label, index, count=COUNT, num_classes=CLASSES, seed=0, purpose="test")
        for b, c, n in np.ndindex(4, CLASSES, COUNT):
            if drawn[b, c, n]:
                lists[c].append(feature[b].flatten(1)[:, places[b, c, n]].tolist())
        for c, kept in enumerate(lists):
            mine = bank.pixels[bank.labels == c]
            assert len(mine) == len(kept) == min(int(bank.pushed[c]), LENGTH)
            assert sorted(mine.tolist()) == sorted(kept)
    assert len(lists[0]) == LENGTH < int(bank.pushed[0]) and not lists[3]
    assert set(bank.state_dict()) == {"entries", "pushed"} and (bank.labels == IGNORE).sum() >= LENGTH


def test_more_pixels_than_a_bank_holds_leave_the_last() -> None:
    bank = PixelBank(1, 1, 3)
    feature = torch.arange(8.0).view(2, 1, 2, 2)
    bank.update(feature, torch.zeros(2, 2, 2, dtype=torch.long), torch.arange(2), count=4, seed=0, purpose="test")
    places, _ = draw_cells(
        torch.zeros(2, 2, 2, dtype=torch.long), torch.arange(2), count=4, num_classes=1, seed=0, purpose="test"
    )
    assert sorted(bank.pixels.flatten().tolist()) == sorted((4 + places[1, 0, 1:]).tolist())


def _filled(rank: int | None) -> list[np.ndarray]:
    part = {None: slice(None), 0: slice(0, 2), 1: slice(2, None)}[rank]
    bank = PixelBank(CLASSES, CHANNELS, LENGTH)
    for step in range(4):
        bank.update(*_step(step, part), count=COUNT, seed=0, purpose="test")
    return [bank.entries.numpy(), bank.pushed.numpy()]


def test_on_two_ranks_the_bank_is_that_of_one(two_ranks: TwoRanks) -> None:
    one, (first, second) = _filled(None), two_ranks.run(_filled)
    for alone, mine, theirs in zip(one, first, second, strict=True):
        assert np.array_equal(alone, mine) and np.array_equal(mine, theirs)
