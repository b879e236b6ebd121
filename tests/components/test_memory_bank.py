"""A memory bank against lists of bounded length, on two ranks too."""

from __future__ import annotations

from collections import deque

import numpy as np
import torch
from draws import labels, normal
from torch import Tensor
from two_ranks import TwoRanks

from udaseg.components.memory_bank import EMPTY, MemoryBank, PixelQueue
from udaseg.losses.contrastive import mean_feature_regulariser

CLASSES, CHANNELS, LENGTH = 4, 3, 3


def _pixels(step: int, part: slice = slice(None)) -> tuple[Tensor, Tensor]:
    """Classes 0 to 2 of 4; the last steps show class 0 alone."""
    label = labels(8, classes=1 if step > 3 else 3, seed=step)
    return normal(8, CHANNELS, seed=step, dtype=torch.float32)[part], label[part]


def test_the_bank_keeps_the_last_means_and_forgets_the_zero_vector_it_began_with() -> None:
    bank = MemoryBank(CLASSES, CHANNELS, LENGTH)
    lists = [deque([np.zeros(CHANNELS)], maxlen=LENGTH) for _ in range(CLASSES)]
    for step in range(7):
        feature, label = _pixels(step)
        bank.update(feature, label)
        for c in range(CLASSES):
            if (label == c).any():
                lists[c].append(feature[label == c].double().mean(0).numpy())
        for c, kept in enumerate(lists):
            assert int(bank.filled[c]) == len(kept)
            mine = bank.entries[c, : len(kept)].double().numpy()
            np.testing.assert_allclose(np.sort(mine, 0), np.sort(np.stack(kept), 0), rtol=1e-5, atol=1e-7)
    assert int(bank.filled[0]) == LENGTH and bank.entries[0].any(1).all()
    assert int(bank.filled[3]) == 1 and not bank.entries[3].any()
    assert set(bank.state_dict()) == {"entries", "pushed"}


def _filled(rank: int | None) -> list[np.ndarray]:
    """A bank, and the gradient of the mean pixel's term, which is no sum over pixels."""
    part = {None: slice(None), 0: slice(0, 3), 1: slice(3, None)}[rank]
    bank = MemoryBank(CLASSES, CHANNELS, LENGTH)
    for step in range(5):
        bank.update(*_pixels(step, part))
    feature, label = _pixels(0, part)
    scale = torch.ones(CHANNELS, requires_grad=True)  # a parameter that all pixels share
    value = mean_feature_regulariser(feature * scale, label, normal(3, CHANNELS).float(), temperature=0.5)
    value.backward()
    assert scale.grad is not None
    return [v.detach().numpy() for v in (bank.entries, bank.pushed, value, scale.grad)]


def test_on_two_ranks_the_bank_and_the_mean_pixel_s_term_are_those_of_one(two_ranks: TwoRanks) -> None:
    one, both = _filled(None), two_ranks.run(_filled)
    for mine, first, second in zip(one[:3], both[0][:3], both[1][:3], strict=True):
        assert np.array_equal(first, second)
        np.testing.assert_allclose(mine, first, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(one[3], (both[0][3] + both[1][3]) / 2, rtol=1e-5, atol=1e-6)


def _queue(rank: int | None) -> list[np.ndarray]:
    """A queue of 7 after three steps of 4 samples, the last of which are pushed by two ranks."""
    part = {None: slice(None), 0: slice(0, 2), 1: slice(2, None)}[rank]
    queue = PixelQueue(7, CHANNELS)
    for step in range(3):
        feature, label = normal(4, 1, CHANNELS, seed=step).float(), labels(4, 1, classes=3, seed=step)
        queue.push(feature[part], label[part])
    return [queue.entries.numpy(), queue.labels.numpy()]


def test_a_queue_holds_the_last_pixels_in_their_order_on_two_ranks_too(two_ranks: TwoRanks) -> None:
    entries, label = _queue(None)
    expected = torch.cat([normal(4, CHANNELS, seed=step).float() for step in range(3)])[-7:]
    assert np.array_equal(entries, expected.numpy())
    assert label.tolist() == torch.cat([labels(4, classes=3, seed=step) for step in range(3)])[-7:].tolist()
    for both in two_ranks.run(_queue):
        assert np.array_equal(both[0], entries) and np.array_equal(both[1], label)


def test_a_queue_takes_more_than_it_holds_and_begins_empty() -> None:
    queue = PixelQueue(3, CHANNELS)
    assert (queue.labels == EMPTY).all()
    queue.push(normal(2, 1, CHANNELS), torch.tensor([[4], [5]]))
    assert queue.labels.tolist() == [EMPTY, 4, 5]
    queue.push(normal(1, 5, CHANNELS), torch.arange(5)[None])
    assert queue.labels.tolist() == [2, 3, 4]
    assert set(queue.state_dict()) == {"entries", "labels"}
