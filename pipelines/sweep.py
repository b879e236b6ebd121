"""`udaseg sweep`: search some of a recipe's settings on Ray Tune. A trial is an ordinary run.

sweep.json            what is searched, and how
shared/               a run of the first stages, where no setting that is swept touches them
trials/<id>/          the run of a trial; it resumes in any stage, as every run
trials/<id>/trial.json  its values
tune/                 what Ray Tune keeps
trials.json, .csv     the results
best.json             the best recipe, for `udaseg train --config`
report.html
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import importlib
import io
import json
import math
import os
import pkgutil
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Annotated, Any, Literal

import optuna
import ray
import tyro
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Domain, Float, LogUniform
from rich.console import Console

import tune_spaces
from pipelines.session import ensure_ray, usable_cores
from pipelines.train import Cluster, check, spell_out, stage_directory, train
from udaseg.config import ConfigError, Recipe, from_json, full_names, override, to_json
from udaseg.data.schema import (
    DatasetError,
    absolute,
    children,
    digest,
    exists,
    join,
    read_bytes,
    read_manifest,
    write_bytes,
)
from udaseg.recipes import RECIPES
from udaseg.scoring import Scoring
from udaseg.selection import SCORES
from udaseg.sweep_report import State, Trial, rank_correlations, sweep_page, trial_table
from udaseg.train import CARD_FILE, CheckpointError, TrainingError, copy_model

MODES: dict[str, Literal["min", "max"]] = {"miou": "max", **SCORES}


@dataclass(frozen=True)
class Space:
    """A module of `tune_spaces`."""

    name: str
    recipe: str
    metric: str
    values: Mapping[str, Domain]
    """A field's name, as on the command line of `udaseg train` -> its range."""


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
    """What trials are ranked by; all but miou need no labels. See `udaseg.selection`."""
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


def spaces() -> list[str]:
    """The names of the modules of `tune_spaces`."""
    return sorted(module.name for module in pkgutil.iter_modules(tune_spaces.__path__))


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


def sweep(space: Space, a: Arguments) -> list[Trial]:
    """Try values of a space; writes the results to `a.out` and returns the trials in the order they began.

    Raises:
        ConfigError, DatasetError, CheckpointError: before anything runs, where something does not fit together.
        TrainingError: the shared stages cannot be trained, or no trial came to its end.
    """
    out, directory = absolute(a.out), absolute(a.target)
    wanted = {domain for stage in a.recipe.stages for domain in stage.data.domains()}
    data = {"source": a.source and absolute(a.source), "target": directory if "target" in wanted else None}
    _check(space, a, data)
    settings = _settings(space, a, out)

    need = trial_resources(a.cluster)
    ensure_ray(num_cpus=max(usable_cores(), math.ceil(need["CPU"])), dashboard=True)
    concurrent = a.concurrent or concurrency(ray.cluster_resources(), need)
    write_bytes(join(out, "sweep.json"), settings.encode())
    threads = a.cluster.threads or max(1, usable_cores() // (a.cluster.workers * concurrent))
    cluster = dataclasses.replace(a.cluster, threads=threads)
    shared = shared_stages(a.recipe, space.values)
    if shared:
        first = dataclasses.replace(a.recipe, stages=a.recipe.stages[:shared])
        reads = {domain for stage in first.stages for domain in stage.data.domains()}
        source, target = (data[name] if name in reads else None for name in ("source", "target"))
        train(first, source=source, target=target, out=join(out, "shared"), resume=True, cluster=a.cluster)
    scoring = Scoring(directory=directory, split=a.split, images=a.images, window=a.window)
    trial = _trainable(a.recipe, shared, data, out, cluster, scoring, a.metric)
    _tune(trial, space, a, out, concurrent, shared)

    trials = read_trials(out, a.recipe, shared)
    return _report(space, a, out, trials)


def trial_resources(cluster: Cluster) -> dict[str, float]:
    """What a trial takes: its driver and its data tasks a CPU each, and its workers."""
    return {"CPU": 2 + cluster.workers * cluster.cpus_per_worker, "GPU": cluster.workers if cluster.gpu else 0}


def concurrency(resources: Mapping[str, float], need: Mapping[str, float]) -> int:
    """How many trials run at a time. Raises ConfigError where not even one can."""
    for name, amount in need.items():
        if resources.get(name, 0) < amount:
            raise ConfigError(
                f"a trial takes {amount:g} {name}, the cluster has {resources.get(name, 0):g}; "
                "give it fewer by --cluster.workers, or --concurrent where the cluster will grow"
            )
    return min(int(resources[name] // amount) for name, amount in need.items() if amount)


def shared_stages(recipe: Recipe, names: Sequence[str] | Mapping[str, Any]) -> int:
    """How many stages there are before the first that a field of `names` touches: all trials share their result."""
    paths = [path.split(".") for name in names for path in full_names(recipe, name)]
    return min(int(path[1]) if path[0] == "stages" else 0 for path in paths)


def _check(space: Space, a: Arguments, data: dict[str, str | None]) -> None:
    """Find, before anything runs, what would stop the sweep later."""
    if a.trials < 1 or a.images < 1:
        raise ConfigError("--trials and --images must be at least 1")
    values = {name: domain.sample(random_state=0) for name, domain in space.values.items()}
    check(override(a.recipe, values), data, a.cluster)
    rows = read_manifest(a.target, a.split)
    if a.metric == "miou" and rows["label_uri"].null_count:
        raise DatasetError(
            f"{a.target}: --metric miou needs labels, and images of split {a.split!r} have none; "
            f"choose one of {', '.join(SCORES)}"
        )


def _settings(space: Space, a: Arguments, out: str) -> str:
    """What `out`/sweep.json is to hold. Raises ConfigError unless `out` is new, or resumed with the same settings."""
    chosen = ("metric", "trials", "search", "scheduler", "split", "images", "window")
    mine = {
        "space": {name: f"{domain.domain_str} {domain.sampler}" for name, domain in space.values.items()},
        "recipe": dataclasses.asdict(a.recipe),
        **{name: getattr(a, name) for name in chosen},
        "manifests": [digest(directory) for directory in (a.source, a.target) if directory is not None],
    }
    mine = json.loads(json.dumps(mine))
    uri = join(out, "sweep.json")
    if exists(uri):
        if not a.resume:
            raise ConfigError(f"{out}: holds a sweep already; go on with it by --resume, or choose another --out")
        theirs = json.loads(read_bytes(uri))
        if changed := [name for name in mine if theirs.get(name) != mine[name]]:
            raise ConfigError(f"{out}: was begun with other settings ({', '.join(changed)}); choose another --out")
    elif children(out):
        raise ConfigError(f"{out}: exists and is no sweep's directory; choose another --out")
    return json.dumps(mine, indent=1)


# --- trials ---------------------------------------------------------------------------------------------------------


def _trainable(
    recipe: Recipe,
    shared: int,
    data: dict[str, str | None],
    out: str,
    cluster: Cluster,
    scoring: Scoring,
    metric: str,
) -> Callable[[dict[str, Any]], None]:
    """The function of one trial: Ray Tune calls it with values, and again where the trial was interrupted."""
    begins = _begins(recipe, shared)

    def trial(values: dict[str, Any]) -> None:
        ray.data.DataContext.get_current().enable_progress_bars = False
        run, own = override(recipe, values), join(out, "trials", tune.get_context().get_trial_id())
        uri = join(own, "trial.json")
        if exists(uri):
            note = json.loads(read_bytes(uri)) | {"error": None}
        else:
            note = {"began": time.time(), "values": values, "error": None}
            for number in range(shared):
                come_from = stage_directory(join(out, "shared"), run, number)
                copy_model(join(come_from, "model"), join(stage_directory(own, run, number), "model"))

        write_bytes(uri, json.dumps(note).encode())

        def report(row: dict[str, Any]) -> None:
            if (done := begins[row["stage"]] + row["step"]) < begins[-1]:
                tune.report({"step": done, **_scores(row)})

        try:
            train(
                run,
                source=data["source"],
                target=data["target"],
                out=own,
                resume=True,
                cluster=cluster,
                scoring=scoring,
                on_score=report,
            )
        except Exception as error:
            write_bytes(uri, json.dumps(note | {"error": str(error)}).encode())
            if not isinstance(error, TrainingError | ConfigError | CheckpointError):
                raise  # another try may end otherwise
            tune.report({"step": begins[-1], metric: math.nan})
            return
        # Only now: the scheduler may stop a trial at each report, and this one is whole.
        tune.report({"step": begins[-1], **read_curve(own, begins)[-1][1]})

    return trial


def _begins(recipe: Recipe, shared: int) -> list[int]:
    """The steps that a trial has trained before each stage, and in all; those of shared stages are not its own."""
    own = [0 if number < shared else stage.steps for number, stage in enumerate(recipe.stages)]
    return list(accumulate(own, initial=0))


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    return {name: row[name] for name in MODES if name in row}


def read_curve(run: str, begins: Sequence[int]) -> list[tuple[int, dict[str, float]]]:
    """(steps, scores) of a run's checkpoints, oldest first."""
    uri = join(run, "metrics.jsonl")
    rows = map(json.loads, read_bytes(uri).decode().splitlines()) if exists(uri) else []
    return [(begins[row["stage"]] + row["step"], _scores(row)) for row in rows if "entropy" in row]


def read_trials(out: str, recipe: Recipe, shared: int) -> list[Trial]:
    """The trials in a sweep's directory, in the order they began."""
    begins, trials = _begins(recipe, shared), []
    names = [info.base_name for info in children(join(out, "trials"))]
    notes = {name: json.loads(read_bytes(join(out, "trials", name, "trial.json"))) for name in names}
    for name, note in sorted(notes.items(), key=lambda item: item[1]["began"]):
        own = join(out, "trials", name)
        finished = exists(join(own, "model", CARD_FILE))
        state: State = "failed" if note["error"] else "finished" if finished else "stopped"
        trials.append(Trial(name, note["values"], state, read_curve(own, begins), note["error"]))
    return trials


def _tune(trial: Callable, space: Space, a: Arguments, out: str, concurrent: int, shared: int) -> None:
    """Run the trials, or what is left of them."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # a trial that Tune has not noted is begun anew
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a recipe may name files by relative paths
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints whatever its verbosity
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mode, steps = MODES[a.metric], _begins(a.recipe, shared)[-1]
    trainable = tune.with_resources(trial, {"CPU": 1})
    directory = join(out, "tune")
    if a.resume and tune.Tuner.can_restore(directory):
        tune.Tuner.restore(directory, trainable=trainable, resume_errored=True).fit()
        return
    search = (
        OptunaSearch(seed=a.recipe.seed)
        if a.search == "optuna"
        else BasicVariantGenerator(max_concurrent=concurrent, random_state=a.recipe.seed)
    )
    grace = min(steps, max(a.recipe.checkpoint_every, steps // 9))
    scheduler = (
        ASHAScheduler("step", max_t=steps, grace_period=grace, reduction_factor=3, stop_last_trials=False)
        if a.scheduler == "asha"
        else FIFOScheduler()
    )
    tune.Tuner(
        trainable,
        param_space=dict(space.values),
        tune_config=tune.TuneConfig(
            metric=a.metric,
            mode=mode,
            search_alg=search,
            scheduler=scheduler,
            num_samples=a.trials,
            max_concurrent_trials=concurrent if a.search == "optuna" else None,
        ),
        run_config=tune.RunConfig(
            name="tune",
            storage_path=out,
            failure_config=tune.FailureConfig(max_failures=a.cluster.max_failures),
            callbacks=[_Lines(a.metric, a.trials, steps)],
            verbose=0,
        ),
    ).fit()


class _Lines(tune.Callback):
    """A line for each event of a trial."""

    def __init__(self, metric: str, trials: int, steps: int) -> None:
        self.metric, self.trials, self.steps = metric, trials, steps

    def on_trial_start(self, iteration: int, trials: list, trial: Any, **info: Any) -> None:
        values = "  ".join(f"{name} {_short(value)}" for name, value in trial.config.items())
        print(f"trial {trial.trial_id} ({len(trials)} of {self.trials})  {values}", flush=True)

    def on_trial_result(self, iteration: int, trials: list, trial: Any, result: dict, **info: Any) -> None:
        score = _short(result.get(self.metric, math.nan))
        print(f"trial {trial.trial_id}  step {result['step']}/{self.steps}  {self.metric} {score}", flush=True)


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


# --- results --------------------------------------------------------------------------------------------------------


def _report(space: Space, a: Arguments, out: str, trials: list[Trial]) -> list[Trial]:
    """Rank the trials and write what was found."""
    mode = MODES[a.metric]
    ranked = sorted(
        (t for t in trials if t.state == "finished" and math.isfinite(t.last(a.metric))),
        key=lambda t: t.last(a.metric),
        reverse=mode == "max",
    )
    if not ranked:
        why = "; ".join(sorted({t.error for t in trials if t.error})) or "none was begun"
        raise TrainingError(f"no trial came to its end: {why}")
    best = ranked[0]
    recipe = override(a.recipe, best.values)
    correlations = rank_correlations(trials, MODES)
    found = {"trial": best.id, a.metric: best.last(a.metric), "recipe": dataclasses.asdict(recipe)}
    write_bytes(join(out, "best.json"), json.dumps(found, indent=1).encode())
    rows = [{"trial": t.id, "state": t.state, **t.values, "step": t.step, **t.scores} for t in trials]
    write_bytes(join(out, "trials.json"), json.dumps([dataclasses.asdict(t) for t in trials], indent=1).encode())
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(join(out, "trials.csv"), table.getvalue().encode())
    logarithmic = {n for n, d in space.values.items() if isinstance(d, Float) and isinstance(d.sampler, LogUniform)}
    page = sweep_page(
        title=f"{space.name}: {a.recipe.name}",
        trials=trials,
        best=best,
        metric=a.metric,
        mode=mode,
        logarithmic=logarithmic,
        correlations=correlations,
        settings=to_json(recipe),
    )
    write_bytes(join(out, "report.html"), page.encode())
    Console().print(trial_table(trials, best, a.metric))
    for name, (rho, step, count) in correlations.items():
        print(f"{name} ranks {count} trials at step {step} as mIoU does: Spearman {rho:.2f}")
    print(f"report: {join(out, 'report.html')}\nbest: {join(out, 'best.json')}", flush=True)
    return trials


# --- command line ---------------------------------------------------------------------------------------------------


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
