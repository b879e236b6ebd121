"""Recipes: one function per configuration. `RECIPES` maps their names, which `udaseg train NAME` takes, to them.

The names without a suffix are the published settings for GTA5 -> Cityscapes on a GPU; `*_small` train a small backbone
on small images on a CPU within minutes, e.g. the embedded pair of domains.

A recipe is a function of a module that `MODULES` lists; what it shares with others it imports.
"""

from __future__ import annotations

import ast
import importlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from udaseg.config import Recipe

    RECIPES: Mapping[str, Callable[[], Recipe]]

MODULES = (
    "supervised",
    "adabn",
    "classwise",
    "dacs",
    "bcl",
    "ldbe",
    "stvm",
    "dsp",
    "camix",
    "rccr",
    "ehtdi",
    "sdca",
    "proda",
    "spcl",
    "proca",
    "ucda",
    "pne",
    "drsl",
    "daformer",
    "hrda",
    "mic",
    "crda",
    "cluda",
    "sepico",
    "vfm",
    "advent",
    "clan",
    "cada",
    "tada",
    "ucd",
)


def _functions() -> dict[str, tuple[str, str]]:
    """Each recipe's module and the first line of its docstring, published ones first, without importing a network."""
    found = {}
    for module in MODULES:
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] = (module, (ast.get_docstring(node) or "").partition("\n")[0])
    return dict(sorted(found.items(), key=lambda item: item[0].endswith(("_small", "_demo"))))


def summaries() -> dict[str, str]:
    """What each recipe is, in a line, by name."""
    return {name: line for name, (_, line) in _functions().items()}


def __getattr__(name: str) -> Any:
    if name != "RECIPES":  # which loads every method, and torch with them
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    recipes = {
        function: getattr(importlib.import_module(f"{__name__}.{module}"), function)
        for function, (module, _) in _functions().items()
    }
    globals()["RECIPES"] = recipes
    return recipes
