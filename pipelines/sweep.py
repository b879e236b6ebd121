"""`udaseg sweep`: search a recipe's settings on Ray Tune."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from pipelines.cli import command, parse_arguments, spell_out
from udaseg.config import Recipe
from udaseg.errors import ConfigError
from udaseg.job_config import Sweep
from udaseg.recipes import from_file, named

if TYPE_CHECKING:
    from udaseg.jobs.spaces import Space


@dataclass(frozen=True, kw_only=True)
class Arguments(Sweep):
    """Search a recipe's settings: udaseg sweep SPACE --source DIR --target DIR --out DIR [--section.field value].

    --seed is that of the search and of every trial. Labels of the target, where it has some, show how well a metric
    ranks the trials; they choose only by --metric miou.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]


def parse(argv: Sequence[str]) -> tuple[Space, Arguments]:
    """The space and arguments of the command line. Raises ConfigError for an unknown space, recipe or field."""
    from udaseg.jobs.spaces import load_space, space_summaries

    if not argv or argv[0] in ("-h", "--help"):
        print(Arguments.__doc__)
        print(
            "Spaces (udaseg sweep SPACE --help lists all options; --recipe NAME or config.json takes another recipe):"
        )
        for name, line in space_summaries().items():
            print(f"  {name:20} {line}")
        raise SystemExit(0)
    space = load_space(argv[0])
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False, exit_on_error=False)
    before.add_argument("--recipe", default=space.recipe)
    try:
        known, rest = before.parse_known_args(argv[1:])
    except argparse.ArgumentError as error:
        raise ConfigError(f"{error}; give a recipe's name or a config.json") from None
    recipe = from_file(known.recipe) if known.recipe.endswith(".json") else named(known.recipe)
    own = {field.name for field in dataclasses.fields(Arguments)} - {"recipe", "cluster"}
    arguments = parse_arguments(
        Arguments,
        spell_out(recipe, rest, own),
        default=Arguments(recipe=recipe, out=tyro.MISSING, target=tyro.MISSING, metric=space.metric),  # type: ignore[arg-type]
        prog=f"udaseg sweep {space.name}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return space, arguments


@command
def main(argv: Sequence[str]) -> None:
    space, arguments = parse(argv)
    from udaseg.jobs.sweep import sweep

    sweep(space, arguments)


if __name__ == "__main__":
    sys.exit(main())
