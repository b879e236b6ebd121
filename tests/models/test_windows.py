"""Windows cover an axis."""

from __future__ import annotations

import numpy as np
import pytest

from udaseg.models.windows import window_starts


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(10, 4, 0.5), (11, 4, 0.0), (7, 7, 0.5), (5, 9, 0.5), (100, 3, 0.9)]
)
def test_windows_cover_the_axis_and_end_with_it(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        assert start >= 0 and (start + window <= length or starts == [0])
        covered[start : start + window] += 1
    assert covered.min() >= 1 and starts == sorted(set(starts))


@pytest.mark.parametrize("window", [100, 640, 720, 1000])
@pytest.mark.parametrize("tenths", range(1, 10))
def test_the_stride_is_the_whole_share_that_windows_do_not_overlap(window: int, tenths: int) -> None:
    """640 * (1 - 0.8) is a little below 128 in floating point."""
    starts = window_starts(3 * window, window, tenths / 10)
    assert starts[1] == window * (10 - tenths) // 10


def test_windows_begin_at_whole_units() -> None:
    assert window_starts(96, 32, 0.5, 32) == [0, 32, 64]
