"""RCCR's, EHTDI's and CAMix's parts, as the authors' own code returned them."""

from __future__ import annotations

import math
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from steps import CASES, PLANES, near, norm_of, number_after
from torch import Tensor

from udaseg.components import mixing
from udaseg.components.uncertainty import entropy_threshold
from udaseg.losses.consistency import significant_cross_entropy
from udaseg.losses.pixel_pair import region_contrast, two_view_contrast
from udaseg.methods.camix import CAMix
from udaseg.methods.ehtdi import EHTDI
from udaseg.methods.rccr import RCCR
from udaseg.types import IGNORE, SegOutput

NUMBER = r"([-.\d]+)"


def waves(text: str) -> list[Tensor]:
    """Every plane "T((shape),a,b)" of a case's inputs, in their order."""
    found = re.findall(rf"T\(\(([\d,]+)\),{NUMBER}(?:,{NUMBER})?\)", text)
    return [PLANES.waves(_shape(shape), float(a), float(b or 0)) for shape, a, b in found]


def ids(text: str) -> list[Tensor]:
    """Every map "Y((shape),K,m)" of a case's inputs, in their order."""
    found = re.findall(r"Y\(\(([\d,]+)\),(\d+)(?:,(\d+))?\)", text)
    return [PLANES.ids(_shape(shape), int(k), int(m or 7)) for shape, k, m in found]


def factors(text: str) -> list[float]:
    """What stands before each plane of a case's inputs."""
    return [float(x or 1) for x in re.findall(r"([\d.]*)T\(\(", text)]


def _shape(text: str) -> tuple[int, ...]:
    return tuple(int(n) for n in text.split(",") if n)


def test_the_contrast_of_rccr() -> None:
    case = CASES["RCCR/contrast"]
    inputs = case["inputs"]
    *features, confidence = waves(inputs)
    student, teacher, bank = (F.normalize(x, dim=1) for x in features)
    bank_label, label = ids(inputs)
    student.requires_grad_()
    counted = confidence.abs() > number_after(inputs, "threshold")
    assert int(counted.sum()) == case["used"]
    value = region_contrast(
        student, teacher, label, counted, bank, bank_label, temperature=number_after(inputs, "temperature")
    )
    value.backward()
    assert float(value.detach()) == near(case["value"])
    assert norm_of(student) == near(case["grad_l2"]["student"])
    assert [RCCR.Config().weight_at(t, 4) for t in (0, 1, 2, 4)] == near(case["weight at t=0, T/4, T/2, T"])


def test_the_contrasts_of_ehtdi() -> None:
    """The authors' contrast of classes is that of the first sample alone."""
    case = CASES["EHTDI/NCE"]
    inputs = case["inputs"]
    weak, strong = ((f * x).requires_grad_() for f, x in zip(factors(inputs), waves(inputs), strict=True))
    (label,), ignored = ids(inputs), re.search(r"\[:,:(\d+)\]=-1", inputs)
    assert ignored is not None
    label[:, : int(ignored[1])] = IGNORE
    c = EHTDI.Config()
    classes, cells = two_view_contrast(weak, strong, label, class_scale=c.class_scale, cell_scale=c.cell_scale)
    value = classes[0] / len(classes) + cells.mean()
    value.backward()
    assert float(cells.mean()) == near(case["pixel_level_alone"])
    assert float(classes[0] / len(classes)) == near(case["class_level_alone"])
    assert float(value.detach()) == near(case["value"])
    assert norm_of(weak) == near(case["grad_l2"]["weak"]) and norm_of(strong) == near(case["grad_l2"]["strong"])


class Last:
    """Draws the last ones of whatever is to be drawn."""

    def __init__(self) -> None:
        self.bit_generator = self
        self.state = None

    def permutation(self, count: int) -> np.ndarray:
        return np.arange(count)[::-1]


def test_the_contextual_masks_of_camix(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["CAMix/context masks"]
    prior, logits = (f * x for f, x in zip(factors(case["inputs"]), waves(case["inputs"]), strict=True))
    monkeypatch.setattr(mixing, "keyed", lambda *_: Last())
    label = (prior.abs() * logits.softmax(1)).argmax(1)
    mask = mixing.context_mask(label, torch.arange(2), companions=CAMix.Config().companions, seed=0, num_classes=19)
    assert mask.flatten(1).sum(1).tolist() == case["mask_pixels"]
    assert (mask.flatten(1) * torch.arange(mask[0].numel())).sum(1).tolist() == case["index_weighted_sum"]


def test_the_threshold_of_camix() -> None:
    case = CASES["CAMix/threshold"]
    classes, (ramp_steps,) = re.search(r"ln (\d+)", case["inputs"]), re.findall(r"t_max (\d+)", case["inputs"])
    assert classes is not None
    steps = [int(t) for t in case["inputs"].partition("t = ")[2].split(", ")]
    found = [entropy_threshold(t, ramp_steps=int(ramp_steps), num_classes=int(classes[1])) for t in steps]
    assert found == near(case["value"]) and found[-1] == pytest.approx(math.log(int(classes[1])))


def test_the_consistency_of_camix_has_no_use_for_its_mask_as_released() -> None:
    case = CASES["CAMix/consistency"]
    logits, weight, doubt = (f * x for f, x in zip(factors(case["inputs"]), waves(case["inputs"]), strict=True))
    (label,) = ids(case["inputs"])
    out = SegOutput(logits=logits, embedding=logits)
    masks = {"value": (doubt > 0).float(), "value_without_the_mask": torch.ones_like(doubt)}
    for expected, significance in masks.items():
        value = significant_cross_entropy(out, label, weight.abs(), significance, form="released")
        assert float(value) == near(case[expected])
    assert float(significant_cross_entropy(out, label, weight.abs(), 0 * doubt, form="released")) == 0
    theirs = significant_cross_entropy(out, label, weight.abs(), (doubt > 0).float(), form="paper")
    assert float(theirs) != near(case["value"])
