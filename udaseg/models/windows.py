"""Windows that slide over an image."""

from __future__ import annotations


def window_starts(length: int, window: int, overlap: float, unit: int = 1) -> list[int]:
    """Where windows begin along one axis, so that they cover it and the last one ends with it.

    Args:
        length: pixels of the axis.
        window: pixels of a window.
        overlap: share of a window that the next one covers again, in [0, 1).
        unit: windows begin at multiples of it; length and window are multiples too.
    """
    if length <= window:
        return [0]
    stride = max(unit, int(window * (1 - overlap) + 1e-6) // unit * unit)  # 640 * (1 - 0.8) is a little below 128
    return [*range(0, length - window, stride), length - window]
