"""What the host draws or knows for a step, brought to the device without waiting for it."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import torch
from torch import Tensor


def on_device(drawn: np.ndarray, device: torch.device) -> Tensor:
    """The numbers of an array on a device.

    A copy to a GPU from memory that is not pinned may wait for what the GPU computes, however it is asked for, where
    it is of more than some ten kilobytes.
    """
    values = torch.from_numpy(drawn)
    return values.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else values.to(device)


def among(label: Tensor, classes: Iterable[int]) -> Tensor:
    """Where uint8 or int64 train ids of any shape are of some classes, bool. `torch.isin` may sort, and wait."""
    chosen = np.zeros(256, bool)
    chosen[list(classes)] = True
    return on_device(chosen, label.device)[label.long()]
