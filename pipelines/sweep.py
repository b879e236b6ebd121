"""`udaseg sweep`: search a recipe's settings on Ray Tune."""

from __future__ import annotations

import argparse
import dataclasses
import importlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import tyro

from pipelines.cli import spell_out
from udaseg.config import Recipe
from udaseg.data.storage import exists, read_bytes
from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError
from udaseg.job_config import Cluster
from udaseg.jobs.sweep import Space, load_space, spaces, sweep
from udaseg.overrides import from_json
from udaseg.recipes import RECIPES


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Search a recipe's settings: udaseg sweep SPACE --source DIR --target DIR --out DIR [--section.field value].

    --seed is that of the search and of every trial. Labels of the target, where it has some, show how well a metric
    ranks the trials; they choose only by --metric miou.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: str
    """Directory of the sweep, a path or URI that every node can write."""
    target: str
    """Dataset directory of target images."""
    source: str | None = None
    """Dataset directory of labelled source images."""
    metric: Literal["miou", "entropy", "information", "agreement", "snd"]
    """What trials are ranked by; all but miou need no labels. See `udaseg.evaluation.model_selection`."""
    trials: int = 16
    """How many values are tried."""
    search: Literal["optuna", "random"] = "optuna"
    """How the next values are chosen."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops the worse two thirds of the trials early, none nothing."""
    split: str = "val"
    """Split of the target that checkpoints are scored on."""
    images: int = 200
    """Most images that a checkpoint is scored on."""
    window: tuple[int, int] | None = None
    """Height and width of sliding windows in pixels; None = whole images."""
    concurrent: int = 0
    """Trials at a time; 0 = as many as the cluster's CPUs and GPUs hold."""
    resume: bool = False
    """Go on with the sweep in --out."""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)


def parse(argv: Sequence[str]) -> tuple[Space, Arguments]:
    """The space and arguments of the command line. Raises ConfigError for an unknown space, recipe or field."""
    if not argv or argv[0] in ("-h", "--help"):
        print(Arguments.__doc__)
        print(
            "Spaces (udaseg sweep SPACE --help lists all options; --recipe NAME or config.json takes another recipe):"
        )
        for name in spaces():
            doc = importlib.import_module(f"tune_spaces.{name}").__doc__ or ""
            print(f"  {name:20} {doc.strip().splitlines()[0]}")
        raise SystemExit(0)
    space = load_space(argv[0])
    before = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    before.add_argument("--recipe", default=space.recipe)
    known, rest = before.parse_known_args(argv[1:])
    if known.recipe in RECIPES:
        recipe = RECIPES[known.recipe]()
    elif known.recipe.endswith(".json") and exists(known.recipe):
        raw = json.loads(read_bytes(known.recipe))
        recipe = from_json(json.dumps(raw.get("recipe", raw)), RECIPES, known.recipe)
    else:
        raise ConfigError(f"--recipe: no recipe {known.recipe!r}; there are {', '.join(RECIPES)}")
    own = {field.name for field in dataclasses.fields(Arguments)} - {"recipe", "cluster"}
    arguments = tyro.cli(
        Arguments,
        args=spell_out(recipe, rest, own),
        default=Arguments(recipe=recipe, out=tyro.MISSING, target=tyro.MISSING, metric=space.metric),  # type: ignore[arg-type]
        prog=f"udaseg sweep {space.name}",
        config=(tyro.conf.AvoidSubcommands,),
    )
    return space, arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        sweep(*parse(sys.argv[1:] if argv is None else argv))
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
