"""SePiCo's losses, and what they know of the classes, as the authors' own code returned them."""

from __future__ import annotations

import re

import pytest
import torch.nn.functional as F
from authors import assert_like
from steps import CASES, PLANES, near, norm_of
from torch import Tensor

from udaseg.components.feature_distance import majority_cells
from udaseg.components.memory_bank import MemoryBank
from udaseg.components.prototypes import ClassGaussians
from udaseg.losses.contrastive import (
    bank_contrast,
    distribution_contrast,
    labelled_cells,
    mean_feature_regulariser,
    prototype_contrast,
)
from udaseg.types import IGNORE

SEPICO = [name for name in CASES if name.startswith("SePiCo/")]
NUMBER = r"([-.\d]+)"


@pytest.fixture(scope="module")
def described() -> tuple[ClassGaussians, MemoryBank]:
    """What three updates make of the classes, with all numbers as the file says them."""
    inputs = CASES["SePiCo/estimator mean"]["inputs"]
    shape = re.search(r"T\(\((\d+),(\d+)\)", inputs)
    labels = re.findall(r"Y\(\((\d+),\),(\d+)(?:,(\d+))?\)", inputs)
    waves = re.findall(rf"\({NUMBER}(?:,{NUMBER})?\)", re.sub(r"T\(\([\d,]+\),", "(", inputs.partition("labels")[0]))
    length = re.search(r"memory_length=(\d+)", CASES["SePiCo/bank sizes"]["where"])
    assert shape and length and len(labels) == len(waves) == 3
    count, channels = int(shape[1]), int(shape[2])
    classes, _ = CASES["SePiCo/estimator mean"]["shape"]
    gaussians, bank = ClassGaussians(classes, channels), MemoryBank(classes, channels, int(length[1]))
    for (a, b), (n, k, m) in zip(waves, labels, strict=True):
        feature = F.normalize(PLANES.waves((count, channels), float(a), float(b or 0)), dim=1)
        label = PLANES.ids((int(n),), int(k), int(m or 7))
        gaussians.update(feature, label)
        bank.update(feature, label)
    return gaussians, bank


@pytest.mark.parametrize("what", ["mean", "variance"])
def test_the_estimator(what: str, described: tuple[ClassGaussians, MemoryBank]) -> None:
    assert_like(getattr(described[0], what), CASES[f"SePiCo/estimator {what}"])


def test_the_bank(described: tuple[ClassGaussians, MemoryBank]) -> None:
    bank, case = described[1], CASES["SePiCo/bank sizes"]
    assert bank.filled.tolist() == case["value"]
    assert float(bank.entries.sum()) == near(case["bank_sum"])


@pytest.mark.parametrize("name", [name for name in SEPICO if "_contrastive" in name])
def test_a_contrast(name: str, described: tuple[ClassGaussians, MemoryBank]) -> None:
    case, (gaussians, bank) = CASES[name], described
    inputs = case["inputs"]
    shape, (a,) = re.findall(r"T\(\(([\d,]+)\),", inputs), re.findall(rf"T\(\([\d,]+\),{NUMBER}\)", inputs)
    size = tuple(int(n) for n in shape[0].split(","))
    feature = F.normalize(PLANES.waves(size, float(a)), dim=1).requires_grad_()
    made = re.search(r"Y\(\(([\d,]+)\),(\d+)\) nearest x(\d+),\[:,:,:(\d+)\]=(\d+)", inputs)
    weight, share = re.search(rf"reg_weight {NUMBER}", inputs), re.search(rf"scale_min_ratio {NUMBER}", inputs)
    assert made and weight and share and int(made[5]) == IGNORE
    side, classes = int(made[3]), int(made[2])
    label = PLANES.ids(tuple(int(n) for n in made[1].split(",")), classes)[:, 0]
    label = label.repeat_interleave(side, 1).repeat_interleave(side, 2)
    label[:, : int(made[4])] = IGNORE
    small = majority_cells(label, size[2:], side, num_classes=classes, min_share=float(share[1]))
    cells, temperature = labelled_cells(feature, small), float(name.partition("tau=")[2])

    value: Tensor = {
        "proto": lambda: prototype_contrast(*cells, gaussians.mean, temperature=temperature),
        "bank": lambda: bank_contrast(*cells, bank.entries, bank.filled, temperature=temperature),
        "dist": lambda: distribution_contrast(
            *cells, gaussians.mean, gaussians.variance, temperature=temperature, normalise=False
        ),
    }[name.removeprefix("SePiCo/").partition("_")[0]]()
    value = value + float(weight[1]) * mean_feature_regulariser(*cells, gaussians.mean, temperature=temperature)
    value.backward()
    assert float(value.detach()) == near(case["value"])
    assert norm_of(feature) == near(case["grad_l2"]["feat"])


def test_every_case_of_the_file_is_tested() -> None:
    named = {"SePiCo/estimator mean", "SePiCo/estimator variance", "SePiCo/bank sizes"}
    known = ("proto", "bank", "dist")
    assert named | {name for name in SEPICO if name.removeprefix("SePiCo/").startswith(known)} == set(SEPICO)
