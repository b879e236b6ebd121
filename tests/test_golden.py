"""Numbers that the authors' own functions returned, on inputs that need no random generator.

The file states how its inputs are made. `GOLDEN` names another file of the same kind.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.feature_distance import feature_distance, majority_cells, majority_label
from udaseg.components.prototypes import ClassGaussians, prototype_distance
from udaseg.components.thresholds import union_pseudo_label
from udaseg.losses.adversarial import binary_cross_entropy, disagreement, self_information
from udaseg.losses.consistency import relation_consistency
from udaseg.losses.contrastive import (
    bidirectional_contrast,
    distribution_contrast,
    labelled_cells,
    mean_feature_regulariser,
    prototype_contrast,
)
from udaseg.losses.distillation import unbiased_distillation
from udaseg.losses.feature import mmd
from udaseg.losses.pixel_pair import multi_resolution_contrast, pixel_contrast
from udaseg.losses.segmentation import (
    cross_entropy,
    entropy,
    focal_cross_entropy,
    negative_learning,
    reverse_cross_entropy,
    uniform_divergence,
)
from udaseg.losses.weighted_contrast import weighted_contrast
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


def _label_denoising(place: int) -> Result:
    logits, label = (3 * T((2, 19, 8, 8), 0.29)).requires_grad_(), Y((2, 8, 8), 19)
    label[:, :3] = IGNORE
    ce, ent = cross_entropy(logits, label), entropy(logits, form="double_softmax")
    negative = negative_learning(logits, place)
    (ce + ent + negative).backward()
    assert logits.grad is not None
    return {
        "value": negative.detach(),
        "grad_l2": {"total": logits.grad.norm()},
        "ce": ce.detach(),
        "ent": ent.detach(),
    }


def _boundary_enhancement() -> Result:
    sure = (T((2, 8, 8), 0.9).abs() >= 0.97).float().mean((1, 2), keepdim=True)
    weight = sure.expand(2, 8, 8)
    return {"value": cross_entropy(3 * T((2, 19, 8, 8), 0.29), Y((2, 8, 8), 19), weight, reduction="nonzero")}


def _mmd() -> Result:
    a, b = T((2, 256), 0.37).requires_grad_(), T((2, 256), 0.53, 1)
    value = mmd(a, b)
    value.backward()
    assert a.grad is not None
    return {"value": value.detach(), "grad_l2": {"a": a.grad.norm()}}


def _gaussians() -> tuple[ClassGaussians, Tensor, Tensor]:
    x1, y1 = T((400, 32), 0.37), Y((400,), 12)
    y1[:20] = IGNORE
    x2, y2 = T((300, 32), 0.53, 1), Y((300,), 17, 11)
    gaussians = ClassGaussians(19, 32)
    gaussians.update(x1, y1)
    gaussians.update(x2, y2)
    return gaussians, x2, y2


def _distribution(temperature: float) -> Result:
    gaussians, feature, label = _gaussians()
    feature.requires_grad_()
    value = distribution_contrast(feature, label, gaussians.mean, gaussians.variance, temperature=temperature)
    value.backward()
    assert feature.grad is not None
    return {"value": value.detach(), "grad_l2": {"feat": feature.grad.norm()}}


def _centres() -> Result:
    gaussians, feature, label = _gaussians()
    centres = F.normalize(gaussians.mean, dim=1)
    return {"value": prototype_contrast(F.normalize(feature, dim=1), label, centres, temperature=50)}


def _prototypes() -> Result:
    prototypes, values = T((32, 19), 0.61).T, []
    source, target = Y((2, 6, 8), 19), Y((2, 6, 8), 19, 11)
    source[:, :2] = IGNORE
    for feature, label in ((T((2, 32, 6, 8), 0.37), source), (T((2, 32, 6, 8), 0.53, 1), target)):
        cells = labelled_cells(F.normalize(feature, dim=1), label)
        values.append(prototype_contrast(*cells, prototypes, temperature=100))
    return {"value": sum(values)}


def _projected_distribution() -> Result:
    label = Y((2, 1, 4, 4), 19)[:, 0].repeat_interleave(2, 1).repeat_interleave(2, 2)
    label[:, :2] = IGNORE
    small = majority_cells(label, (4, 4), 2, num_classes=19, min_share=0.75)
    cells = labelled_cells(F.normalize(T((2, 16, 4, 4), 0.37), dim=1), small)
    mean, variance = T((19, 16), 0.61), T((19, 16), 0.83).abs()
    value = distribution_contrast(*cells, mean, variance, temperature=100, normalise=False)
    return {"value": value + mean_feature_regulariser(*cells, mean, temperature=100)}


def _cluda(batch: int) -> tuple[Tensor, Tensor, Tensor]:
    shape = (batch, 16, 6, 6)
    return T(shape, 0.37).requires_grad_(), T(shape, 0.53, 1).requires_grad_(), Y((batch, 1, 6, 6), 9)[:, 0]


def _multi_resolution(batch: int) -> Result:
    (low, high, label), plane = _cluda(batch), (batch, 1, 6, 6)
    inside = label.clone()
    inside[:, :3] = 0
    attention, weight = T(plane, 0.9).abs()[:, 0], T(plane, 0.21, 0.4).abs()[:, 0]
    value = multi_resolution_contrast(low, high, label, inside, attention, weight, position_major=True, rows=25)
    value.backward()
    assert low.grad is not None and high.grad is not None
    return {"value": value.detach(), "grad_l2": {"lr": low.grad.norm(), "hr": high.grad.norm()}}


def _pixel_contrast(batch: int) -> Result:
    low, _, label = _cluda(batch)
    return {"value": pixel_contrast(low.detach(), label, position_major=True, rows=25)}


def _joint_contrast() -> Result:
    anchor, label = F.normalize(T((6, 8), 0.37), dim=1)[None], torch.tensor([[1, 1, 2, 2, 3, 3]])
    key = torch.cat([anchor, F.normalize(T((4, 8), 0.53, 1), dim=1)[None]], 1)
    key_label = torch.cat([label, torch.tensor([[1, 2, 3, 1]])], 1)
    weight, unit = T((1, 6, 10), 0.9).abs(), torch.eye(10)[None]
    value = weighted_contrast(
        anchor, label, weight, key, key_label, unit, temperature=0.07, unshifted_negatives=True, rows=4
    )
    return {"value": value}


def _uncertain_contrast() -> Result:
    """The authors' pixels go view by view, their weights anchor by anchor."""
    pixels = F.normalize(T((4, 3, 8), 0.37), dim=2).transpose(0, 1).reshape(1, 12, 8)
    label, weight = torch.tensor([[1, 2, 1, 3]]).repeat(1, 3), T((1, 12, 1), 0.9).abs()
    both = pixels, label, weight
    return {"value": weighted_contrast(*both, *both, temperature=0.07)}


def _feature_distance() -> Result:
    mask = T((2, 1, 6, 8), 0.9)[:, 0] > 0
    return {"value": feature_distance(T((2, 32, 6, 8), 0.37), T((2, 32, 6, 8), 0.53, 1), mask)}


def _majority_label() -> Result:
    label = Y((1, 1, 16, 16), 3)
    label[:, :, :8] = 4
    label[:, :, 7] = IGNORE
    return {"tensor": majority_label(label[:, 0], 4, num_classes=19)[:, None]}


def _adaptive() -> Result:
    unlike = disagreement(3 * T((1, 19, 6, 8), 0.29), 3 * T((1, 19, 6, 8), 0.43))
    return {"value": binary_cross_entropy(T((1, 1, 6, 8), 0.9), "target", 0.4 + 40 * unlike)}


def _prototype_weight() -> Result:
    distance = prototype_distance(T((2, 32, 4, 6), 0.37), T((19, 32), 0.61))
    return {"tensor": (-distance).softmax(1)}


def _reverse_cross_entropy() -> Result:
    label = Y((2, 4, 6), 19)
    label[:, :1] = IGNORE
    return {"value": reverse_cross_entropy(3 * T((2, 19, 4, 6), 0.29), label)}


IMPLEMENTED: dict[str, Callable[[], Result]] = {
    "BCL/FCL": lambda: _bcl(1, 0),
    "BCL/BCL": lambda: _bcl(0, 1),
    "BCL/0.1FCL+0.1BCL": lambda: _bcl(0.1, 0.1),
    "DACS/weighted CE": _weighted_cross_entropy,
    "LDBE/pseudo-label union": _union,
    **{f"LDBE/ld k={k}": partial(_label_denoising, k) for k in (6, 9, 12)},
    "LDBE/be": _boundary_enhancement,
    "DSP/mmd_rbf": _mmd,
    "SDCA/mean": lambda: {"tensor": _gaussians()[0].mean},
    "SDCA/var": lambda: {"tensor": _gaussians()[0].variance},
    **{f"SDCA/loss tau={t}": partial(_distribution, t) for t in (100, 1)},
    "ProCA/loss": _centres,
    "SPCL/loss": _prototypes,
    "SePiCo/dist_contrastive": _projected_distribution,
    **{f"CLUDA/multi_resolution_cl B={b}": partial(_multi_resolution, b) for b in (1, 2)},
    **{f"CLUDA/contrastive_loss B={b}": partial(_pixel_contrast, b) for b in (1, 2)},
    "ADVENT/entropy_loss": lambda: {"value": self_information(3 * T((2, 19, 6, 8), 0.29)).sum(1).mean()},
    "ADVENT/prob_2_entropy": lambda: {"tensor": self_information(3 * T((2, 19, 6, 8), 0.29))},
    "CLAN/adaptive BCE": _adaptive,
    "CLAN/focal CE": lambda: {"value": focal_cross_entropy(3 * T((1, 19, 6, 8), 0.29), Y((1, 6, 8), 19))},
    "ProDA/prototype weight": _prototype_weight,
    "ProDA/RCE": _reverse_cross_entropy,
    "ProDA/MRKLD": lambda: {"value": uniform_divergence(3 * T((2, 19, 4, 6), 0.29))},
    "CRDA/pairwise MSE": lambda: {"value": relation_consistency(T((2, 19, 24), 0.37), T((2, 19, 24), 0.53, 1))},
    "UCD/unbiased KD": lambda: {
        "value": unbiased_distillation(3 * T((2, 6, 4, 4), 0.29), 3 * T((2, 4, 4, 4), 0.43), background=0)
    },
    "UCD/contrast": _joint_contrast,
    "TADA/contrast": _uncertain_contrast,
    "DAFormer/FD": _feature_distance,
    "DAFormer/downscale_label_ratio": _majority_label,
}


@pytest.mark.parametrize("name", GOLDEN["cases"])
def test_golden(name: str) -> None:
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
    for term in {"ce", "ent"} & expected.keys():
        assert float(result[term]) == pytest.approx(expected[term], rel=RTOL)
