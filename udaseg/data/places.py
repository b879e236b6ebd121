"""Where the classes of a dataset lie in its images: how often each is labelled at each place of a grid.

Without torch, for the tasks that read what is stored.
"""

from __future__ import annotations

import numpy as np

GRID = (64, 128)
"""Rows and columns of places, whatever the size of an image."""
WINDOW = 5
"""Places a side that a frequency is the mean of: 80 of 1024 x 2048 pixels."""


def at_places(label: np.ndarray) -> np.ndarray:
    """(64 * 128,) of what a (H, W) map has in the middle of each place."""
    rows, columns = (
        ((np.arange(places) + 0.5) * side / places).astype(np.int64)
        for places, side in zip(GRID, label.shape, strict=True)
    )
    return label[rows[:, None], columns].ravel()


def count_places(train_ids: np.ndarray, num_classes: int) -> np.ndarray:
    """(K, 64 * 128) int64: how many of N images have each class at each place; (N, 64 * 128), 255 = ignore."""
    slot = train_ids.astype(np.int64) * train_ids.shape[1] + np.arange(train_ids.shape[1])
    counts = np.bincount(slot[train_ids < num_classes], minlength=num_classes * train_ids.shape[1])
    return counts.reshape(num_classes, train_ids.shape[1])


def spatial_prior(counts: np.ndarray) -> np.ndarray:
    """(K, 64, 128) float32 of `count_places`: the share that each class has of the labels around a place.

    Shares of a place add up to 1; where nothing is labelled around, all are alike. Source: the spatial priors of CBST
    (1810.07911), frequencies in the source's labels that a window of 70 x 70 pixels smooths, as CAMix (2108.03557) uses
    them. Both come as files there; the grid and the window are ours.
    """
    margin = WINDOW // 2
    sums = np.pad(counts.reshape(-1, *GRID).astype(np.float64), ((0, 0), (margin, margin), (margin, margin)))
    for axis in (1, 2):
        sums = np.lib.stride_tricks.sliding_window_view(sums, WINDOW, axis).sum(-1)
    total = sums.sum(0)
    return np.where(total > 0, sums / np.maximum(total, 1), 1 / len(sums)).astype(np.float32)
