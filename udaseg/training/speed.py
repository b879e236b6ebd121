"""How fast a worker trains, what it waits for and how much memory it takes."""

from __future__ import annotations

import contextlib
import resource
import sys
import time
from collections.abc import Iterator
from typing import Literal

import torch

_NOTHING = {"wait": 0.0, "host": 0.0}


class Speed:
    """How fast steps are done since it was last asked, and how much of the time went into waiting for data."""

    def __init__(self, step: int, *, images: int) -> None:
        self._images = images  # of a step, over all ranks
        self._since, self._step, self._spent = time.monotonic(), step, dict(_NOTHING)

    @contextlib.contextmanager
    def timing(self, what: Literal["wait", "host"]) -> Iterator[None]:
        """Of the block: waiting for data, or queueing a step, which on a CPU is computing it."""
        began = time.monotonic()
        yield
        self._spent[what] += time.monotonic() - began

    def take(self, step: int) -> dict[str, float]:
        """What is measured, which begins anew."""
        now = time.monotonic()
        took, steps = now - self._since, step - self._step
        found = {
            "images_per_second": steps * self._images / took,
            "data_wait": self._spent["wait"] / took,
            "step_seconds": took / steps,
            "host_seconds": self._spent["host"] / steps,
        }
        self._since, self._step, self._spent = now, step, dict(_NOTHING)
        return found


def peak_memory(device: torch.device) -> float:
    """MiB that this process has held at its peak: allocated on a GPU, resident on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
