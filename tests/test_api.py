"""`import udaseg` gives the names that a script needs, each from its module."""

from __future__ import annotations

import importlib

import pytest

import udaseg


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
