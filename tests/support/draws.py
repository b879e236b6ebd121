"""Numbers and labels drawn from a seed, for losses that are compared with loops."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from udaseg.types import IGNORE


def normal(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.from_numpy(np.random.default_rng(seed).standard_normal(shape)).to(dtype)


def labels(*shape: int, classes: int, seed: int = 0, ignored: float = 0.2) -> Tensor:
    """Train ids in [0, classes), about a share `ignored` of them 255."""
    rng = np.random.default_rng(seed)
    label = rng.integers(0, classes, shape)
    label[rng.random(shape) < ignored] = IGNORE
    return torch.from_numpy(label)
