"""The ranges of settings, which their types say, and the one check of them."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import typing
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from udaseg.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers that a setting may be; `ends` says which of `low` and `high` are among them."""

    low: float
    high: float = math.inf
    ends: Literal["[]", "[)", "(]", "()"] = "[]"

    def __contains__(self, number: float) -> bool:
        above = number > self.low or (number == self.low and self.ends[0] == "[")
        below = number < self.high or (number == self.high and self.ends[1] == "]")
        return above and below  # NaN is neither

    def __str__(self) -> str:
        if self.high == math.inf:
            return f"be {'at least' if self.ends[0] == '[' else 'above'} {self.low}"
        return f"lie in {self.ends[0]}{self.low}, {self.high}{self.ends[1]}"


Share = Annotated[float, Range(0, 1)]
Momentum = Annotated[float, Range(0, 1, "[)")]
"""The share of what was before in a running mean; with 1 nothing would move."""
Positive = Annotated[float, Range(0, ends="(]")]
NonNegative = Annotated[float, Range(0)]
Jitter = Annotated[float, Range(0, 0.5)]
Count = Annotated[int, Range(1, 2**31 - 1)]
CountOrZero = Annotated[int, Range(0, 2**31 - 1)]
Pixels = Annotated[int, Range(1, 2**14)]
Channels = Annotated[int, Range(1, 2**13)]


def check_numbers(section: Any) -> None:
    """Raise ConfigError, naming the field, where a number in a section or in one below it lies outside its range.

    A field's type says its range, e.g. `Share`; no number is infinite or NaN.
    """
    hints = typing.get_type_hints(type(section), include_extras=True)
    for name, value in ((f.name, getattr(section, f.name)) for f in dataclasses.fields(section)):
        ranges = _ranges(hints[name])
        for i, item in enumerate(value) if isinstance(value, tuple) else [(None, value)]:
            if dataclasses.is_dataclass(item):
                with naming(name if i is None else f"{name}.{i}"):
                    check_numbers(item)
            elif isinstance(item, float) and not math.isfinite(item):
                raise ConfigError(f"{name} is {value}; it must be a finite number")
            elif isinstance(item, int | float) and (wrong := [r for r in ranges if item not in r]):
                raise ConfigError(f"{name} is {value}; it must {wrong[0]}")
            elif isinstance(item, int) and abs(item) >= 2**63:
                raise ConfigError(f"{name} is {value}; it must be a number of 64 bits")


def _ranges(hint: Any) -> list[Range]:
    """The ranges in a type such as `tuple[Pixels, Pixels] | None`."""
    here = [note for note in getattr(hint, "__metadata__", ()) if isinstance(note, Range)]
    return here + [found for part in typing.get_args(hint) if not isinstance(part, Range) for found in _ranges(part)]


@contextlib.contextmanager
def naming(section: str) -> Iterator[None]:
    """Put a section's name before the field that a ConfigError begins with."""
    try:
        yield
    except ConfigError as error:
        raise ConfigError(f"{section}.{error}") from None
