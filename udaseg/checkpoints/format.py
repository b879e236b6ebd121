"""What a format of checkpoints is, and what is read off the names and shapes of a file's tensors."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from udaseg.config import Model
from udaseg.types import Resample

State = Mapping[str, Tensor]
Window = tuple[int, int] | None
Names = tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...]


@dataclass(frozen=True, kw_only=True)
class Format:
    """How the checkpoints of some repositories are read."""

    signs: tuple[str, ...]
    """Patterns of names; a file of the format has one of each."""
    settings: Callable[[State], Model]
    """The network, of the shapes of the tensors."""
    names: Names
    """Patterns in the authors' names and what becomes of them, one after the other."""
    arrange: Callable[[State], dict[str, Tensor]] = dict
    """What must be done with values, before names change."""
    dropped: str = r"(?!)"
    """Pattern of names that have no counterpart and are not needed."""
    view: Callable[[State], tuple[int, Window]] = lambda state: (512, None)
    """Short side of Cityscapes' images and height and width of windows, as the authors evaluate."""
    overlap: float = 0.5
    """Share of a window that the authors' next one covers again."""
    resample: Callable[[State], Resample] = lambda state: "antialias"
    """How the authors resize images as they evaluate."""


class Misfit(ValueError):
    """What a file has that its format does not, or the reverse."""


def tensor_of(state: State, name: str) -> Tensor:
    if name not in state:
        raise Misfit(f"it lacks {name}")
    return state[name]


def count_of(state: State, pattern: str) -> int:
    """One more than the largest number in the names that begin like a pattern with one group."""
    found = (re.match(pattern, name) for name in state)
    return max((int(match[1]) + 1 for match in found if match), default=0)


_RESNETS = {6: "resnet50", 23: "resnet101"}
"""By the blocks of the third stage."""


def resnet_of(state: State, prefix: str = "") -> str:
    blocks = count_of(state, rf"{prefix}layer3\.(\d+)\.")
    if blocks not in _RESNETS:
        raise Misfit(f"{prefix}layer3 has {blocks} blocks; 6 (ResNet-50) and 23 (ResNet-101) are known")
    return _RESNETS[blocks]
