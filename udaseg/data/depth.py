"""Images of one band and more than 8 bits: which of their values are black, and which are white.

A dataset says so of its images (`udaseg prepare --depth-range LOW HIGH`), and a model of those that it was trained on.
"""

from __future__ import annotations

import json
import math

import numpy as np
import pyarrow as pa

from udaseg.data.strict_json import parse_json
from udaseg.errors import DatasetError
from udaseg.types import DepthRange

_KEY = "depth_range"


def require_depth_range(depth_range: DepthRange | None, of: str) -> None:
    """Raise DatasetError, naming `of`, where a range is not of two finite numbers, the lower one first."""
    if depth_range is not None and not -math.inf < depth_range[0] < depth_range[1] < math.inf:
        raise DatasetError(f"{of} is {depth_range[0]:g} {depth_range[1]:g}; LOW must be below HIGH, and both finite")


def scaled(values: np.ndarray, depth_range: DepthRange) -> np.ndarray:
    """(H, W) numbers as uint8: LOW and less 0, HIGH and more 255, what lies between linearly and rounded, NaN 0."""
    low, high = depth_range
    inside = np.nan_to_num(values.astype(np.float64), nan=low, posinf=high, neginf=low).clip(low, high)
    return ((inside - low) / (high - low) * 255).round().astype(np.uint8)


def described(values: np.ndarray) -> str:
    """The least and the largest value, as a person would give them."""
    finite = values[np.isfinite(values)]
    return f"{finite.min():g} to {finite.max():g}" if finite.size else "none of them a finite number"


def metadata(depth_range: DepthRange | None) -> dict[str, str]:
    """What a table of a dataset says of its images' range; nothing where they have none."""
    return {} if depth_range is None else {_KEY: json.dumps(depth_range)}


def depth_range_of(table: pa.Table, uri: str) -> DepthRange | None:
    """The range that a table of a dataset names. Raises DatasetError, naming `uri`, where it is none."""
    text = (table.schema.metadata or {}).get(_KEY.encode())
    if text is None:
        return None
    try:
        low, high = map(float, parse_json(text, f"{uri}: {_KEY}"))
    except (TypeError, ValueError):
        raise DatasetError(f"{uri}: {_KEY}: not two numbers") from None
    require_depth_range((low, high), f"{uri}: {_KEY}")
    return low, high


def other_range(trained: DepthRange | None, found: DepthRange | None, model: str, dataset: str) -> list[str]:
    """A warning where a model was trained on images of another range than a dataset reads its images with.

    None where either has none: 8-bit images are as they are.
    """
    if trained is None or found is None or trained == found:
        return []
    own, theirs = (f"{low:g} {high:g}" for low, high in (found, trained))
    return [
        f"{dataset} was prepared with --depth-range {own}, {model} was trained on images of {theirs}: equal values are "
        "other greys to it. Where both are of one camera, prepare the dataset with the model's"
    ]
