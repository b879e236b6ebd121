"""The search spaces of `tune_spaces`, and what a space means for a recipe."""

from __future__ import annotations

import ast
import importlib
import pkgutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ray.tune.search.sample import Domain

import tune_spaces
from udaseg.config import Recipe
from udaseg.errors import ConfigError
from udaseg.evaluation.model_selection import SCORES
from udaseg.overrides import full_names
from udaseg.recipes import RECIPES

MODES: dict[str, Literal["min", "max"]] = {"miou": "max", **SCORES}
"""What trials can be ranked by, and whether the smallest or the largest is the best."""


@dataclass(frozen=True)
class Space:
    """A module of `tune_spaces`."""

    name: str
    recipe: str
    metric: str
    values: Mapping[str, Domain]
    """A field's name, as on the command line of `udaseg train` -> its range."""


def spaces() -> list[str]:
    """The names of the modules of `tune_spaces`."""
    return sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))


def space_summaries() -> dict[str, str]:
    """What each space searches, in a line, by name."""
    folder = Path(tune_spaces.__path__[0])
    docs = {name: ast.get_docstring(ast.parse((folder / f"{name}.py").read_text("utf-8"))) for name in spaces()}
    return {name: (doc or "").partition("\n")[0] for name, doc in docs.items()}


def load_space(name: str) -> Space:
    """A space by name. Raises ConfigError where there is none, or it does not fit a metric or recipe."""
    if name not in spaces():
        raise ConfigError(f"no space {name!r}; there are {', '.join(spaces())}")
    module = importlib.import_module(f"tune_spaces.{name}")
    space = Space(name, module.RECIPE, module.METRIC, module.SPACE)
    if space.metric not in MODES:
        raise ConfigError(f"tune_spaces/{name}.py: METRIC is {space.metric!r}; it must be one of {', '.join(MODES)}")
    if space.recipe not in RECIPES:
        raise ConfigError(f"tune_spaces/{name}.py: no recipe {space.recipe!r}; there are {', '.join(RECIPES)}")
    if wrong := [field for field, domain in space.values.items() if not isinstance(domain, Domain)]:
        raise ConfigError(f"tune_spaces/{name}.py: {wrong[0]} is no range; give one of ray.tune, e.g. uniform(0, 1)")
    return space


def shared_stages(recipe: Recipe, names: Sequence[str] | Mapping[str, Any]) -> int:
    """How many stages there are before the first that a field of `names` touches: all trials share their result.

    They share its model alone, so none that a later one is `translated_by`, which asks for more of it.
    """
    paths = [path.split(".") for name in names for path in full_names(recipe, name)]
    first = min(int(path[1]) if path[0] == "stages" else 0 for path in paths)
    asked = {stage.translated_by for stage in recipe.stages[first:]}
    return min([first, *(i for i, stage in enumerate(recipe.stages) if stage.name in asked)])
