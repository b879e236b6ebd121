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
