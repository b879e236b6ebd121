"""`ray job submit` to a real cluster that grows on demand: exit codes, logs and results, as on machines far away."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import safetensors.torch
import torch
from ray_cluster import RayCluster, ray_cluster
from tiny import make_dataset, plain_loop
from two_ranks import TwoRanks

from pipelines.train import parse

SMALL = (
    *("--steps", "2", "--model.backbone", "resnet10t", "--model.head-channels", "16", "--data.batch-size", "4"),
    *("--data.short-side", "40", "--data.crop", "32", "32", "--cluster.no-gpu", "--cluster.threads", "1"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head of one CPU; each further node has two."""
    made = RayCluster()
    try:
        made.start_autoscaling_head(1, node_cpus=2, most=3)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[RayCluster]:
    with ray_cluster(2, 4) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("data")
    return {name: make_dataset(folder / name, name) for name in ("source", "target")}


def wait_until(condition: Callable[[], bool], what: str, seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds} s: {what}"
        time.sleep(0.1)


@pytest.mark.full  # three minutes
def test_a_run_makes_the_cluster_grow_and_survives_a_lost_node(
    cluster: RayCluster, data: dict[str, str], two_ranks: TwoRanks, tmp_path: Path
) -> None:
    """Its result is that of a plain loop of two processes, bit for bit."""
    out = tmp_path / "run"
    words = ("source_only_small", *SMALL, "--steps", "80", "--checkpoint-every", "10", "--source", data["source"])
    two = ("--cluster.workers", "2", "--cluster.cpus-per-worker", "2")  # a worker fills a node
    wait_until(lambda: len(cluster.raylets()) == 1, "the head")
    with ThreadPoolExecutor(1) as thread:
        job = thread.submit(cluster.submit, "python", "-m", "pipelines.train", *words, *two, "--out", str(out))
        snapshot = out / "stages" / "0-source" / "checkpoint_manager_snapshot.json"
        wait_until(lambda: job.done() or snapshot.exists(), "a checkpoint")
        assert not job.done(), job.result().stdout
        head, lost, *_ = cluster.raylets()  # one more, where data tasks asked while the workers started
        for process in (lost, *lost.children(recursive=True)):
            process.kill()
        assert "checkpoint_0000080" not in snapshot.read_text(), "the node is lost in the midst of the run"
        done = job.result()
    assert done.returncode == 0, done.stdout + done.stderr
    assert "succeeded" in done.stdout and "source 80/80" in done.stdout
    assert [json.loads(line)["step"] for line in (out / "metrics.jsonl").read_text().splitlines()][-1] == 80

    expected, _ = two_ranks.run(on_two_ranks, (*words, "--out", str(out)))
    trained = safetensors.torch.load_file(out / "model" / "model.safetensors")
    assert trained.keys() == expected.keys()
    assert not [name for name, tensor in trained.items() if not torch.equal(tensor, expected[name])]

    wait_until(lambda: cluster.raylets() == [head], "back to the head alone")


def on_two_ranks(rank: int, words: tuple[str, ...]) -> dict[str, torch.Tensor]:
    arguments = parse(words)
    return plain_loop(arguments.recipe, arguments.source, rank, 2)


@pytest.mark.full
def test_a_job_that_fails_says_why(cluster: RayCluster, data: dict[str, str], tmp_path: Path) -> None:
    words = ("source_only_small", *SMALL, "--source", "/nowhere", "--out", str(tmp_path / "run"))
    failed = cluster.submit("python", "-m", "pipelines.train", *words)
    assert failed.returncode == 1
    assert "error: /nowhere: no such directory" in failed.stdout


@pytest.mark.full
def test_every_command_is_a_job_too(two_nodes: RayCluster, data: dict[str, str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    train = ("python", "-m", "pipelines.train", "dacs_small", *SMALL, "--source", data["source"])
    trained = two_nodes.submit(*train, "--target", data["target"], "--out", str(run))
    assert trained.returncode == 0, trained.stdout
    assert [json.loads(line)["step"] for line in (run / "metrics.jsonl").read_text().splitlines()] == [2, 2]
    model, target = str(run / "model"), data["target"]
    scores, labels = tmp_path / "scores", tmp_path / "labels"
    evaluate = ("pipelines.evaluate", "--checkpoint", model, "--dataset", target, "--out", str(scores))
    scored = two_nodes.submit("python", "-m", *evaluate)
    assert scored.returncode == 0, scored.stdout
    assert set(json.loads((scores / "metrics.json").read_text())["iou"]) == {"ground", "sky", "box"}
    label = ("pipelines.pseudo_label", "--checkpoint", model, "--images", target, "--out", str(labels))
    labelled = two_nodes.submit("python", "-m", *label)
    assert labelled.returncode == 0, labelled.stdout
    assert (labels / "manifest.parquet").is_file()


@pytest.mark.full
def test_a_sweep_is_a_job_too(two_nodes: RayCluster, data: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "sweep"
    domains = ("--source", data["source"], "--target", data["target"])
    few = ("--recipe", "bcl_demo", "--checkpoint-every", "1", "--trials", "2", "--scheduler", "none")
    rare = ("--data.source.rare-min-pixels", "1", "--data.source.rare-min-crop-pixels", "1")
    words = ("python", "-m", "pipelines.sweep", "temperature", *few, "--concurrent", "2", *SMALL, *rare, *domains)
    swept = two_nodes.submit(*words, "--out", str(out))
    assert swept.returncode == 0, swept.stdout[-3000:]
    trials = json.loads((out / "trials.json").read_text())
    assert [(trial["state"], [step for step, _ in trial["curve"]]) for trial in trials] == [("finished", [1, 2])] * 2
    assert trials[0]["values"] != trials[1]["values"] and (out / "report.html").is_file()
