"""Whole training jobs on a real Ray: resume, worker loss, several workers, and what is refused before anything runs."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from event_files import images, scalars
from tiny import CLASSES, FIRST, make_dataset, plain_loop, tiny_recipe

from pipelines.evaluate import main as evaluate_main
from pipelines.train import main as train_main
from udaseg.checkpoints.directory import load_model
from udaseg.config import Recipe
from udaseg.errors import CheckpointError, ConfigError, DatasetError, LostWorkError, TrainingError
from udaseg.evaluation.metrics import mean_iou
from udaseg.job_config import Cluster
from udaseg.jobs import train as job
from udaseg.jobs.evaluate import evaluate
from udaseg.jobs.preflight import check, classes_by_id
from udaseg.jobs.train import train
from udaseg.overrides import override
from udaseg.recipes import RECIPES

ONE = Cluster(workers=1, gpu=False, threads=1)
TWO = Cluster(workers=2, gpu=False, threads=1)


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("pair")
    return {
        "source": make_dataset(folder / "source", "source"),
        "target": make_dataset(folder / "target", "target", labelled=False),
        "target_val": make_dataset(folder / "target_val", "target"),
    }


def tensors(model: str) -> dict[str, torch.Tensor]:
    return safetensors.torch.load_file(Path(model) / "model.safetensors")


def assert_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    different = [name for name in first if not torch.equal(first[name], second[name])]
    assert not different, f"{len(different)} tensors differ, e.g. {different[:3]}"


def rows(out: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(pair: dict[str, str], tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Path:
    """BCL with all its stages, run once without interruption."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    train(bcl(), source=Path(pair["source"]), target=Path(pair["target"]), out=out, cluster=ONE)
    return out


def bcl() -> Recipe:
    return tiny_recipe("bcl_paper_small", steps=6)


def test_a_run_leaves_model_metrics_and_pseudo_labels(undisturbed: Path, pair: dict[str, str]) -> None:
    network, card = load_model(str(undisturbed / "model"))
    assert card.step == 6 and card.stage == "round-1" and card.classes.names == ("ground", "sky", "box")
    assert network.num_classes == 3
    metrics = rows(undisturbed)
    assert [(r["stage"], r["step"]) for r in metrics] == [(s, k + 1) for s in range(3) for k in range(6)]
    assert {"source_ce", "target_ce", "forward_contrast", "backward_contrast", "coverage"} <= metrics[-1].keys()
    board = undisturbed / "tensorboard" / "2-round-1"
    assert dict(scalars(board, "target_ce")) == pytest.approx({r["step"]: r["target_ce"] for r in metrics[-6:]})
    kinds = ("input", "mixture", "pseudo_label", "prediction")
    seen = images(board)
    assert seen.keys() == {(f"target_{i}/{kind}", step) for i in range(3) for kind in kinds for step in (2, 4, 6)}
    before = images(undisturbed / "tensorboard" / "1-round-0")
    assert all((x == before["target_1/input", 2]).all() for (tag, _), x in seen.items() if tag == "target_1/input")
    names = [path.name for path in sorted((undisturbed / "pictures").iterdir())]
    assert names == ["1-round-0", "2-round-1"]  # the warm start reads no target
    assert (undisturbed / "pseudo_labels" / "1-round-0" / "manifest.parquet").is_file()
    kept = [path for path in (undisturbed / "stages" / "2-round-1").glob("checkpoint_*") if path.is_dir()]
    assert sorted(path.name for path in kept) == [f"checkpoint_{step:07d}" for step in (2, 4, 6)]


def test_an_existing_run_is_refused_and_a_finished_one_resumes_to_itself(
    undisturbed: Path, pair: dict[str, str]
) -> None:
    before = tensors(str(undisturbed / "model"))
    data = {"source": pair["source"], "target": pair["target"], "out": str(undisturbed)}
    with pytest.raises(ConfigError, match="--resume"):
        train(bcl(), **data, cluster=ONE)
    with pytest.raises(ConfigError, match="configuration differs"):
        train(tiny_recipe("bcl_paper_small", steps=7), **data, resume=True, cluster=ONE)
    train(bcl(), **data, resume=True, cluster=ONE)
    assert_equal(before, tensors(str(undisturbed / "model")))


def test_a_changed_manifest_is_not_resumed(undisturbed: Path, pair: dict[str, str], tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "source", "source", train=9)
    with pytest.raises(ConfigError, match="manifests have changed"):
        train(bcl(), source=other, target=pair["target"], out=str(undisturbed), resume=True, cluster=ONE)


@pytest.mark.full
def test_a_killed_worker_is_replaced_and_the_result_is_bit_identical(
    undisturbed: Path, pair: dict[str, str], tmp_path: Path
) -> None:
    """SIGKILL of the training process in the second stage, after its first checkpoint."""
    killed = threading.Event()

    def kill_one() -> None:
        stage = tmp_path / "run" / "stages" / "1-round-0"
        while not killed.is_set():
            snapshot = stage / "checkpoint_manager_snapshot.json"
            if snapshot.exists() and "checkpoint_0000002" in snapshot.read_text():
                for process in psutil.process_iter(["cmdline"]):
                    command = " ".join(process.info["cmdline"] or [])
                    if "RayTrainWorker" in command and os.getpid() in [p.pid for p in process.parents()]:
                        os.kill(process.pid, signal.SIGKILL)
                        killed.set()
                        return
            time.sleep(0.02)

    watcher = threading.Thread(target=kill_one, daemon=True)
    watcher.start()
    out = tmp_path / "run"
    train(bcl(), source=pair["source"], target=pair["target"], out=str(out), cluster=ONE)
    assert killed.is_set(), "no worker was killed"
    assert_equal(tensors(str(undisturbed / "model")), tensors(str(out / "model")))
    keys = [(r["stage"], r["step"]) for r in rows(out)]
    assert keys == [(s, k + 1) for s in range(3) for k in range(6)]  # the surviving history, each step once


@pytest.mark.full
def test_a_kill_during_an_upload_leaves_the_last_good_checkpoint(
    undisturbed: Path, pair: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The worker dies when half of the state of step 4 is written; what is half there is not taken up."""
    out, torn, begun = tmp_path / "run", tmp_path / "torn", tmp_path / "begun"

    def tearing(config):  # type: ignore[no-untyped-def]
        import pyarrow.fs
        import ray.train

        from udaseg.jobs.worker import train_worker

        real, checkpoint = pyarrow.fs.copy_files, ray.train.get_checkpoint()
        with begun.open("a") as file:
            file.write(f"{Path(checkpoint.path).name if checkpoint else 'anew'}\n")

        def copy_files(source, destination, *rest, **named):  # type: ignore[no-untyped-def]
            if destination.endswith("1-round-0/checkpoint_0000004") and not torn.exists():
                state = (Path(source) / "state.pt").read_bytes()
                (Path(destination) / "state.pt").write_bytes(state[: len(state) // 2])
                torn.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            return real(source, destination, *rest, **named)

        pyarrow.fs.copy_files = copy_files
        return train_worker(config)

    monkeypatch.setattr(job, "train_worker", tearing)
    train(bcl(), source=pair["source"], target=pair["target"], out=str(out), cluster=ONE)
    assert torn.exists()
    assert begun.read_text().split() == ["anew", "anew", "checkpoint_0000002", "anew"]
    assert_equal(tensors(str(undisturbed / "model")), tensors(str(out / "model")))
    assert [(r["stage"], r["step"]) for r in rows(out)] == [(s, k + 1) for s in range(3) for k in range(6)]


@pytest.mark.parametrize(
    ("name", "cluster"),
    [
        ("source_only_small", ONE),
        pytest.param("dacs_small", TWO, marks=pytest.mark.full),
    ],
    ids=["one_worker", "second_stage_two_workers"],
)
def test_a_run_cut_off_in_a_stage_resumes_to_the_uninterrupted_result(
    name: str,
    cluster: Cluster,
    pair: dict[str, str],
    tmp_path: Path,
    ray_session: None,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last stage fails for good after step 4 of 6; it goes on from its checkpoint in another call."""
    recipe = tiny_recipe(name, steps=6)
    last = len(recipe.stages) - 1
    data = {"source": pair["source"], "target": pair["target"] if last else None}
    if last:
        whole = tensors(train(recipe, **data, out=str(tmp_path / "whole"), cluster=cluster))
    else:
        whole = plain_loop(recipe, pair["source"])

    cut = tmp_path / "cut"
    original = job.run_stage

    def cut_off(run, number, stage):  # type: ignore[no-untyped-def]
        """Stop the last stage for good when its checkpoint of step 4 is registered."""
        if number != last:
            return original(run, number, stage)
        from udaseg.jobs.worker import train_worker

        def stops(config):  # type: ignore[no-untyped-def]
            import udaseg.training.step as loop

            real = loop.queue_step

            def step(state, *a, **k):  # type: ignore[no-untyped-def]
                if state.step == 4:
                    time.sleep(2)  # longer than Ray Train takes to register the checkpoint
                    raise RuntimeError("cut off")
                return real(state, *a, **k)

            loop.queue_step = step
            return train_worker(config)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(job, "train_worker", stops)
            return original(run, number, stage)

    monkeypatch.setattr(job, "run_stage", cut_off)
    with pytest.raises(LostWorkError, match="cut off"):
        train(
            recipe, **data, out=str(cut), cluster=Cluster(workers=cluster.workers, gpu=False, threads=1, max_failures=0)
        )
    monkeypatch.undo()
    resumed = train(recipe, **data, out=str(cut), resume=True, cluster=cluster)
    assert_equal(whole, tensors(resumed))
    assert [(r["stage"], r["step"]) for r in rows(cut)] == [(s, k + 1) for s in range(last + 1) for k in range(6)]


def test_evaluation_agrees_with_a_plain_loop(undisturbed: Path, pair: dict[str, str]) -> None:
    import numpy as np

    from udaseg.data.index import open_index
    from udaseg.evaluation.metrics import confusion
    from udaseg.models.inference import predict

    model = str(undisturbed / "model")
    counts = evaluate([model], pair["source"])[0]
    assert np.array_equal(evaluate(Path(model), Path(pair["source"])), [counts])
    network, card = load_model(model)
    index = open_index(pair["source"])
    expected = np.zeros((3, 3), np.int64)
    for row in range(*index.rows("val")):
        image = torch.tensor(index.image(row)).permute(2, 0, 1)[None].float() / 255
        probability = predict(network, image, short_side=card.short_side)
        expected += confusion(index.train_ids(row), probability[0].argmax(0).numpy(), 3)
    assert np.array_equal(counts, expected)


@pytest.mark.full
def test_training_learns(pair: dict[str, str], tmp_path: Path, ray_session: None) -> None:
    recipe = tiny_recipe("source_only_small", steps=40, optim__lr=3e-3, checkpoint_every=40)
    model = train(recipe, source=pair["source"], target=None, out=str(tmp_path / "run"), cluster=ONE)
    assert mean_iou(evaluate([model], pair["source"])[0]) > 0.5


def test_evaluate_prints_and_writes_the_same_figures_once(
    undisturbed: Path, pair: dict[str, str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    words = ["--checkpoint", str(undisturbed / "model"), "--dataset", pair["target_val"], "--format", "json"]
    assert evaluate_main([*words, "--out", str(tmp_path / "out")]) == 0
    printed = json.loads(capfd.readouterr().out.splitlines()[-1])
    assert printed == json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert set(printed["iou"]) == {"ground", "sky", "box"} and (tmp_path / "out" / "confusion.png").exists()
    assert evaluate_main([*words, "--out", str(tmp_path / "out")]) == 2
    assert "holds results already" in capfd.readouterr().err
    words[1] = str(tmp_path)
    assert evaluate_main(words) == 2
    assert "not a model directory" in capfd.readouterr().err


# --- refused before anything runs -----------------------------------------------------------------------------------


def refuse(
    match: str, error: type[Exception], recipe: Recipe, out: Path, cluster: Cluster = ONE, **data: str | None
) -> None:
    with pytest.raises(error, match=match):
        train(recipe, source=data.get("source"), target=data.get("target"), out=str(out), cluster=cluster)
    assert not out.exists()


def test_inputs_that_do_not_fit_are_refused(pair: dict[str, str], tmp_path: Path) -> None:
    out, source, target = tmp_path / "run", pair["source"], pair["target"]
    refuse("give --source", ConfigError, tiny_recipe("dacs_small"), out, target=target)
    refuse("leave --target out", ConfigError, tiny_recipe("source_only_small"), out, source=source, target=target)
    refuse("needs labels", DatasetError, tiny_recipe("supervised_small"), out, target=target)
    refuse("no classes.json", DatasetError, tiny_recipe("source_only_small"), out, source=str(tmp_path))
    refuse(
        "3 workers", ConfigError, tiny_recipe("source_only_small"), out, Cluster(workers=3, gpu=False), source=source
    )
    refuse("no model", ConfigError, tiny_recipe("source_only_small", model__backbone="resnet1O1"), out, source=source)
    refuse("no file", ConfigError, tiny_recipe("source_only_small", model__weights="/nowhere.bin"), out, source=source)
    refuse(
        "not a model directory",
        CheckpointError,
        tiny_recipe("source_only_small", stages__0__init_from="/x"),
        out,
        source=source,
    )


def test_crops_beside_the_cells_are_warned_of(pair: dict[str, str], capsys: pytest.CaptureFixture[str]) -> None:
    directories = {"source": pair["source"], "target": None}
    for crop, settings in (((128, 192), {}), ((40, 56), {}), ((130, 192), {"model__align_corners": True})):
        check(tiny_recipe("source_only_small", data__crop=crop, **settings), directories, ONE)
    assert capsys.readouterr().err == ""
    check(tiny_recipe("source_only_small", data__crop=(130, 200)), directories, ONE)
    assert capsys.readouterr().err.startswith("warning: stage 'source': data.crop (130, 200) is no multiple of ")


def test_classes_that_a_method_knows_by_their_ids_are_told() -> None:
    recipe = override(RECIPES["daformer_small"](), {"method.things": (2, 0)})
    assert classes_by_id(recipe, CLASSES) == [
        f"stage 'daformer': things are {CLASSES.names[2]!r}, {CLASSES.names[0]!r}; others by --stages.1.method.things"
    ]
    camix = override(RECIPES["camix_small"](), {"method.companions": ((0, 1), (2, 1))})  # its things have no weight
    shown = "{!r} with {!r}, {!r} with {!r}".format(*(CLASSES.names[k] for k in (0, 1, 2, 1)))
    assert classes_by_id(camix, CLASSES) == [
        f"stage 'camix': companions are {shown}; others by --stages.1.method.companions"
    ]
    assert classes_by_id(RECIPES["dacs_small"](), CLASSES) == []


def test_more_than_this_machine_has_is_refused(pair: dict[str, str], tmp_path: Path, ray_session: None) -> None:
    four = Cluster(workers=4, gpu=False, threads=1)
    with pytest.raises(ConfigError, match=r"4 workers and their data tasks need 5 CPU \(it has 4\)"):
        train(
            tiny_recipe("source_only_small"),
            source=pair["source"],
            target=None,
            out=str(tmp_path / "run"),
            cluster=four,
        )


def test_a_checkpoint_of_other_classes_is_refused(undisturbed: Path, pair: dict[str, str], tmp_path: Path) -> None:
    import shutil

    other = tmp_path / "model"
    shutil.copytree(undisturbed / "model", other)
    card = (other / "model.json").read_text().replace('"box"', '"crate"')
    (other / "model.json").write_text(card)
    recipe = tiny_recipe("source_only_small", stages__0__init_from=str(other))
    refuse("crate", DatasetError, recipe, tmp_path / "run", source=pair["source"])
    with pytest.raises(DatasetError, match="crate"):
        evaluate([str(other)], pair["target_val"])


@pytest.mark.full
def test_a_loss_that_is_not_finite_stops_the_run_at_once(
    pair: dict[str, str], tmp_path: Path, ray_session: None
) -> None:
    recipe = tiny_recipe("source_only_small", steps=6, optim__lr=1e30, optim__clip=0.0, optim__name="sgd")
    with pytest.raises(TrainingError, match=r"not finite.*optim\.lr"):
        train(recipe, source=pair["source"], target=None, out=str(tmp_path / "run"), cluster=ONE)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sorce_only_small"], "no recipe 'sorce_only_small'; did you mean source_only_small"),
        (["source_only_small", "--optim.leraning-rate", "1"], "no field 'optim.leraning_rate'"),
        (["source_only_small", "--source", "/nowhere", "--out", "/nowhere/run"], "/nowhere: no such directory"),
    ],
)
def test_the_command_line_says_what_is_wrong(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train_main(words) == 2
    assert message in capsys.readouterr().err


# --- the full matrix ------------------------------------------------------------------------------------------------


@pytest.mark.full
@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_small")])
def test_every_small_recipe_runs_on_two_workers(name: str, tmp_path: Path, ray_session: None) -> None:
    recipe = tiny_recipe(name)
    domains = {domain for stage in recipe.stages for domain in stage.data.domains()}
    few = 3 if any("fewshot" in stage.data.streams() for stage in recipe.stages) else 0
    data = {
        s: make_dataset(tmp_path / s, s, fewshot=few, places=True) if s in domains else None
        for s in ("source", "target")
    }
    if (first := recipe.stages[0].init_from) is not None:  # source-free: a source model of its own
        fewer = recipe.stages[0].method.old_classes is not None  # its own lacks the new classes
        source = make_dataset(tmp_path / "earlier", "source", classes=FIRST if fewer else CLASSES)
        earlier = train(tiny_recipe("source_only_small"), source=source, target=None, out=str(tmp_path / first[:-6]))
        recipe = override(recipe, {"stages.0.init_from": earlier})
    model = train(recipe, **data, out=str(tmp_path / "run"), cluster=TWO)
    assert 0 <= mean_iou(evaluate([model], make_dataset(tmp_path / "val", "target"))[0]) <= 1
