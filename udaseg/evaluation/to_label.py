"""Which images are worth a person's time: those that a network is least certain of, and that differ most."""

from __future__ import annotations

import numpy as np

_CELLS = 4
_POOL = 5
"""Of so many times as many uncertain images the different ones are taken."""


def layout(probability: np.ndarray) -> np.ndarray:
    """(K * 16,) mean class probabilities in a grid of 4 x 4 cells: what is where in an image.

    Args:
        probability: (K, H, W).
    """
    for axis in (1, 2):
        if probability.shape[axis] < _CELLS:  # a cell would be empty
            probability = probability.repeat(_CELLS, axis)
    rows = np.array_split(probability, _CELLS, axis=1)
    cells = [cell.mean((1, 2)) for row in rows for cell in np.array_split(row, _CELLS, axis=2)]
    return np.concatenate(cells).astype(np.float32)


def label_next(entropy: np.ndarray, layouts: np.ndarray, count: int) -> list[int]:
    """Positions of the images to label next: the least certain one, then those that are most unlike the ones before.

    Of the `5 * count` least certain ones, each next one is the farthest from all that are chosen (the greedy k-center
    of core-set selection, Sener and Savarese, 1708.00489): the least certain alone would be near copies.

    Args:
        entropy: (N,) mean entropy of each image.
        layouts: (N, D), see `layout`.
        count: how many; all where there are fewer.
    """
    pool = np.argsort(-entropy, kind="stable")[: _POOL * count]
    if not len(pool):
        return []
    chosen = [0]
    distance = np.linalg.norm(layouts[pool] - layouts[pool[0]], axis=1)
    while len(chosen) < min(count, len(pool)):
        distance[chosen] = -1  # never twice, even of copies
        chosen.append(int(distance.argmax()))
        distance = np.minimum(distance, np.linalg.norm(layouts[pool] - layouts[pool[chosen[-1]]], axis=1))
    return pool[chosen].tolist()
