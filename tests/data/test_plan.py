"""Crops that one class does not fill."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from tiny import make_dataset

from udaseg.data.plan import Plan, StreamPlan
from udaseg.types import IGNORE


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder: Path = tmp_path_factory.mktemp("plan")
    source = StreamPlan(directory=make_dataset(folder, "source"), labelled=True)
    return Plan(
        seed=5, batch_size=2, steps=20, crop=(12, 12), short_side=40, scale=(1.0, 1.5), streams={"source": source}
    )


def largest_share(label: np.ndarray) -> tuple[float, int]:
    pixels = np.bincount(label[label != IGNORE], minlength=3)
    return pixels.max() / pixels.sum(), int(np.count_nonzero(pixels))


def test_crops_are_redrawn_until_no_class_fills_them(plan: Plan) -> None:
    varied = replace(plan, streams={"source": replace(plan.streams["source"], max_class_share=0.75)})
    before = [largest_share(plan.load(i)["source_label"]) for i in range(40)]
    after = [largest_share(varied.load(i)["source_label"]) for i in range(40)]
    filled = [share >= 0.75 for share, _ in before]
    assert sum(filled) > 10, "most such crops are filled by a class"
    assert sum(share < 0.75 and classes > 1 for share, classes in after) >= 38, "nine more tries nearly always do"
    for i in range(40):
        if not filled[i] and before[i][1] > 1:  # the first try was good, and is kept
            assert np.array_equal(plan.load(i)["source_image"], varied.load(i)["source_image"])
