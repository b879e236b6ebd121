"""What a worker does before it trains, and what becomes of its errors; and a stage before its workers."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import ray
import torch
from tiny import CLASSES, make_checkpoint, make_dataset, tiny_recipe
from torch.distributed import DistBackendError

from udaseg.checkpoints.directory import load_model, save_model
from udaseg.config import Model
from udaseg.data.storage import write_bytes
from udaseg.errors import TrainingError, UnreachableError
from udaseg.job_config import Cluster
from udaseg.jobs import train as train_module
from udaseg.jobs import worker
from udaseg.jobs.train import run_stage, windows_of
from udaseg.training import step
from udaseg.training.step import build_state

CPU = torch.device("cpu")


class Checkpoint:
    """As Ray Train gives it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @contextlib.contextmanager
    def as_directory(self) -> Iterator[str]:
        yield str(self.folder)


@pytest.mark.parametrize("resumed", [False, True])
@pytest.mark.parametrize("begins", [False, True])
def test_no_weights_are_fetched_where_a_state_replaces_them(
    resumed: bool, begins: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node that joins has none in its cache, and a machine may have no way to the hub."""
    stage = tiny_recipe("stvm_small").stages[-1]
    state = build_state(stage, 3, seed=0, init=None, device=CPU, bf16=False)
    state.step = 2
    state.save(tmp_path / "state.pt")
    (tmp_path / worker.HISTORY_FILE).write_text("")
    monkeypatch.setattr(ray.train, "get_checkpoint", lambda: Checkpoint(tmp_path) if resumed else None)
    monkeypatch.setattr(
        ray.train,
        "get_context",
        lambda: SimpleNamespace(get_world_rank=int, get_world_size=lambda: 1, get_local_world_size=lambda: 1),
    )
    monkeypatch.setattr(ray.train.torch, "get_device", lambda: CPU)
    built: list[Model] = []

    def build(num_classes: int, *, seed: int, bf16: bool, **model: Any) -> Any:
        built.append(Model(**model))
        return original(num_classes, seed=seed, bf16=bf16, **model | {"pretrained": False})

    original = step.build_segmenter
    monkeypatch.setattr(step, "build_segmenter", build)
    ended: list[int] = []
    monkeypatch.setattr(worker, "_run", lambda state, *rest: ended.append(state.step))
    job = worker.WorkerJob(
        stage=replace(stage, model=replace(stage.model, pretrained=True)),
        classes=CLASSES,
        recipe="tiny",
        seed=0,
        init_uri=make_checkpoint(tmp_path / "model", 0) if begins else None,
        checkpoint_every=2,
        log_every=1,
        bf16=False,
        cluster=Cluster(workers=1, gpu=False, threads=1),
    )
    worker._train({"job": ray.cloudpickle.dumps(job)}, None, [])
    assert built[0].pretrained == (not resumed and not begins)
    assert ended == [2 if resumed else 0]


def test_what_fails_three_times_at_one_step_ends_the_stage(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else each of `--cluster.max-failures` tries would end in it, and the workers' machines be paid for meanwhile."""
    at = {"step": 0, "error": RuntimeError("kernel launch\nfailed")}

    def fail(config: Any, progress: Any, states: list[Any]) -> None:
        if at["step"]:
            states.append(SimpleNamespace(step=at["step"]))
        raise at["error"]  # type: ignore[misc]

    monkeypatch.setattr(worker, "_train", fail)
    monkeypatch.setattr(ray.train, "get_context", lambda: SimpleNamespace(get_world_rank=int))

    def tries(*steps: int) -> tuple[Exception | None, list[str]]:
        progress = worker.ProgressLog.remote()  # type: ignore[attr-defined]
        for at["step"] in steps:
            with pytest.raises(type(at["error"])):
                worker.train_worker({"progress": progress})
        told = [row["text"] for row in ray.get(progress.take.remote())]
        if (error := ray.get(progress.error.remote())) is not None:
            worker.train_worker({"progress": progress})  # returns at once
        return error, told

    error, told = tries(7, 7)
    assert error is None and told == ["rank 0 at step 7: RuntimeError: kernel launch"] * 2
    assert tries(7, 7, 9, 7, 7)[0] is None
    error, _ = tries(9, 7, 7, 7)
    assert isinstance(error, TrainingError) and str(error) == "3 times on end at step 7: RuntimeError: kernel launch"
    assert "at step 0" in str(tries(0, 0, 0)[0])
    at["error"] = torch.OutOfMemoryError("CUDA out of memory.")
    assert "CUDA out of memory.; use a smaller data.crop or data.batch_size" in str(tries(1, 1, 1)[0])
    for lost in (RuntimeError("[gloo/transport/tcp/pair.cc:547] Connection closed by peer"), DistBackendError("NCCL")):
        at["error"] = lost
        error, told = tries(7, 7, 7, 7)
        assert error is None and len(told) == 4, "machines may be lost as often as --cluster.max-failures allows"
    at["error"] = UnreachableError("s3://b/a: could not be reached")  # which may pass
    assert tries(1, 1, 1, 1) == (None, [])


def test_a_stage_waits_for_labels_of_all_that_its_target_holds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a run learns from must not depend on when a mount was away; it tries again, and says how to go on."""
    recipe = tiny_recipe("bcl_small")
    number, stage = next((n, s) for n, s in enumerate(recipe.stages) if s.pseudo_label is not None)
    tried: list[str] = []

    def label(*, out: str, **named: Any) -> None:
        tried.append(out)
        failed = [{"image_id": "000", "image_uri": "s3://b/000.png", "reason": "away", "kind": "unreachable"}]
        write_bytes(f"{out}/failed.json", json.dumps(failed).encode())
        write_bytes(f"{out}/manifest.parquet", b"")

    monkeypatch.setattr(train_module, "pseudo_label", label)
    directories: dict[str, str | None] = {
        name: make_dataset(tmp_path / name, name, train=2, val=1) for name in ("source", "target")
    }
    cluster, nobody = Cluster(gpu=False), SimpleNamespace()
    run = train_module._Run(recipe, CLASSES, directories, {}, str(tmp_path / "run"), cluster, nobody, None)  # type: ignore[arg-type]
    for _ in range(2):
        with pytest.raises(UnreachableError, match=r"1 target images could not be reached .* go on by --resume"):
            run_stage(run, number, stage)
    assert len(tried) == 2, "the second time too"


def test_samples_of_another_step_or_rank_are_never_trained_on() -> None:
    """A resumed stage whose stream began elsewhere, or shards that were handed out in another order."""
    state = SimpleNamespace(step=5)
    steps = [{"index": np.array([42, 43])}, {"index": np.array([46, 47])}]
    checked = worker._checked(iter(steps), state, 4, rank=1)  # type: ignore[arg-type]
    with pytest.raises(RuntimeError, match=r"rank 1 got samples \[42 43\] at step 5, not \[22 23\]"):
        next(checked)
    state.step = 10
    checked = worker._checked(iter(steps), state, 4, rank=1)  # type: ignore[arg-type]
    assert next(checked) is steps[0]
    state.step = 11
    assert next(checked) is steps[1]


def test_networks_are_used_in_windows_of_hrda_s_crop_or_of_the_network_they_begin_as(tmp_path: Path) -> None:
    network, card = load_model(make_checkpoint(tmp_path / "plain", 0))
    save_model(tmp_path / "windows", network, replace(card, window=(16, 20), overlap=0.25))
    for recipe, begins, seen in (
        ("hrda_small", None, ((32, 48), 0.5)),
        ("hrda_small", "windows", ((32, 48), 0.5)),
        ("daformer_small", None, (None, 0.5)),
        ("daformer_small", "plain", (None, 0.5)),
        ("daformer_small", "windows", ((16, 20), 0.25)),
    ):
        stage = tiny_recipe(recipe).stages[-1]
        stage = replace(stage, data=replace(stage.data, crop=(32, 48)))
        window, overlap = windows_of(stage, begins and str(tmp_path / begins))
        assert (window, overlap) == seen
        job = SimpleNamespace(
            stage=stage, classes=CLASSES, recipe=recipe, depth_range=None, window=window, overlap=overlap
        )
        assert worker._card(job, 3).views() == {
            "short_side": stage.data.short_side, "resample": "antialias", "window": window, "overlap": overlap
        }  # fmt: skip
