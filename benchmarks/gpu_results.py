"""What the parts of `benchmarks.gpu` are told, and what they say. Only the standard library is imported here too."""

from __future__ import annotations

import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import Any

Result = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every part is told."""

    device: str = "cuda"
    tiny: bool = False
    """Small networks and images, few recipes and steps: for a CPU, to try all of the code."""


def described(error: BaseException) -> str:
    """An error's kind, message and the last lines of code that it came through."""
    frames = traceback.extract_tb(error.__traceback__)[-3:]
    places = " < ".join(f"{Path(frame.filename).name}:{frame.lineno}" for frame in reversed(frames))
    return f"{type(error).__name__}: {' '.join(str(error).split())[:500]} ({places})"
