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

import atexit
import csv
import dataclasses
import io
import json
import math
from typing import Any

import ray
from ray.tune.search.optuna import OptunaSearch
from ray.tune.search.sample import Categorical, Float, LogUniform, Quantized

from udaseg.data.manifest import digest, read_manifest
from udaseg.data.storage import absolute, exists, join, read_bytes, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError, DatasetError, TrainingError
from udaseg.evaluation.checkpoint_scores import Scoring
from udaseg.evaluation.model_selection import SCORES
from udaseg.job_config import Sweep
from udaseg.jobs.output import own_directory, require_own
from udaseg.jobs.preflight import check
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.remote_errors import plain_errors
from udaseg.jobs.resources import described, usable_cores, waits_told
from udaseg.jobs.spaces import MODES, Space, shared_stages
from udaseg.jobs.trackers import end_stopped
from udaseg.jobs.train import train
from udaseg.jobs.trials import concurrency, read_trials, run_trials, trainable, trial_resources
from udaseg.jobs.worker import clear_scratch
from udaseg.overrides import override, to_json
from udaseg.reports.sweep import Trial, rank_correlations, sweep_page, trial_table
from udaseg.reports.tables import show


def sweep(space: Space, a: Sweep) -> list[Trial]:
    """Try values of a space; writes the results to `a.out` and returns the trials in the order they began.

    Raises:
        ConfigError, DatasetError, CheckpointError: before anything runs, where something does not fit together.
        TrainingError: the shared stages cannot be trained, or no trial came to its end.
    """
    out, directory = absolute(a.out), absolute(a.target)
    wanted = a.recipe.domains()
    data = {"source": a.source and absolute(a.source), "target": directory if "target" in wanted else None}
    require_own(out, "sweep")
    _check(space, a, data)
    with own_directory(out, "sweep"):
        settings = _settings(space, a, out)
        return _sweep(space, a, out, data, settings)


def _sweep(space: Space, a: Sweep, out: str, data: dict[str, str | None], settings: dict[str, Any]) -> list[Trial]:
    """The sweep's work, in a directory that is its own."""
    need = trial_resources(a.cluster)
    atexit.register(clear_scratch)  # when the trials' workers have ended with Ray
    uri = join(out, "sweep.json")
    begun = json.loads(read_bytes(uri))["concurrent"] if exists(uri) else 0  # which Tune does not change
    ensure_ray(num_cpus=max(usable_cores(), math.ceil(need["CPU"] * max(1, begun))), dashboard=True)
    resources = ray.cluster_resources()
    concurrent = concurrency(resources, need, begun or a.concurrent)
    if begun and concurrent != begun:
        raise ConfigError(
            f"{out}: was begun with {begun} trials at a time, each of which takes {described(need)}, and there are "
            f"{described(resources)}; go on where as many fit"
        )
    if begun and a.concurrent not in (0, begun):
        print(f"--concurrent {a.concurrent}: it was begun with {begun} trials at a time, and goes on so", flush=True)
    write_bytes(uri, dump_json(settings | {"concurrent": concurrent}, indent=1).encode())
    threads = a.cluster.threads or max(1, usable_cores() // (a.cluster.workers * concurrent))
    cluster = dataclasses.replace(a.cluster, threads=threads)
    shared = shared_stages(a.recipe, space.values)
    if shared:
        first = dataclasses.replace(a.recipe, stages=a.recipe.stages[:shared])
        source, target = (data[name] if name in first.domains() else None for name in ("source", "target"))
        own = join(out, "shared")
        train(first, source=source, target=target, out=own, resume=True, cluster=a.cluster, track=a.track)
    scoring = Scoring(directory=absolute(a.target), split=a.split, images=a.images, window=a.window)
    trial = trainable(a.recipe, shared, data, out, cluster, scoring, a.metric, a.track)
    with plain_errors(), waits_told("sweep"):
        run_trials(trial, space, a, out, concurrent, shared)

    trials = read_trials(out, a.recipe, shared)
    for stopped in (t.id for t in trials if t.state == "stopped"):
        end_stopped(join(out, "trials", stopped))
    return _report(space, a, out, trials)


def _check(space: Space, a: Sweep, data: dict[str, str | None]) -> None:
    """Find, before anything runs, what would stop the sweep later."""
    a.check()
    values = {name: domain.sample(random_state=0) for name, domain in space.values.items()}
    for name, domain in space.values.items():
        for one in domain.categories if isinstance(domain, Categorical) else ():
            override(a.recipe, values | {name: one})
    if a.search == "optuna":
        try:
            OptunaSearch.convert_search_space(dict(space.values))
        except (TypeError, ValueError) as error:
            raise ConfigError(f"space {space.name}: {error}; choose --search random") from None
    check(override(a.recipe, values), data, a.cluster)
    rows = read_manifest(a.target, a.split)
    if a.metric == "miou" and rows["label_uri"].null_count:
        raise DatasetError(
            f"{a.target}: --metric miou needs labels, and images of split {a.split!r} have none; "
            f"choose one of {', '.join(SCORES)}"
        )


def _settings(space: Space, a: Sweep, out: str) -> dict[str, Any]:
    """What `out`/sweep.json is to hold. Raises ConfigError unless it is new, or resumed with the same settings."""
    chosen = ("metric", "trials", "search", "scheduler", "split", "images", "window")
    mine = {
        "space": {name: f"{domain.domain_str} {_told(domain.sampler)}" for name, domain in space.values.items()},
        "recipe": dataclasses.asdict(a.recipe),
        **{name: getattr(a, name) for name in chosen},
        "manifests": [digest(directory) for directory in (a.source, a.target) if directory is not None],
    }
    mine = dict(json.loads(json.dumps(mine)))
    uri = join(out, "sweep.json")
    if exists(uri):
        if not a.resume:
            raise ConfigError(f"{out}: holds a sweep already; go on with it by --resume, or choose another --out")
        theirs = json.loads(read_bytes(uri))
        if changed := [name for name in mine if theirs.get(name) != mine[name]]:
            raise ConfigError(f"{out}: was begun with other settings ({', '.join(changed)}); choose another --out")
    return mine


def _told(sampler: Any) -> str:
    """A sampler in words that are the same in every process."""
    return f"{_told(sampler.sampler)} in steps of {sampler.q}" if isinstance(sampler, Quantized) else str(sampler)


def _report(space: Space, a: Sweep, out: str, trials: list[Trial]) -> list[Trial]:
    """Rank the trials and write what was found."""
    mode = MODES[a.metric]
    ranked = sorted(
        (t for t in trials if t.state == "finished" and math.isfinite(t.last(a.metric))),
        key=lambda t: t.last(a.metric),
        reverse=mode == "max",
    )
    rows = [{"trial": t.id, "state": t.state, **t.values, "step": t.step, **t.scores} for t in trials]
    write_bytes(join(out, "trials.json"), dump_json([dataclasses.asdict(t) for t in trials], indent=1).encode())
    table = io.StringIO()
    writer = csv.DictWriter(table, list(dict.fromkeys(name for row in rows for name in row)))
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(join(out, "trials.csv"), table.getvalue().encode())
    if not ranked:
        why = "; ".join(sorted({t.error for t in trials if t.error})) or "none was begun"
        raise TrainingError(f"no trial came to its end: {why}")
    best = ranked[0]
    recipe = override(a.recipe, best.values)
    correlations = rank_correlations(trials, MODES)
    found = {"trial": best.id, a.metric: best.last(a.metric), "recipe": dataclasses.asdict(recipe)}
    write_bytes(join(out, "best.json"), dump_json(found, indent=1).encode())
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
    show(trial_table(trials, best, a.metric))
    for name, (rho, step, count) in correlations.items():
        print(f"{name} ranks {count} trials at step {step} as mIoU does: Spearman {rho:.2f}")
    print(f"report: {join(out, 'report.html')}\nbest: {join(out, 'best.json')}", flush=True)
    return trials
