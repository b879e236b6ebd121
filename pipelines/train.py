"""`udaseg train`: run a recipe."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

import tyro

from pipelines.cli import spell_out
from udaseg.config import Recipe
from udaseg.data.storage import exists, read_bytes
from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from udaseg.job_config import Cluster
from udaseg.jobs.train import train
from udaseg.overrides import from_json as recipe_from_json
from udaseg.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adapt a segmentation network: udaseg train RECIPE --source DIR --target DIR --out DIR [--section.field value].

    A field such as --method.temperature stands for that field in every stage; --stages.2.method.temperature for one.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: str
    """Run directory, a path or URI that every node can write."""
    source: str | None = None
    """Dataset directory of labelled source images."""
    target: str | None = None
    """Dataset directory of target images."""
    resume: bool = False
    """Go on with the run in --out."""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments of the command line. Raises ConfigError for an unknown recipe or field."""
    if argv and argv[0] == "--config":
        if len(argv) < 2 or not exists(argv[1]):
            raise ConfigError(f"--config: no file {argv[1] if len(argv) > 1 else ''}; give a run's config.json")
        raw = json.loads(read_bytes(argv[1]))
        recipe, rest = recipe_from_json(json.dumps(raw.get("recipe", raw)), RECIPES, argv[1]), argv[2:]
    elif argv and argv[0] in RECIPES:
        recipe, rest = RECIPES[argv[0]](), argv[1:]
    elif not argv or argv[0] in ("-h", "--help"):
        print(Arguments.__doc__)
        print("Recipes (udaseg train RECIPE --help lists the fields of one; --config FILE runs a saved configuration):")
        for name, function in RECIPES.items():
            print(f"  {name:20} {(function.__doc__ or '').strip().splitlines()[0]}")
        raise SystemExit(0)
    else:
        raise ConfigError(f"no recipe {argv[0]!r}; there are {', '.join(RECIPES)}")
    default = Arguments(recipe=recipe, out=tyro.MISSING)
    return tyro.cli(
        Arguments,
        args=spell_out(recipe, rest, {"out", "source", "target", "resume"}),
        default=default,
        prog="udaseg train",
        config=(tyro.conf.AvoidSubcommands,),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        model = train(
            arguments.recipe,
            source=arguments.source,
            target=arguments.target,
            out=arguments.out,
            resume=arguments.resume,
            cluster=arguments.cluster,
        )
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"model: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
