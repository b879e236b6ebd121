"""The trials of a sweep: what one takes, runs and leaves behind."""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from typing import Any

import optuna
import ray
from ray import tune
from ray.tune.schedulers import ASHAScheduler, FIFOScheduler
from ray.tune.search import BasicVariantGenerator
from ray.tune.search.optuna import OptunaSearch

from udaseg.checkpoints.directory import CARD_FILE, copy_model
from udaseg.config import Recipe
from udaseg.data.storage import children, exists, join, read_bytes, remove, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError, LostWorkError, TrainingError
from udaseg.evaluation.checkpoint_scores import Scoring
from udaseg.evaluation.model_selection import SCORES
from udaseg.job_config import Cluster, Sweep, TrackerName
from udaseg.jobs.output import mark
from udaseg.jobs.resources import described, quiet_tune, ray_address, take_address
from udaseg.jobs.run_directory import read_metrics
from udaseg.jobs.spaces import MODES, Space
from udaseg.jobs.train import stage_directory, train
from udaseg.overrides import override
from udaseg.reports.sweep import State, Trial


def trial_resources(cluster: Cluster) -> dict[str, float]:
    """What a trial takes: its driver and its data tasks a CPU each, and its workers."""
    return {"CPU": 2 + cluster.workers * cluster.cpus_per_worker, "GPU": cluster.workers if cluster.gpu else 0}


def concurrency(resources: Mapping[str, float], need: Mapping[str, float], asked: int = 0) -> int:
    """How many trials run at a time: `asked`, or as many as fit. On this machine alone never more than fit.

    Raises ConfigError where not even one can, unless the cluster may grow and `asked` says how far.
    """
    fits = min(int(resources.get(name, 0) // amount) for name, amount in need.items() if amount)
    if asked > fits:
        here = ray_address() == "local"
        go_on = f"going on with {fits} at a time" if here else "the others wait for nodes"
        if fits or not here:
            print(f"--concurrent {asked}: a trial takes {described(need)}, there are {described(resources)}; {go_on}")
            return fits if here else asked
    elif asked:
        return asked
    for name, amount in need.items():
        if resources.get(name, 0) < amount:
            raise ConfigError(
                f"a trial takes {amount:g} {name}, the cluster has {resources.get(name, 0):g}; "
                "give it fewer by --cluster.workers, or --concurrent where the cluster will grow"
            )
    return fits


def trainable(
    recipe: Recipe,
    shared: int,
    data: dict[str, str | None],
    out: str,
    cluster: Cluster,
    scoring: Scoring,
    metric: str,
    track: Sequence[TrackerName] = (),
) -> Callable[[dict[str, Any]], None]:
    """The function of one trial: Ray Tune calls it with values, and again where the trial was interrupted."""
    begins, address = stage_begins(recipe, shared), ray_address()

    def trial(values: dict[str, Any]) -> None:
        take_address(address)
        ray.data.DataContext.get_current().enable_progress_bars = False
        own = join(out, "trials", tune.get_context().get_trial_id())
        uri = join(own, "trial.json")
        note = json.loads(read_bytes(uri)) if exists(uri) else {"began": time.time(), "values": values}
        write_bytes(uri, dump_json(note | {"error": None}).encode())
        mark(own, "train")

        def report(row: dict[str, Any]) -> None:
            if (done := begins[row["stage"]] + row["step"]) < begins[-1]:
                tune.report({"step": done, **_scores(row)})

        try:
            run = override(recipe, values)
            for number in range(shared):
                model = join(stage_directory(own, run, number), "model")
                if not exists(join(model, CARD_FILE)):
                    copy_model(join(stage_directory(join(out, "shared"), run, number), "model"), model)
            train(
                run,
                source=data["source"],
                target=data["target"],
                out=own,
                resume=True,
                cluster=cluster,
                scoring=scoring,
                on_score=report,
                track=track,
            )
        except Exception as error:
            write_bytes(uri, dump_json(note | {"error": str(error)}).encode())
            if isinstance(error, LostWorkError) or not isinstance(error, TrainingError | ConfigError):
                raise  # another try may end otherwise
            tune.report({"step": begins[-1], metric: math.nan})
            return
        # Only now: the scheduler may stop a trial at each report, and this one is whole.
        tune.report({"step": begins[-1], **read_curve(own, begins)[-1][1]})

    return trial


def stage_begins(recipe: Recipe, shared: int) -> list[int]:
    """The steps that a trial has trained before each stage, and in all; those of shared stages are not its own."""
    own = [0 if number < shared else stage.steps for number, stage in enumerate(recipe.stages)]
    return list(accumulate(own, initial=0))


def _scores(row: Mapping[str, Any]) -> dict[str, float]:
    """The scores in a row of metrics, NaN where there was none to take."""
    return {name: math.nan if row[name] is None else row[name] for name in MODES if name in row}


def read_curve(run: str, begins: Sequence[int]) -> list[tuple[int, dict[str, float]]]:
    """(steps, scores) of a run's checkpoints, oldest first; the losses in other rows may have a score's name."""
    rows = (row for row in read_metrics(run) if SCORES.keys() <= row.keys())
    return [(begins[row["stage"]] + row["step"], _scores(row)) for row in rows]


def read_trials(out: str, recipe: Recipe, shared: int) -> list[Trial]:
    """The trials in a sweep's directory, in the order they began."""
    begins, trials = stage_begins(recipe, shared), []
    folders = [info.base_name for info in children(join(out, "trials"))]
    uris = {name: join(out, "trials", name, "trial.json") for name in folders}
    notes = {name: json.loads(read_bytes(uri)) for name, uri in uris.items() if exists(uri)}
    for name, note in sorted(notes.items(), key=lambda item: item[1]["began"]):
        own = join(out, "trials", name)
        finished = exists(join(own, "model", CARD_FILE))
        state: State = "failed" if note["error"] else "finished" if finished else "stopped"
        trials.append(Trial(name, note["values"], state, read_curve(own, begins), note["error"]))
    return trials


def run_trials(trial: Callable, space: Space, a: Sweep, out: str, concurrent: int, shared: int) -> None:
    """Run the trials, or what is left of them."""
    os.environ.setdefault("TUNE_GLOBAL_CHECKPOINT_S", "2")  # a trial that Tune has not noted is begun anew
    quiet_tune()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    mode, steps = MODES[a.metric], stage_begins(a.recipe, shared)[-1]
    runnable = tune.with_resources(trial, {"CPU": 1})
    directory = join(out, "tune")
    if a.resume and _restorable(directory):
        tune.Tuner.restore(directory, trainable=runnable, resume_errored=True).fit()
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
        runnable,
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


def _restorable(directory: str) -> bool:
    """Whether Tune has noted its trials. What a kill cut off is removed: Tune would begin anew, without a space."""
    names = (info.base_name for info in children(directory))
    for name in sorted((n for n in names if n.startswith("experiment_state-")), reverse=True):  # newest first
        try:
            json.loads(read_bytes(join(directory, name)))
        except ValueError:
            remove(join(directory, name))
        else:
            return tune.Tuner.can_restore(directory)
    return False


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
