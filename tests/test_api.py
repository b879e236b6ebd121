"""`import udaseg` gives the names that a script needs, each from its module."""

from __future__ import annotations

import importlib
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import make_checkpoint

import udaseg
from udaseg.errors import DatasetError


@pytest.mark.parametrize("name", udaseg.__all__)
def test_a_name_is_that_of_its_module(name: str) -> None:
    found = getattr(udaseg, name)
    (module,) = (f"udaseg.{module}" for module, names in udaseg._HOME.items() if name in names)
    assert found is getattr(importlib.import_module(module), name)
    assert name in dir(udaseg)


def test_every_name_has_a_module_and_every_other_is_refused() -> None:
    assert sorted(name for names in udaseg._HOME.values() for name in names) == sorted(udaseg.__all__)
    with pytest.raises(AttributeError, match="no attribute 'adapt_everything'"):
        _ = udaseg.adapt_everything


def test_an_opened_image_that_is_broken_is_told_as_a_file_is(tmp_path: Path) -> None:
    content = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 56, 3), np.uint8)).save(content, "JPEG")
    half = Image.open(io.BytesIO(content.getvalue()[: len(content.getvalue()) // 2]))
    predictor = udaseg.load(make_checkpoint(tmp_path / "model", 0))
    with pytest.raises(DatasetError, match="the image cannot be decoded: "):
        predictor.predict(half)
