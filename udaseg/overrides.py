"""A recipe's fields by name: from the command line, from Ray Tune, and as JSON."""

from __future__ import annotations

import dataclasses
import difflib
import types
import typing
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import typeguard

from udaseg.config import Recipe
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError


def full_names(recipe: Recipe, name: str) -> list[str]:
    """The fields that an override's name stands for: `method.x` is `stages.i.method.x` of every stage that has it.

    Raises ConfigError, with the nearest names, where no field is meant.
    """
    paths = [path for path, _ in leaves(dataclasses.asdict(recipe))]
    if name in paths:
        return [name]
    everywhere = [path for path in paths if path.split(".")[0] == "stages" and path.split(".", 2)[2] == name]
    if everywhere:
        return everywhere
    short = sorted({path.split(".", 2)[2] if path.startswith("stages.") else path for path in paths})
    close = difflib.get_close_matches(name, [*short, *paths], n=3, cutoff=0.5)
    hint = f"; did you mean {', '.join(close)}?" if close else ""
    raise ConfigError(f"recipe {recipe.name!r} has no field {name!r}{hint}")


def override(recipe: Recipe, values: Mapping[str, Any]) -> Recipe:
    """A copy of the recipe with other values, e.g. `override(recipe, {"method.temperature": 0.07})`.

    Raises ConfigError where a name is misspelt or a value is of another type than the field.
    """
    for name, value in values.items():
        for path in full_names(recipe, name):
            recipe = _set(recipe, path.split("."), value, path)
    return recipe


def to_json(recipe: Recipe) -> str:
    """The recipe with every field, as JSON whose value `from_value` takes."""
    return dump_json(dataclasses.asdict(recipe), indent=1)


def from_value(raw: Any, recipes: Mapping[str, Any], origin: str) -> Recipe:
    """The recipe of which `to_json` wrote `raw`. `recipes` maps names to the functions that build them.

    Raises ConfigError, naming `origin`, where it is no recipe, or names one or a field that there is not.
    """
    if not isinstance(raw, dict) or not isinstance(raw.get("name"), str):
        raise ConfigError(
            f'{origin}: not a recipe; give a config.json of `udaseg train`: {{"recipe": {{"name": ...}}}}'
        )
    if raw["name"] not in recipes:
        raise ConfigError(f"{origin}: no recipe {raw['name']!r}; there are {', '.join(recipes)}")
    recipe: Recipe = recipes[raw["name"]]()
    stages = raw.get("stages", [{}] * len(recipe.stages))
    if not isinstance(stages, list) or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{origin}: stages is no list of stages")
    if len(stages) != len(recipe.stages):
        raise ConfigError(f"{origin}: {len(stages)} stages; recipe {recipe.name!r} has {len(recipe.stages)}")
    try:
        return override(recipe, dict(leaves(raw)))
    except ConfigError as error:
        raise ConfigError(f"{origin}: {error}") from None


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted name, value) of every field of a recipe's JSON, or of its `asdict`, that is no section of its own."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list | tuple) and any(isinstance(v, dict) for v in value):
        items = [(str(i), v) for i, v in enumerate(value)]
    else:
        yield prefix, value
        return
    for name, item in items:
        yield from leaves(item, f"{prefix}.{name}" if prefix else name)


def _set(value: Any, path: list[str], new: Any, full: str) -> Any:
    if isinstance(value, tuple):
        i = int(path[0])
        return (*value[:i], _set(value[i], path[1:], new, full), *value[i + 1 :])
    if len(path) > 1:
        return dataclasses.replace(value, **{path[0]: _set(getattr(value, path[0]), path[1:], new, full)})
    expected = typing.get_type_hints(type(value))[path[0]]
    new = _tuples(new)
    union = typing.get_origin(expected) in (types.UnionType, typing.Union)
    kinds = set(typing.get_args(expected)) if union else {expected}
    if float in kinds and isinstance(new, int) and not isinstance(new, bool):
        try:
            new = float(new)
        except OverflowError:
            raise ConfigError(f"{full} is too large for a float") from None
    numbers = new if isinstance(new, tuple) else (new,) if kinds & {int, float} and bool not in kinds else ()
    if any(isinstance(number, bool) for number in numbers):  # Python counts True as 1
        raise ConfigError(f"{full} is {new!r}; it must be {_type_name(expected)}")
    try:
        typeguard.check_type(new, expected)
    except typeguard.TypeCheckError:
        raise ConfigError(f"{full} is {new!r}; it must be {_type_name(expected)}") from None
    return dataclasses.replace(value, **{path[0]: new})


def _tuples(value: Any) -> Any:
    """A value with tuples for its lists, as JSON has no tuples."""
    return tuple(map(_tuples, value)) if isinstance(value, list) else value


def _type_name(expected: Any) -> str:
    if typing.get_origin(expected) is Literal:
        return "one of " + ", ".join(map(repr, typing.get_args(expected)))
    if typing.get_origin(expected) in (types.UnionType, typing.Union):
        return " or ".join(map(_type_name, typing.get_args(expected)))
    return getattr(expected, "__name__", None) if isinstance(expected, type) else str(expected)  # type: ignore[return-value]
