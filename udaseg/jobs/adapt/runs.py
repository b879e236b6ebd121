"""The runs of an adaptation: the warm start, which all share, then source-only and the candidates."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import ray
from ray import tune

from udaseg.checkpoints.directory import CARD_FILE, copy_model
from udaseg.config import Recipe
from udaseg.data.storage import exists, join
from udaseg.errors import CheckpointError, ConfigError, LostWorkError, TrainingError
from udaseg.job_config import Cluster, TrackerName
from udaseg.jobs.adapt.inputs import Inputs
from udaseg.jobs.output import mark
from udaseg.jobs.remote_errors import plain_error, plain_errors
from udaseg.jobs.resources import described, quiet_tune, ray_address, take_address, usable_cores, waits_told
from udaseg.jobs.train import stage_directory, train
from udaseg.jobs.trials import trial_resources


def run_directory(out: str, name: str) -> str:
    return join(out, "runs", name)


def model_of(out: str, name: str) -> str:
    """The model directory that a run ends with."""
    return join(run_directory(out, name), "model")


def train_run(recipe: Recipe, inputs: Inputs, out: str, cluster: Cluster, track: Sequence[TrackerName] = ()) -> None:
    """Train a run, or what is left of it, on the domains that it reads."""
    reads = recipe.domains()
    source, target = (getattr(inputs, name) if name in reads else None for name in ("source", "target"))
    train(recipe, source=source, target=target, out=out, resume=True, cluster=cluster, track=track)


def take_over(warm: str, recipe: Recipe, out: str) -> None:
    """Give the run in `out` its first stage from the run of the warm start, so that it is trained once."""
    model = join(stage_directory(out, recipe, 0), "model")
    if not exists(join(model, CARD_FILE)):
        mark(out, "train")
        copy_model(join(warm, "model"), model)


def train_all(
    runs: Mapping[str, Recipe], inputs: Inputs, out: str, cluster: Cluster, track: Sequence[TrackerName] = ()
) -> dict[str, str]:
    """Train runs side by side where the cluster holds two or more, else one after the other; why some failed, by name.

    A TrainingError stops its own run alone, and for good. What may pass (workers that were lost, a node, a checkpoint
    that cannot be read) is raised when the others have ended: then no run is given up, and all go on another time.
    """
    failed: dict[str, str] = {}
    cut_off: list[Exception] = []
    left = [name for name in runs if not exists(join(model_of(out, name), CARD_FILE))]
    need, has = trial_resources(cluster), ray.cluster_resources()
    fits = min(int(has.get(name, 0) // amount) for name, amount in need.items() if amount)
    if len(left) < 2 or fits < 2:
        if len(left) > 1:
            print(f"one run after the other: each takes {described(need)}, there are {described(has)}", flush=True)
        for name in left:
            print(f"-- {name}", flush=True)
            try:
                with _noted(failed, name):
                    train_run(runs[name], inputs, run_directory(out, name), cluster, track)
            except (LostWorkError, CheckpointError) as error:
                print(f"{name} was cut off: {error}", flush=True)
                cut_off.append(error)
        if cut_off:
            raise cut_off[0]
        return failed
    at_once = min(fits, len(left))
    print(f"{len(left)} runs, {at_once} side by side: {', '.join(left)}", flush=True)
    threads = cluster.threads or max(1, usable_cores() // (cluster.workers * at_once))
    each, address = replace(cluster, threads=threads), ray_address()

    def trial(values: dict[str, Any]) -> None:
        take_address(address)
        why: dict[str, str] = {}
        with _noted(why, values["run"]):
            train_run(runs[values["run"]], inputs, run_directory(out, values["run"]), each, track)
        tune.report({"failed": why})

    quiet_tune()
    with plain_errors(), waits_told("adapt"):
        results = tune.Tuner(
            tune.with_resources(trial, {"CPU": 1}),
            param_space={"run": tune.grid_search(left)},
            tune_config=tune.TuneConfig(max_concurrent_trials=at_once),
            run_config=tune.RunConfig(
                name="tune",
                storage_path=out,
                verbose=0,
                failure_config=tune.FailureConfig(max_failures=cluster.max_failures),  # where the node is lost
            ),
        ).fit()
    for result in results:
        if result.error is not None:  # not what `_noted` tells
            raise plain_error(result.error)
        failed |= (result.metrics or {}).get("failed", {})
    return failed


@contextlib.contextmanager
def _noted(failed: dict[str, str], name: str) -> Any:
    """Note why a run cannot go on, in place of ending the others."""
    try:
        yield
    except LostWorkError:
        raise  # it may go on another time
    except (TrainingError, ConfigError) as error:
        print(f"{name} failed: {error}", flush=True)
        failed[name] = str(error)
