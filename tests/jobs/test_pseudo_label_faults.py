"""Losses in the middle of a labelling, of nodes or in a bucket: the labels are those of an undisturbed job."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from PIL import Image
from ray_cluster import BIN, ROOT, RayCluster, ray_cluster
from tiny import digests, draw, make_checkpoint, make_dataset, tree

from udaseg.data.storage import join
from udaseg.jobs.ledger import Ledger

pytestmark = pytest.mark.full  # minutes in all
IMAGES = 200


@pytest.fixture(scope="module")
def cluster() -> Iterator[RayCluster]:
    """A head that takes the tasks, and nodes that take the actors with it."""
    with ray_cluster(2) as made:
        yield made


@pytest.fixture(scope="module")
def arguments(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("fleet")
    for n in range(IMAGES):
        (folder / "images").mkdir(exist_ok=True)
        Image.fromarray(draw("target", n)[0]).save(folder / "images" / f"{n:03d}.png")
    (folder / "images" / "017.png").write_bytes(b"broken")
    checkpoint = make_checkpoint(folder / "model", 0)
    more = ["--block-size", "2", "--inference.no-gpu", "--inference.actors", "2", "--inference.flip"]
    return ["--checkpoint", checkpoint, "--images", str(folder / "images"), *more]


RUNS: list[subprocess.Popen[bytes]] = []


@pytest.fixture(autouse=True)
def no_run_is_left() -> Iterator[None]:
    yield
    for run in RUNS:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)


def start(cluster: RayCluster, words: list[str], log: Path) -> subprocess.Popen[bytes]:
    with log.open("ab") as file:
        run = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": cluster.address, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=file,
            stderr=file,
            start_new_session=True,
        )
    RUNS.append(run)
    return run


def label(cluster: RayCluster, arguments: list[str], out: str, log: Path) -> subprocess.Popen[bytes]:
    return start(cluster, ["pipelines.pseudo_label", *arguments, "--out", out], log)


def finish(run: subprocess.Popen[bytes], log: Path) -> None:
    assert run.wait(timeout=400) == 0, log.read_text()[-3000:]


def wait_until(condition: Callable[[], bool], run: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + 300
    while not condition():
        assert run.poll() is None, "the run ended too early: " + log.read_text()[-3000:]
        assert time.monotonic() < deadline, log.read_text()[-3000:]
        time.sleep(0.01)


def blocks(out: Path, phase: str) -> int:
    return len(list((out / "job" / phase).glob("*.parquet")))


def actors(root: subprocess.Popen[bytes], cluster: RayCluster) -> list[psutil.Process]:
    found = []
    for process in cluster.tree(root):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "PredictActor" in " ".join(process.cmdline()):
                found.append(process)
    return found


@pytest.fixture(scope="module")
def undisturbed(cluster: RayCluster, arguments: list[str], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    node = cluster.add_node(2)
    out = tmp_path_factory.mktemp("undisturbed") / "out"
    finish(label(cluster, arguments, str(out), out.with_suffix(".log")), out.with_suffix(".log"))
    cluster.kill(node)
    made = digests(out)
    assert len([name for name in made if name.startswith("labels/")]) == IMAGES - 1
    return made


@pytest.mark.parametrize("phase", ["predict", "label"])
def test_a_killed_driver_is_resumed(
    phase: str, cluster: RayCluster, arguments: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    node = cluster.add_node(2)
    for enough in (8, 40):  # killed twice
        run = label(cluster, arguments, str(out), log)
        wait_until(lambda enough=enough: blocks(out, phase) >= enough, run, log)  # type: ignore[misc]
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        assert blocks(out, phase) < IMAGES // 2
    finish(label(cluster, arguments, str(out), log), log)
    assert digests(out) == undisturbed
    cluster.kill(node)


def test_a_killed_actor_is_replaced(
    cluster: RayCluster, arguments: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    node = cluster.add_node(2)
    run = label(cluster, arguments, str(out), log)
    wait_until(lambda: blocks(out, "predict") >= 10, run, log)
    victims = [actor for root in (cluster.processes[0], node) for actor in actors(root, cluster)]
    assert victims
    victims[0].kill()
    assert blocks(out, "predict") < IMAGES // 2
    finish(run, log)
    assert digests(out) == undisturbed
    cluster.kill(node)


def test_a_lost_node_is_made_good(
    cluster: RayCluster, arguments: list[str], undisturbed: dict[str, str], tmp_path: Path
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    node = cluster.add_node(2)
    run = label(cluster, [*arguments, "--inference.actors", "3"], str(out), log)  # more than the head has room for
    wait_until(lambda: blocks(out, "predict") >= 10 and bool(actors(node, cluster)), run, log)
    cluster.kill(node)
    assert blocks(out, "predict") < IMAGES // 2
    spare = cluster.add_node(2)
    finish(run, log)
    assert digests(out) == undisturbed
    cluster.kill(spare)


def test_a_killed_job_in_a_bucket_is_resumed(
    store: Callable[[str, str], str],
    cluster: RayCluster,
    arguments: list[str],
    undisturbed: dict[str, str],
    tmp_path: Path,
) -> None:
    out, log = store("faults", "out"), tmp_path / "log"
    node = cluster.add_node(2)
    run = label(cluster, arguments, out, log)
    wait_until(lambda: len(Ledger(join(out, "job"), 0, 1).committed("predict")) >= 10, run, log)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert sum(n.startswith("job/predict/") for n in tree(out)) < IMAGES // 2
    finish(label(cluster, arguments, out, log), log)
    import hashlib

    assert {name: hashlib.sha256(content).hexdigest() for name, content in tree(out).items()} == undisturbed
    cluster.kill(node)


@pytest.mark.parametrize("recipe", ["bcl_small", "ldbe_small", "sdca_small"])
def test_a_recipe_goes_on_in_the_middle_of_its_labelling(recipe: str, cluster: RayCluster, tmp_path: Path) -> None:
    node = cluster.add_node(2)
    words = [
        *("pipelines.train", recipe, "--steps", "2", "--checkpoint-every", "2", "--log-every", "1"),
        *("--model.backbone", "test_byobnet", "--model.head-channels", "16", "--data.batch-size", "4"),
        *("--data.short-side", "40", "--data.crop", "32", "32", "--cluster.no-gpu", "--cluster.threads", "1"),
        *("--target", make_dataset(tmp_path / "target", "target", train=160, labelled=False)),
    ]
    if recipe == "ldbe_small":  # source-free: it begins with a model
        words += ["--stages.0.init-from", make_checkpoint(tmp_path / "model", 0)]
    else:
        words += ["--source", make_dataset(tmp_path / "source", "source")]
    log = tmp_path / "log"
    finish(start(cluster, [*words, "--out", str(tmp_path / "whole")], log), log)
    out = tmp_path / "out"
    run = start(cluster, [*words, "--out", str(out)], log)
    wait_until(lambda: bool(list(out.glob("pseudo_labels/*/job/predict/*.parquet"))), run, log)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not list(out.glob("pseudo_labels/*/manifest.parquet")), "killed too late"
    finish(start(cluster, [*words, "--out", str(out), "--resume"], log), log)
    made = digests(out / "pseudo_labels")
    assert made and made == digests(tmp_path / "whole" / "pseudo_labels")
    weights = "model/model.safetensors"
    assert digests(out)[weights] == digests(tmp_path / "whole")[weights]
    cluster.kill(node)
