"""`ray job submit` to a real cluster of two nodes: exit codes, logs and results, as on a machine far away."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from ray_cluster import RayCluster, ray_cluster
from tiny import make_dataset

SMALL = (
    *("--steps", "2", "--model.backbone", "resnet10t", "--model.head-channels", "16", "--data.batch-size", "4"),
    *("--data.short-side", "40", "--data.crop", "32", "32", "--cluster.no-gpu", "--cluster.threads", "1"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    with ray_cluster(2, 2) as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {name: make_dataset(folder / name, name) for name in ("source", "target")}


def test_a_submitted_run_trains_on_both_nodes_and_a_bad_one_fails(
    cluster: RayCluster, data: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    words = ("python", "-m", "pipelines.train", "source_only_small", *SMALL, "--out", str(out))
    done = cluster.submit(*words, "--source", data["source"], "--cluster.workers", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "source 2/2" in done.stdout
    assert json.loads((out / "model" / "model.json").read_text())["step"] == 2
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()] == [2]

    failed = cluster.submit(*words, "--source", "/nowhere")
    assert failed.returncode == 1
    assert "error: /nowhere: no classes.json" in failed.stdout


@pytest.mark.full
def test_evaluation_and_pseudo_labelling_are_jobs_too(
    cluster: RayCluster, data: dict[str, str], tmp_path: Path
) -> None:
    run = tmp_path / "run"
    train = ("python", "-m", "pipelines.train", "source_only_small", *SMALL, "--source", data["source"])
    assert cluster.submit(*train, "--out", str(run)).returncode == 0
    model, target = str(run / "model"), data["target"]
    scores, labels = tmp_path / "scores", tmp_path / "labels"
    evaluate = ("pipelines.evaluate", "--checkpoint", model, "--dataset", target, "--out", str(scores))
    scored = cluster.submit("python", "-m", *evaluate)
    assert scored.returncode == 0, scored.stdout
    assert set(json.loads((scores / "metrics.json").read_text())["iou"]) == {"ground", "sky", "box"}
    label = ("pipelines.pseudo_label", "--checkpoint", model, "--images", target, "--out", str(labels))
    labelled = cluster.submit("python", "-m", *label)
    assert labelled.returncode == 0, labelled.stdout
    assert (labels / "manifest.parquet").is_file()
