"""Numbers that the authors' own functions returned, on inputs that need no random generator.

The file states how its inputs are made. `GOLDEN` names another file of the same kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from udaseg.losses.contrastive import bidirectional_contrast
from udaseg.losses.segmentation import cross_entropy
from udaseg.pseudo_label import union_pseudo_label
from udaseg.types import IGNORE

GOLDEN = json.loads(Path(os.environ.get("GOLDEN") or Path(__file__).with_name("golden.json")).read_text())
RTOL = 1e-4
Result = dict[str, Any]


def T(shape: tuple[int, ...], a: float, b: float = 0.0) -> Tensor:
    i = np.arange(np.prod(shape), dtype=np.float64)
    wave = np.sin(GOLDEN["T"]["k"] * a * i + b + GOLDEN["T"]["c"])
    return torch.from_numpy(wave.astype(np.float32).reshape(shape))


def Y(shape: tuple[int, ...], classes: int, m: int = 7) -> Tensor:
    i = np.arange(np.prod(shape), dtype=np.int64)
    return torch.from_numpy(((i * m + i // GOLDEN["Y"]["d"] + GOLDEN["Y"]["e"]) % classes).reshape(shape))


def _bcl(forward_weight: float, backward_weight: float) -> Result:
    fs, ft = T((1, 76, 6, 8), 0.37).requires_grad_(), T((1, 76, 6, 8), 0.53, 1).requires_grad_()
    ys, yt = Y((1, 48, 64), 6, 7), Y((1, 48, 64), 7, 11)
    ys[:, :8] = IGNORE
    yt[:, 20:] = IGNORE
    forward, backward = bidirectional_contrast(fs, ys, ft, yt, num_classes=19)
    value = forward_weight * forward + backward_weight * backward
    value.backward()
    assert fs.grad is not None and ft.grad is not None
    return {"value": value.detach(), "grad_l2": {"fs": fs.grad.norm(), "ft": ft.grad.norm()}}


def _weighted_cross_entropy() -> Result:
    label = Y((2, 8, 8), 19)
    label[:, :2] = IGNORE
    return {"value": cross_entropy(3 * T((2, 19, 8, 8), 0.29), label, T((2, 8, 8), 0.9).abs(), reduction="all")}


def _union() -> Result:
    probability = (4 * T((1, 19, 16, 16), 0.71)).softmax(1)[0].numpy()
    thresholds = (0.2 + 0.03 * np.arange(19)).astype(np.float32)
    label = union_pseudo_label(probability, thresholds, 0.1, rule="any_class")
    by_class = union_pseudo_label(probability, thresholds, 0.0, rule="any_class")
    by_image = union_pseudo_label(probability, np.ones(19, np.float32), 0.1, rule="any_class")
    return {
        "tensor": label,
        "kept": (label != IGNORE).sum(),
        "kept_cb": (by_class != IGNORE).sum(),
        "kept_img": (by_image != IGNORE).sum(),
    }


IMPLEMENTED: dict[str, Callable[[], Result]] = {
    "BCL/FCL": lambda: _bcl(1, 0),
    "BCL/BCL": lambda: _bcl(0, 1),
    "BCL/0.1FCL+0.1BCL": lambda: _bcl(0.1, 0.1),
    "DACS/weighted CE": _weighted_cross_entropy,
    "LDBE/pseudo-label union": _union,
}


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_golden(name: str) -> None:
    if name not in IMPLEMENTED:
        pytest.skip(f"not implemented: {name}")
    expected, result = GOLDEN["cases"][name], IMPLEMENTED[name]()
    if expected["value"] is None:
        tensor = np.asarray(result["tensor"], np.float64)
        assert list(tensor.shape) == expected["shape"]
        assert tensor.sum() == pytest.approx(expected["sum"], rel=RTOL)
        assert np.square(tensor).sum() == pytest.approx(expected["sqsum"], rel=RTOL)
    else:
        assert float(result["value"]) == pytest.approx(expected["value"], rel=RTOL)
    for tensor_name, norm in expected.get("grad_l2", {}).items():
        assert float(result["grad_l2"][tensor_name]) == pytest.approx(norm, rel=RTOL)
    for kept in [key for key in expected if key.startswith("kept")]:
        assert result[kept] == expected[kept]
