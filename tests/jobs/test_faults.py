"""Losses in mid-run on a real cluster of three nodes: the result is that of the undisturbed run, bit for bit."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
import safetensors.torch
import torch
from ray_cluster import BIN, ROOT, RayCluster, ray_cluster
from tiny import make_dataset

pytestmark = pytest.mark.full  # minutes each
STEPS, BATCH = 40, 4
SCRIPT = Path(__file__).parents[1] / "support" / "recorded_train.py"
WORDS = (
    *("dacs_small", "--steps", str(STEPS), "--checkpoint-every", "4", "--log-every", "1"),
    *("--model.backbone", "resnet10t", "--model.head-channels", "16", "--data.batch-size", str(BATCH)),
    *("--data.short-side", "40", "--data.crop", "32", "32"),
    *("--cluster.no-gpu", "--cluster.threads", "1", "--cluster.workers", "2", "--cluster.cpus-per-worker", "2"),
)


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """The head's CPUs suffice for one worker and its data tasks, so that the other one is elsewhere."""
    with ray_cluster(3) as made:
        yield made


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    folder = tmp_path_factory.mktemp("data")
    return (
        *("--source", make_dataset(folder / "source", "source")),
        *("--target", make_dataset(folder / "target", "target", labelled=False)),
    )


RUNS: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    yield
    for run in RUNS:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def start(
    cluster: RayCluster, data: tuple[str, ...], out: Path, *more: str, pause: float = 0.0
) -> subprocess.Popen[bytes]:
    """`udaseg train`, whose steps each take `pause` seconds longer and are noted in the folder `samples`."""
    environment = os.environ | {
        "RAY_ADDRESS": cluster.address,
        "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
        "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "1",
        "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.5",
    }
    del environment["RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S"]  # --cluster.wait is to say it
    samples = out.with_name("samples")
    samples.mkdir(exist_ok=True)
    with out.with_suffix(".log").open("ab") as log:
        run = subprocess.Popen(
            [sys.executable, SCRIPT, str(samples), str(pause), *WORDS, *data, "--out", str(out), *more],
            cwd=ROOT,
            env=environment | {"PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    RUNS.append(run)
    return run


def finish(run: subprocess.Popen[bytes], out: Path) -> dict[str, torch.Tensor]:
    assert run.wait(timeout=240) == 0, out.with_suffix(".log").read_text()[-3000:]
    assert_each_sample_once(out, stages=2, steps=STEPS)
    state = {}
    for stage in ("0-source", "1-dacs"):  # teacher, student and optimisers of both stages
        path = out / "stages" / stage / f"checkpoint_{STEPS:07d}" / "state.pt"
        saved = torch.load(path, weights_only=True)
        state |= {f"{stage}.{name}": tensor for name, tensor in saved["method"].items()}
        for i, moments in saved["optimizers"][0]["state"].items():
            state |= {f"{stage}.optimizer.{i}.{k}": torch.as_tensor(v) for k, v in moments.items()}
    return state | safetensors.torch.load_file(out / "model" / "model.safetensors")


def assert_each_sample_once(out: Path, stages: int, steps: int) -> dict[int, list[int]]:
    """The surviving history has each step once, and step k the samples [k B, (k + 1) B) of each stream.

    Returns, for each stage, the steps that its groups of workers began at.
    """
    history = rows(out)
    assert [(r["stage"], r["step"]) for r in history] == [(s, k + 1) for s in range(stages) for k in range(steps)]
    files = [path.read_text().splitlines() for path in out.with_name("samples").iterdir()]
    workers = [[json.loads(line) for line in lines] for lines in files]
    notes = sorted((n for each in workers for n in each if n["event"] == "step"), key=lambda n: n["time"])
    streams = [["source"], ["source", "target"]][:stages]
    pixels: dict[tuple[object, ...], int] = {}
    taken: dict[tuple[int, int], dict[int, dict]] = {}  # (stage, step) -> rank -> what it took last
    begun: dict[int, list[int]] = {stage: [] for stage in range(stages)}
    for note in notes:
        stage, step = streams.index(note["stage"]), note["step"]
        taken.setdefault((stage, step), {})[note["rank"]] = note
        for name, index, checksum in note["samples"]:
            assert pixels.setdefault((stage, name, index), checksum) == checksum, "done again, a sample looks the same"
    for first, *_ in workers:
        if first.get("rank") == 0:
            begun[streams.index(first["stage"])].append(first["step"])
    for row in history:
        ranks = taken[row["stage"], row["step"] - 1]
        survived = [sample for rank in range(int(row["workers"])) for sample in ranks[rank]["samples"]]
        for name in streams[row["stage"]]:
            expected = [(row["step"] - 1) * BATCH + i for i in range(BATCH)]
            assert [index for stream, index, _ in survived if stream == name] == expected
    return {stage: sorted(steps) for stage, steps in begun.items()}


def rows(out: Path) -> list[dict[str, float]]:
    path = out / "metrics.jsonl"
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def wait_until(condition: Callable[[], bool], run: subprocess.Popen[bytes], out: Path, seconds: float = 150) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert run.poll() is None, "the run ended too early: " + out.with_suffix(".log").read_text()[-3000:]
        assert time.monotonic() < deadline, out.with_suffix(".log").read_text()[-3000:]
        time.sleep(0.05)


def registered(out: Path, step: int, stage: str = "1-dacs") -> Callable[[], bool]:
    """Whether Ray Train knows of the checkpoint of a step."""
    snapshot = out / "stages" / stage / "checkpoint_manager_snapshot.json"
    return lambda: snapshot.exists() and f"checkpoint_{step:07d}" in snapshot.read_text()


@pytest.fixture(scope="module")
def undisturbed(
    cluster: RayCluster, data: tuple[str, ...], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    node = cluster.add_node(2)
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    state = finish(start(cluster, data, out), out)
    cluster.kill(node)
    return state


def assert_equal(state: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert state.keys() == expected.keys()
    different = [name for name, tensor in expected.items() if not torch.equal(tensor, state[name])]
    assert not different, f"{len(different)} of {len(expected)} tensors differ, e.g. {different[:3]}"


def processes(cluster: RayCluster, name: str, node: subprocess.Popen[bytes] | None = None) -> list[psutil.Process]:
    """Processes of the cluster, or of one node, whose title begins so."""
    found = []
    for root in cluster.processes if node is None else [node]:
        for process in cluster.tree(root):
            with contextlib.suppress(psutil.NoSuchProcess):
                if " ".join(process.cmdline()).startswith(name):
                    found.append(process)
    return found


def test_a_lost_node_is_made_good_by_another(
    cluster: RayCluster, data: tuple[str, ...], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    lost = cluster.add_node(2)
    run = start(cluster, data, out)
    wait_until(registered(out, 8), run, out)
    assert processes(cluster, "ray::RayTrainWorker", lost), "the lost node must have held a worker"
    cluster.kill(lost)
    spare = cluster.add_node(2)
    try:
        assert_equal(finish(run, out), undisturbed)
    finally:
        cluster.kill(spare)


@pytest.mark.parametrize("victim", ["ray::RayTrainWorker", "ray::MapBatches"])
def test_a_killed_process_is_replaced(
    victim: str, cluster: RayCluster, data: tuple[str, ...], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    node = cluster.add_node(2)
    run = start(cluster, data, out)
    wait_until(registered(out, 4, "0-source"), run, out)
    found: list[psutil.Process] = []  # a task's process is called so while it has one
    wait_until(lambda: bool(found.extend(processes(cluster, victim)) or found), run, out)
    os.kill(found[0].pid, signal.SIGKILL)
    assert_equal(finish(run, out), undisturbed)
    cluster.kill(node)


def test_a_killed_driver_is_resumed(
    cluster: RayCluster, data: tuple[str, ...], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    node = cluster.add_node(2)
    run = start(cluster, data, out)
    wait_until(registered(out, 8), run, out)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert_equal(finish(start(cluster, data, out, "--resume"), out), undisturbed)
    cluster.kill(node)


def test_a_node_that_gives_notice_is_left_in_time(
    cluster: RayCluster, data: tuple[str, ...], undisturbed: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    """As a spot instance that is told when it will be taken away: what is done until then is saved, and no more."""
    out = tmp_path / "run"
    leaving = cluster.add_node(2)
    run = start(cluster, data, out, "--checkpoint-every", str(STEPS), pause=0.4)
    wait_until(lambda: bool(processes(cluster, "ray::RayTrainWorker", leaving)) and len(rows(out)) > 5, run, out)
    cluster.give_notice(leaving, seconds=6)
    spare = cluster.add_node(2)
    time.sleep(6)
    cluster.kill(leaving)
    try:
        assert_equal(finish(run, out), undisturbed)
    finally:
        cluster.kill(spare)
    began = sorted(assert_each_sample_once(out, stages=2, steps=STEPS)[0])
    assert began[0] == 0 and 5 < began[1] < STEPS, f"it went on from the steps {began}"


def test_elastic_workers_shrink_with_the_cluster_and_grow_with_it_again(
    cluster: RayCluster, data: tuple[str, ...], tmp_path: Path
) -> None:
    """The global batch and its samples stay; only steps after a checkpoint are done again."""
    out = tmp_path / "run"
    lost = cluster.add_node(2)
    elastic = ("--cluster.min-workers", "1", "--cluster.wait", "20", "--steps", "240", "--checkpoint-every", "10")
    run = start(cluster, data, out, *elastic, pause=0.2)
    wait_until(registered(out, 20, "0-source"), run, out)
    cluster.kill(lost)
    wait_until(lambda: rows(out)[-1].get("workers") == 1, run, out)
    back = cluster.add_node(2)
    assert run.wait(timeout=400) == 0, out.with_suffix(".log").read_text()[-3000:]
    cluster.kill(back)
    begun = assert_each_sample_once(out, stages=2, steps=240)
    assert [workers for workers, _ in itertools.groupby(r["workers"] for r in rows(out))] == [2, 1, 2]
    assert len(begun[0]) >= 2 and all(step % 10 == 0 for steps in begun.values() for step in steps), begun


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("--cluster.workers", "2", "--cluster.cpus-per-worker", "9"), "need 19 CPU (it has 3)"),
        (("--cluster.workers", "1", "--cluster.cpus-per-worker", "3"), "leave no CPU for data tasks"),
    ],
    ids=["workers", "data_tasks"],
)
def test_what_the_cluster_cannot_give_ends_the_run(
    asked: tuple[str, ...], said: str, cluster: RayCluster, data: tuple[str, ...], tmp_path: Path
) -> None:
    out = tmp_path / "run"
    run = start(cluster, data, out, *asked, "--cluster.wait", "5")
    assert run.wait(timeout=240) == 1
    assert said in out.with_suffix(".log").read_text().splitlines()[-1]


def test_every_node_must_see_the_run_directory(cluster: RayCluster, data: tuple[str, ...], tmp_path: Path) -> None:
    """A node that cannot write it is named before anything runs."""
    node = cluster.add_node(2)
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    out = folder / "run"
    script = (
        "import sys; import udaseg.jobs.ray_session as s; real = s.join\n"
        "s.join = lambda *p: real(*p) if not p[-1].startswith('.written') else '/proc/none/' + p[-1]\n"
        "from pipelines.train import main; sys.exit(main(sys.argv[1:]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, *WORDS, *data, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": cluster.address},
        capture_output=True,
        text=True,
        timeout=120,
    )
    cluster.kill(node)
    assert done.returncode == 2 and "shared storage" in done.stderr, done.stdout + done.stderr
    assert not (out / "stages").exists()
