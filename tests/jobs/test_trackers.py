"""Trackers: what a run shows them is read back from MLflow's store and W&B's file; what fails is told once."""

from __future__ import annotations

import json
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import mlflow
import pytest
from tiny import make_dataset, tiny_recipe

from pipelines.train import main as train_main
from udaseg.data.storage import join
from udaseg.errors import ConfigError
from udaseg.job_config import Cluster
from udaseg.jobs import trackers
from udaseg.jobs.trackers import end_stopped, tracked
from udaseg.jobs.train import train

RECIPE = tiny_recipe("dacs_small", steps=6)
"""Of two stages."""


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> mlflow.MlflowClient:
    """Local places for all trackers, and MLflow's client."""
    monkeypatch.chdir(tmp_path)
    for name, value in {
        "MLFLOW_TRACKING_URI": str(tmp_path / "mlruns"),
        "MLFLOW_ALLOW_FILE_STORE": "true",
        "MLFLOW_DISABLE_TELEMETRY": "true",
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(tmp_path),
    }.items():
        monkeypatch.setenv(name, value)
    return mlflow.MlflowClient(str(tmp_path / "mlruns"))


def run_of(client: mlflow.MlflowClient, out: Path) -> Any:
    return client.get_run(json.loads((out / "trackers" / "mlflow.json").read_text())["run"])


def points(client: mlflow.MlflowClient, run: str, name: str) -> list[tuple[int, float]]:
    return [(point.step, point.value) for point in client.get_metric_history(run, name)]


def records(folder: Path) -> Iterator[Any]:
    """Of W&B's file: parts of records in blocks of 32 KiB, each behind its checksum (4 bytes), length (2) and kind."""
    from wandb.proto.wandb_internal_pb2 import Record  # of `make test-all`

    (file,) = folder.glob("run-*.wandb")
    content, at, record = file.read_bytes(), 7, b""
    while at + 7 <= len(content):
        if (1 << 15) - at % (1 << 15) < 7:
            at += (1 << 15) - at % (1 << 15)
            continue
        size, part = int.from_bytes(content[at + 4 : at + 6], "little"), content[at + 6]
        record += content[at + 7 : at + 7 + size]
        at += 7 + size
        if part in (1, 4):  # whole, or the last part
            yield Record.FromString(record)
            record = b""


def row(step: int, **values: Any) -> dict[str, Any]:
    return {"step": step, "lr": 0.1, **values}


def test_mlflow_has_a_run_that_is_gone_on_with(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    out = tmp_path / "runs" / "tiny"
    with pytest.raises(KeyboardInterrupt), tracked(["mlflow"], str(out), RECIPE) as log:
        for step in (1, 2, 1, 2, 3):  # a lost worker: two steps are done again
            log(0, row(step, source_ce=float(step)))
        log(0, {"step": 3, "entropy": 0.5, "miou": None})
        raise KeyboardInterrupt
    run = run_of(store, out)
    assert (run.info.run_name, run.info.status) == ("runs/tiny", "KILLED")
    assert run.data.params["name"] == "dacs_small" and run.data.params["stages.1.optim.lr"] == str(
        RECIPE.stages[1].optim.lr
    )
    assert json.loads(run.data.params["stages.0.data.crop"]) == [32, 32] and len(run.data.params) > 100
    with tracked(["mlflow"], str(out), RECIPE) as log:
        log(0, row(3, source_ce=3.0))
        log(0, row(4, source_ce=float("nan")))
        log(1, row(2, source_ce=9.0))
    again = run_of(store, out)
    assert again.info.run_id == run.info.run_id and again.info.status == "FINISHED"
    assert points(store, run.info.run_id, "source_ce") == [(1, 1.0), (2, 2.0), (3, 3.0), (8, 9.0)]
    assert points(store, run.info.run_id, "stage") == [(1, 0), (2, 0), (3, 0), (3, 0), (4, 0), (8, 1)]
    assert points(store, run.info.run_id, "entropy") == [(3, 0.5)]
    assert "miou" not in again.data.metrics


def test_a_run_whose_process_was_stopped_is_ended(store: mlflow.MlflowClient, tmp_path: Path) -> None:
    end_stopped(str(tmp_path))  # nothing was tracked
    with tracked(["mlflow"], str(tmp_path), RECIPE):
        pass
    run = run_of(store, tmp_path).info.run_id
    store.update_run(run, status="RUNNING")
    end_stopped(str(tmp_path))
    assert run_of(store, tmp_path).info.status == "KILLED"


@pytest.mark.full
def test_wandb_has_a_run_offline(store: mlflow.MlflowClient, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "_PATIENCE", 300.0)  # its process is slow to start on a busy machine
    with tracked(["wandb"], str(tmp_path / "runs" / "tiny"), RECIPE) as log:
        log(0, row(1, source_ce=1.0))
        log(0, {"step": 1, "entropy": 0.5})
        log(1, row(2, source_ce=9.0))
    (folder,) = (tmp_path / "wandb").glob("offline-run-*")
    history, begun, ended = [], None, None
    for record in records(folder):
        kind = record.WhichOneof("record_type")
        if kind == "run":
            begun = begun or record.run
        elif kind == "history":
            values = {
                item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in record.history.item
            }
            history.append(
                {key: value for key, value in values.items() if not key.startswith("_")}
                | {"at": record.history.step.num}
            )
        elif kind == "exit":
            ended = record.exit.exit_code
    assert begun is not None and (begun.display_name, begun.project) == ("runs/tiny", "udaseg")
    assert begun.run_id == json.loads((tmp_path / "runs/tiny/trackers/wandb.json").read_text())["run"]
    config = {item.key: json.loads(item.value_json) for item in begun.config.update}
    assert config["name"] == "dacs_small" and config["stages.1.optim.lr"] == RECIPE.stages[1].optim.lr
    assert history == [
        {"lr": 0.1, "source_ce": 1.0, "entropy": 0.5, "stage": 0, "at": 1},
        {"lr": 0.1, "source_ce": 9.0, "stage": 1, "at": 8},
    ]
    assert ended == 0


class Silent:
    """A tracker that answers nothing until it may."""

    run, begin, may = "x", 0, threading.Event()

    def __init__(self, *given: object) -> None: ...

    def log(self, values: object, step: int) -> None:
        self.may.wait(20)

    def end(self, status: str) -> None: ...


class Away(Silent):
    def __init__(self, *given: object) -> None:
        raise ConnectionError("no route to\nhost")


class Refuses(Silent):
    def log(self, values: object, step: int) -> None:
        raise ValueError(f"not step {step}")


@pytest.mark.parametrize(
    ("client", "said"),
    [
        (Away, "mlflow: no route to host"),
        (Refuses, "mlflow: not step 1"),
        (Silent, "mlflow: does not answer, 2 rows are left"),
    ],
)
def test_a_tracker_that_fails_is_told_once_and_ends_nothing(
    client: Callable[..., Any],
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    Silent.may.clear()
    monkeypatch.setitem(trackers._CLIENTS, "mlflow", client)
    monkeypatch.setattr(trackers, "_PATIENCE", 0.3)
    with tracked(["mlflow"], str(tmp_path), RECIPE) as log:
        log(0, row(1))
        log(0, row(2))
    Silent.may.set()
    assert capsys.readouterr().err == f"warning: {said}; the run goes on, not all of it is tracked\n"


def test_a_tracker_that_is_not_installed_is_told_before_anything_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    words = ["source_only_small", "--source", str(tmp_path), "--out", str(tmp_path / "run"), "--track", "wandb"]
    assert train_main(words) == 2
    assert capsys.readouterr().err == "error: --track wandb needs wandb: pip install 'udaseg[wandb]'\n"
    with pytest.raises(ConfigError, match=r"pip install 'udaseg\[wandb\]'"):
        train(RECIPE, source=None, target=None, out=str(tmp_path / "run"), track=["wandb"])
    assert not (tmp_path / "run").exists()


@pytest.mark.full
def test_a_training_run_and_its_resumption_are_one_run_in_a_database(
    tmp_path: Path, ray_session: None, store: mlflow.MlflowClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    database = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", database)
    client, out = mlflow.MlflowClient(database), tmp_path / "run"
    recipe = tiny_recipe("source_only_small")
    given: dict[str, Any] = {
        "source": make_dataset(tmp_path / "source", "source"),
        "target": None,
        "out": str(out),
        "cluster": Cluster(gpu=False, threads=1),
        "track": ["mlflow"],
    }
    train(recipe, **given)
    run = run_of(client, out)
    assert run.info.status == "FINISHED" and run.info.run_name == "run"
    kept = [json.loads(line) for line in Path(join(str(out), "metrics.jsonl")).read_text().splitlines()]
    for name in ("ce", "lr", "images_per_second"):
        assert points(client, run.info.run_id, name) == [(r["step"], r[name]) for r in kept]
    train(recipe, **given, resume=True)
    assert run_of(client, out).info.run_id == run.info.run_id
    assert len(points(client, run.info.run_id, "ce")) == len(kept) == 4
