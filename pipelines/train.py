"""`udaseg train`: run a recipe."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from pipelines.cli import command, parse_arguments, spell_out
from udaseg.config import Recipe
from udaseg.errors import ConfigError
from udaseg.job_config import Cluster, TrackerName
from udaseg.recipes import from_file, named, summaries


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
    track: tuple[TrackerName, ...] = ()
    """Trackers that the run is shown to."""
    cluster: Cluster = field(default_factory=Cluster)


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments of the command line. Raises ConfigError for an unknown recipe or field."""
    if not argv or argv[0] in ("-h", "--help"):  # before any network is loaded
        print(Arguments.__doc__)
        print("To begin with: udaseg adapt, which chooses a recipe and says whether it helped.")
        print("Recipes (udaseg train RECIPE --help lists the fields of one; --config FILE runs a saved configuration):")
        for family, recipes in summaries().items():
            print(f"\n{family}:")
            for name, line in recipes.items():
                print(f"  {name:26} {line}")
        raise SystemExit(0)
    if argv[0] == "--config":
        if len(argv) < 2:
            raise ConfigError("--config: give a run's config.json")
        recipe, how, rest = from_file(argv[1]), "--config FILE", argv[2:]
    else:
        recipe, how, rest = named(argv[0]), argv[0], argv[1:]
    default = Arguments(recipe=recipe, out=tyro.MISSING)
    return parse_arguments(
        Arguments,
        spell_out(recipe, rest, {"out", "source", "target", "resume", "track"}),
        default=default,
        prog=f"udaseg train {how}",
        config=(tyro.conf.AvoidSubcommands,),
    )


@command
def main(argv: Sequence[str]) -> None:
    a = parse(argv)
    from udaseg.jobs.train import train

    model = train(
        a.recipe, source=a.source, target=a.target, out=a.out, resume=a.resume, cluster=a.cluster, track=a.track
    )
    print(f"model: {model}")


if __name__ == "__main__":
    sys.exit(main())
