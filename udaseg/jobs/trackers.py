"""Trackers: what TensorBoard is shown of a run, at MLflow or Weights & Biases too, whatever becomes of these.

trackers/<name>.json in the run's directory    its id there, by which a resumed run goes on

Where a tracker lies, and under which experiment or project, its own environment variables say. Each has a thread of
its own, so that a server which is slow or away holds nothing up.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import queue
import sys
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate
from typing import Any, Literal, Protocol

from udaseg.config import Recipe
from udaseg.data.storage import exists, filesystem, join, read_bytes, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.job_config import TrackerName
from udaseg.overrides import leaves, to_json
from udaseg.reports.tables import printable

Status = Literal["finished", "failed", "killed"]
Log = Callable[[int, Mapping[str, Any]], None]
"""Of a stage's number and a row of its metrics."""

_PATIENCE = 30.0
"""Seconds that trackers have for what is left when a run has ended."""


class _Client(Protocol):
    """A run at a tracker; whatever goes wrong there is raised."""

    run: str
    """Its id there."""
    begin: int
    """The first step that it does not have."""

    def log(self, values: Mapping[str, float], step: int) -> None: ...

    def end(self, status: Status) -> None: ...


class _MLflow:
    def __init__(self, run: str | None, name: str, settings: Mapping[str, Any]) -> None:
        import mlflow
        from mlflow.entities import Param

        self._client = mlflow.MlflowClient()
        self.begin = 0
        if run is not None:
            self.run = run
            self._client.update_run(run, status="RUNNING")
            self.begin = 1 + max((point.step for point in self._client.get_metric_history(run, "lr")), default=-1)
            return
        self.run = self._client.create_run(self._experiment(), run_name=name).info.run_id
        texts = {key: value if isinstance(value, str) else dump_json(value) for key, value in settings.items()}
        params = [Param(key, text) for key, text in texts.items()]
        for first in range(0, len(params), 100):  # a request holds no more
            self._client.log_batch(self.run, params=params[first : first + 100])

    def _experiment(self) -> str:
        """The id of the one that is named; `mlflow.set_experiment` would change the caller's environment."""
        if given := os.environ.get("MLFLOW_EXPERIMENT_ID"):
            return given
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", "udaseg")
        if (found := self._client.get_experiment_by_name(name)) is None:
            with contextlib.suppress(Exception):  # another run may have been quicker
                self._client.create_experiment(name)
            found = self._client.get_experiment_by_name(name)
        return str(found.experiment_id)

    def log(self, values: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        self._client.log_batch(self.run, metrics=[Metric(key, value, now, step) for key, value in values.items()])

    def end(self, status: Status) -> None:
        self._client.set_terminated(self.run, status.upper())


class _WandB:
    def __init__(self, run: str | None, name: str, settings: Mapping[str, Any]) -> None:
        import wandb

        self.run = run or uuid.uuid4().hex[:8]
        self._live = wandb.init(
            project=os.environ.get("WANDB_PROJECT", "udaseg"),
            id=self.run,
            name=name[-128:],
            config=dict(settings),
            resume="allow",
            reinit="create_new",  # the caller may have one of its own
            settings=wandb.Settings(console="off"),  # which would take over what is printed
        )
        self.begin = self._live.step

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._live.log(dict(values), step=step)

    def end(self, status: Status) -> None:
        self._live.finish(exit_code=0 if status == "finished" else 1)


_CLIENTS: dict[TrackerName, type[_MLflow] | type[_WandB]] = {"mlflow": _MLflow, "wandb": _WandB}


class _Tracker(threading.Thread):
    """A tracker of the run in `out`. Rows of steps that it has are left out: what is done again is the same again."""

    def __init__(self, name: TrackerName, out: str, recipe: Recipe) -> None:
        super().__init__(name=name, daemon=True)
        self.left: queue.SimpleQueue[tuple[int, Mapping[str, float]] | Status] = queue.SimpleQueue()
        self._tracker, self._out, self._recipe = name, out, recipe
        self._told = False

    def run(self) -> None:
        try:
            client = self._open()
        except Exception as error:
            self.warn(str(error) or type(error).__name__)
            return
        last, status = (client.begin - 1, True), None
        while status is None:
            item = self.left.get()
            try:
                if isinstance(item, str):
                    status = item
                    client.end(status)
                elif (at := (item[0], "lr" not in item[1])) > last:  # a checkpoint's scores come after its step
                    last = at
                    client.log(item[1], item[0])
            except Exception as error:
                self.warn(str(error) or type(error).__name__)

    def _open(self) -> _Client:
        note = join(self._out, "trackers", f"{self._tracker}.json")
        run = json.loads(read_bytes(note))["run"] if exists(note) else None
        settings = dict(leaves(json.loads(to_json(self._recipe))))
        client = _CLIENTS[self._tracker](run, _name(self._out), settings)
        write_bytes(note, dump_json({"run": client.run}).encode())
        return client

    def warn(self, reason: str) -> None:
        """Tell once what went wrong."""
        if not self._told:
            self._told = True
            line = printable(" ".join(reason.split())[:500])
            print(f"warning: {self._tracker}: {line}; the run goes on, not all of it is tracked", file=sys.stderr)


@contextlib.contextmanager
def tracked(names: Sequence[TrackerName], out: str, recipe: Recipe) -> Iterator[Log]:
    """What shows trackers the rows of a run's metrics, while the block runs; it never raises.

    Names of metrics are TensorBoard's, "stage" beside them; steps are counted on from stage to stage.
    """
    begins = list(accumulate((stage.steps for stage in recipe.stages), initial=0))
    trackers = [_Tracker(name, out, recipe) for name in dict.fromkeys(names)]
    for tracker in trackers:
        tracker.start()

    def log(number: int, row: Mapping[str, Any]) -> None:
        numbers = {key: value for key, value in row.items() if isinstance(value, int | float) and math.isfinite(value)}
        step = begins[number] + int(numbers.pop("step"))
        for tracker in trackers:
            tracker.left.put((step, {**numbers, "stage": number}))

    status: Status = "failed"
    try:
        yield log
        status = "finished"
    except (KeyboardInterrupt, SystemExit):
        status = "killed"
        raise
    finally:
        until = time.monotonic() + _PATIENCE
        for tracker in trackers:
            tracker.left.put(status)
        for tracker in trackers:
            tracker.join(max(0.0, until - time.monotonic()))
            if tracker.is_alive():
                tracker.warn(f"does not answer, {tracker.left.qsize()} rows are left")


def end_stopped(out: str) -> None:
    """Tell MLflow that the run in `out` has ended, whose process was stopped; W&B finds out by itself."""
    note = join(out, "trackers", "mlflow.json")
    if not exists(note):
        return
    with contextlib.suppress(Exception):  # it was warned of
        import mlflow

        client, run = mlflow.MlflowClient(), json.loads(read_bytes(note))["run"]
        if client.get_run(run).info.status == "RUNNING":
            client.set_terminated(run, "KILLED")


def _name(out: str) -> str:
    """A run directory as it is typed here; nothing of a URI but its path, which holds no keys."""
    if "://" in out:
        return filesystem(out)[1]
    near = os.path.relpath(out)
    return out if near.startswith("..") else near
