"""Recipes: one function per configuration. `RECIPES` maps their names, which `udaseg train NAME` takes, to them.

The names without a suffix are the published settings for GTA5 -> Cityscapes on a GPU; `*_small` train a small backbone
on small images on a CPU within minutes, e.g. the embedded pair of domains.

A recipe is a function of a module that `FAMILIES` lists; what it shares with others it imports.
"""

from __future__ import annotations

import ast
import difflib
import functools
import importlib
import json
from collections.abc import Callable, Mapping
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from udaseg.errors import ConfigError, DatasetError

if TYPE_CHECKING:
    from udaseg.config import Recipe

    RECIPES: Mapping[str, Callable[[], Recipe]]

FAMILIES = {
    "both ends of the gap": ("supervised",),
    "recommended": ("classwise",),
    "self-training": ("dacs", "dsp", "camix", "ehtdi", "proda", "daformer", "hrda", "mic", "crda", "vfm"),
    "contrastive": ("bcl", "sdca", "spcl", "proca", "rccr", "cluda", "sepico", "ucda", "pne", "drsl"),
    "adversarial": ("advent", "clan", "cada", "i2i_cr"),
    "source-free": ("adabn", "ldbe", "stvm"),
    "other taxonomies": ("tada",),
    "incremental": ("ucd",),
}
"""The modules of each family of methods. Many belong to two, and stand where their own part does."""

_MAX_CONFIG = 1 << 20  # bytes


def _functions() -> dict[str, tuple[str, str]]:
    """Each recipe's module and the first line of its docstring, published ones first, without importing a network."""
    found = {}
    for module in chain.from_iterable(FAMILIES.values()):
        tree = ast.parse(Path(__file__).with_name(f"{module}.py").read_text(encoding="utf-8"))
        for node in tree.body:
            if isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                found[node.name] = (module, (ast.get_docstring(node) or "").partition("\n")[0])
    return dict(sorted(found.items(), key=lambda item: item[0].endswith(("_small", "_demo"))))


def summaries() -> dict[str, dict[str, str]]:
    """Of each family, what each recipe is, in a line, by name."""
    functions = _functions().items()
    return {
        family: {name: line for name, (module, line) in functions if module in modules}
        for family, modules in FAMILIES.items()
    }


def names() -> list[str]:
    """Of all recipes."""
    return list(_functions())


def named(name: str) -> Recipe:
    """The recipe of this name. Raises ConfigError, with the nearest names, where there is none."""
    if name in names():
        return _recipes()[name]()
    near = difflib.get_close_matches(name, names(), cutoff=0.6)
    hint = f"did you mean {', '.join(near)}?" if near else f"there are {', '.join(names())}"
    raise ConfigError(f"no recipe {name!r}; {hint}")


def from_file(uri: str) -> Recipe:
    """The recipe of a run's config.json, or of a sweep's best.json. Raises ConfigError, naming the file."""
    from udaseg.data.storage import read_bytes
    from udaseg.overrides import from_value

    try:
        raw = json.loads(read_bytes(uri, limit=_MAX_CONFIG).decode())
    except (OSError, DatasetError) as error:
        raise ConfigError(f"{uri}: cannot be read, give a run's config.json ({error})") from None
    except (ValueError, RecursionError) as error:  # ValueError: not UTF-8, no JSON, a number of 5,000 digits
        raise ConfigError(f"{uri}: not JSON, give a run's config.json ({error})") from None
    return from_value(raw["recipe"] if isinstance(raw, dict) and "recipe" in raw else raw, _recipes(), uri)


@functools.cache
def _recipes() -> dict[str, Callable[[], Recipe]]:
    """Which imports every method, and torch with them."""
    return {
        function: getattr(importlib.import_module(f"{__name__}.{module}"), function)
        for function, (module, _) in _functions().items()
    }


def __getattr__(name: str) -> Any:
    if name != "RECIPES":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return _recipes()
