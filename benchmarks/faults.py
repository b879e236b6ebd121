"""What a loss in mid-run costs, on a real cluster of several nodes on this machine.

    python -m benchmarks.faults [--pause 0.5] [--checkpoint-every 10]

One small run of two workers for each fault. Prints, in seconds after the fault: when Ray Train's controller knows of
it, and when the first step after it is taken; and how many steps were taken again. A step takes `pause` seconds more
than it would, so that the faults strike in mid-run. Ray Train looks after its workers every 0.5 s, as `udaseg train`
sets it. Run it from the repository's root: the cluster is the tests'.

At a preemption notice the seconds count from the notice, which comes `notice` seconds before the node is taken; "known"
is when the checkpoint that it causes is registered. A killed driver is known to who killed it, and resumed at once. A
killed data task is not here: Ray Data does it again while the workers live on what is prefetched.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import tyro

SUPPORT = Path(__file__).parents[1] / "tests" / "support"
sys.path.insert(0, str(SUPPORT))  # clusters of several nodes on one machine are the tests'
from ray_cluster import BIN, RayCluster, ray_cluster  # noqa: E402
from tiny import make_dataset  # noqa: E402

FAULTS = (
    "killed worker",
    "killed driver",
    "lost node, another there",
    "lost node, elastic",
    "notice",
)


@dataclass(frozen=True, kw_only=True)
class Arguments:
    faults: tuple[str, ...] = FAULTS
    pause: float = 0.5
    """Seconds that a step takes at least."""
    steps: int = 60
    checkpoint_every: int = 10
    notice: int = 20
    """Seconds between a preemption notice and the loss of the node."""
    wait: int = 30
    """Seconds that an elastic run waits for a worker that is gone."""


def main() -> None:
    a = tyro.cli(Arguments)
    print(f"{'fault':<28}{'known s':>9}{'next step s':>13}{'steps again':>13}")
    with tempfile.TemporaryDirectory() as folder, ray_cluster(3) as cluster:
        source = make_dataset(Path(folder) / "source", "source")
        for fault in a.faults:
            known, resumed, again = measure(cluster, source, Path(folder) / fault.replace(" ", "-"), fault, a)
            print(f"{fault:<28}{known:>9}{resumed:>13.1f}{again:>13}", flush=True)


def measure(cluster: RayCluster, source: str, folder: Path, fault: str, a: Arguments) -> tuple[str, float, int]:
    """Seconds until the fault is known and until the next step, and the steps taken again."""
    notes, out = folder / "notes", folder / "run"
    notes.mkdir(parents=True)
    node = cluster.add_node(2)
    elastic = ("--cluster.min-workers", "1", "--cluster.wait", str(a.wait)) if fault.endswith("elastic") else ()
    run = _start(cluster, source, folder, a, *elastic)
    _wait(lambda: _registered(out) >= a.checkpoint_every, run, folder)
    _wait(lambda: _last_step(notes) % a.checkpoint_every == a.checkpoint_every // 2, run, folder)
    nodes = [node]
    if fault in ("lost node, another there", "notice"):
        nodes.append(cluster.add_node(2))
        time.sleep(10)  # until it is there
    at = time.time()
    if fault == "killed worker":
        _find(cluster, "ray::RayTrainWorker").kill()
    elif fault == "killed driver":
        os.killpg(run.pid, signal.SIGKILL)
        run.wait()
        run = _start(cluster, source, folder, a, "--resume")
    elif fault == "notice":
        cluster.give_notice(node, seconds=a.notice)
        time.sleep(max(0.0, at + a.notice - time.time()))
        cluster.kill(nodes.pop(0))
    else:
        cluster.kill(nodes.pop(0))
    if run.wait(timeout=600) != 0:
        raise SystemExit((folder / "log").read_text()[-3000:])
    for each in nodes:
        cluster.kill(each)
    return _read(notes, at, fault)


def _start(cluster: RayCluster, source: str, folder: Path, a: Arguments, *more: str) -> subprocess.Popen[bytes]:
    words = (
        *("source_only_small", "--steps", str(a.steps), "--checkpoint-every", str(a.checkpoint_every)),
        *("--log-every", "1", "--model.backbone", "resnet10t", "--model.head-channels", "16"),
        *("--data.batch-size", "4", "--data.short-side", "40", "--data.crop", "32", "32", "--source", source),
        *("--cluster.no-gpu", "--cluster.threads", "1", "--cluster.workers", "2", "--cluster.cpus-per-worker", "2"),
    )
    recorded = (str(SUPPORT / "recorded_train.py"), str(folder / "notes"), str(a.pause))
    with (folder / "log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, *recorded, *words, "--out", str(folder / "run"), *more],
            env=os.environ | {"RAY_ADDRESS": cluster.address, "PATH": f"{BIN}:{os.environ['PATH']}"},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


def _wait(condition: Callable[[], bool], run: subprocess.Popen[bytes], folder: Path) -> None:
    while not condition():
        if run.poll() is not None:
            raise SystemExit("the run ended too early: " + (folder / "log").read_text()[-3000:])
        time.sleep(0.05)


def _registered(out: Path) -> int:
    snapshot = out / "stages" / "0-source" / "checkpoint_manager_snapshot.json"
    results = json.loads(snapshot.read_text())["checkpoint_results"] if snapshot.exists() else []
    return max((int(result["checkpoint_dir_name"].rpartition("_")[2]) for result in results), default=0)


def _notes(folder: Path) -> list[dict[str, Any]]:
    """What all processes noted, in the order of time, with the process's number."""
    lines = [(path.stem, line) for path in folder.iterdir() for line in path.read_text().splitlines()]
    rows = [{"pid": pid, **json.loads(line)} for pid, line in lines]
    return sorted(rows, key=lambda row: row["time"])


def _last_step(notes: Path) -> int:
    return max((row["step"] for row in _notes(notes) if row["event"] == "step"), default=0)


def _find(cluster: RayCluster, title: str) -> psutil.Process:
    while True:
        for root in cluster.processes:
            for process in cluster.tree(root):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if " ".join(process.cmdline()).startswith(title):
                        return process
        time.sleep(0.05)


def _read(folder: Path, at: float, fault: str) -> tuple[str, float, int]:
    notes = _notes(folder)
    steps = [row for row in notes if row["event"] == "step" and row["rank"] == 0]
    again = len(steps) - len({row["step"] for row in steps})
    event = "report" if fault == "notice" else "exception"
    known = next((row["time"] - at for row in notes if row["event"] == event and row["time"] > at), None)
    worker = [row["pid"] for row in steps if row["time"] <= at][-1]
    resumed = next(row["time"] - at for row in steps if row["pid"] != worker and row["time"] > at)
    return "-" if known is None else f"{known:.1f}", resumed, again


if __name__ == "__main__":
    main()
