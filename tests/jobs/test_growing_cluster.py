"""Pools of actors on clusters that grow, later, on demand or never, and an error that names the node it came from."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from ray_cluster import ROOT, RayCluster, ray_cluster
from tiny import make_checkpoint, make_dataset

SCRIPT = """
import sys
from udaseg.jobs import resources
resources.SECONDS_OF_SILENCE = 3
from pipelines.evaluate import main
sys.exit(main(sys.argv[1:]))
"""


def start(address: str, log: Path, *words: str) -> subprocess.Popen[bytes]:
    with log.open("wb") as out:
        return subprocess.Popen(
            [sys.executable, "-c", SCRIPT, *words, "--inference.no-gpu"],
            cwd=ROOT,
            env=os.environ | {"RAY_ADDRESS": address},
            stdout=out,
            stderr=subprocess.STDOUT,
        )


@pytest.mark.full
def test_actors_wait_for_a_node_and_errors_name_theirs(tmp_path: Path) -> None:
    """One CPU is too few for an actor and the tasks that feed it; with a second node the command comes to its end."""
    dataset, log = make_dataset(tmp_path / "data", "target"), tmp_path / "log"
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    words = ("--checkpoint", checkpoint, "--dataset", dataset, "--inference.actors", "3")
    with ray_cluster(1) as cluster:
        run = start(cluster.address, log, *words)
        try:
            until = time.monotonic() + 120
            while "waiting for" not in log.read_text():
                assert run.poll() is None and time.monotonic() < until, log.read_text()
                time.sleep(0.2)
            assert "3 actors are asked for" in log.read_text() and "beginning with 1" in log.read_text()
            cluster.add_node(4)
            assert run.wait(180) == 0, log.read_text()
        finally:
            run.kill()
        assert "mIoU" in log.read_text()

        (Path(dataset) / "images" / "011.png").write_bytes(b"broken")
        run = start(cluster.address, log, *words)
        assert run.wait(180) == 2, log.read_text()
        error = log.read_text().splitlines()[-1]
        assert error.startswith("error: ") and "011.png" in error and "(on node " in error, log.read_text()


@pytest.mark.full
@pytest.mark.parametrize("most", [1, 0], ids=["may grow", "may not grow"])
def test_actors_on_an_autoscaling_cluster(most: int, tmp_path: Path) -> None:
    """What is waited for is said, until the node is there that the cluster starts for it."""
    dataset, log = make_dataset(tmp_path / "data", "target"), tmp_path / "log"
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    cluster = RayCluster()
    try:
        cluster.start_autoscaling_head(1, node_cpus=4, most=most)
        words = ("--checkpoint", checkpoint, "--dataset", dataset, "--inference.actors", "3")
        run = start(cluster.address, log, *words)
        try:
            until = time.monotonic() + 240
            while "waiting for" not in log.read_text() and run.poll() is None and time.monotonic() < until:
                time.sleep(0.2)
            said = log.read_text()
            assert "3 actors are asked for" in said and "there are 1 CPU: beginning with 1" in said, said
            if most:
                assert run.wait(240) == 0, log.read_text()
                assert "mIoU" in log.read_text()
            else:
                assert "waiting for" in said and "x 1 CPU; the cluster has 1 CPU, 0 CPU free" in said, said
                assert run.poll() is None, "it is left to its user to end it"
                run.send_signal(signal.SIGINT)
                assert run.wait(120) == 130, log.read_text()
        finally:
            run.kill()
    finally:
        cluster.close()
