"""A real Ray cluster of several nodes on this machine, of processes of its own, as `ray start` makes it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psutil

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


class RayCluster:
    """A head with a dashboard, and nodes that can be added and killed. CPUs are mere counters."""

    def __init__(self) -> None:
        self.folder = tempfile.mkdtemp(prefix="ray")  # short: Ray's sockets lie in it
        self.port, self.dashboard_port = free_port(), free_port()
        self.address = f"127.0.0.1:{self.port}"
        self.dashboard = f"http://127.0.0.1:{self.dashboard_port}"
        self.processes: list[subprocess.Popen[bytes]] = []

    def start_head(self, cpus: int, *options: str, **environment: str) -> None:
        self._start(
            environment,
            "--head",
            f"--port={self.port}",
            "--include-dashboard=true",
            f"--dashboard-port={self.dashboard_port}",
            f"--temp-dir={self.folder}",
            f"--num-cpus={cpus}",
            "--object-store-memory=300000000",
            *options,
        )
        deadline = time.monotonic() + 90
        while True:
            with contextlib.suppress(OSError), urllib.request.urlopen(f"{self.dashboard}/api/version", timeout=2):
                return
            if time.monotonic() > deadline or self.processes[0].poll() is not None:
                raise TimeoutError(f"the head did not come up: {self._log(0)}")
            time.sleep(0.3)

    def start_autoscaling_head(self, cpus: int, *, node_cpus: int, most: int) -> None:
        """A head that starts nodes, `most` of them, as they are asked for, and ends them when they idle for seconds.

        With Ray's own provider of fake nodes, which is private; it is named here only.
        """
        head = "f" * 51 + "00000"  # as that provider expects it
        memory = {"object_store_memory": 200_000_000}
        kinds = ("initialization", "setup", "head_setup", "worker_setup", "head_start_ray", "worker_start_ray")
        config = {
            "cluster_name": "test",
            "max_workers": most,
            "idle_timeout_minutes": 0.1,
            "provider": {
                "type": "external",
                "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
                "gcs_address": self.address,
                "head_node_id": head,
                "disable_node_updaters": True,
                "disable_launch_config_check": True,
                "launch_multiple": True,
            },
            "head_node_type": "ray.head.default",
            "available_node_types": {
                "ray.head.default": {"resources": {"CPU": cpus}, "node_config": {}, "max_workers": 0},
                "worker": {"resources": {"CPU": node_cpus, **memory}, "node_config": {}, "max_workers": most},
            },
            "auth": {},
            "file_mounts": {},
            "cluster_synced_files": [],
            "rsync_exclude": [],
            "rsync_filter": [],
            "file_mounts_sync_continuously": False,
            **{f"{kind}_commands": [] for kind in kinds},
        }
        path = Path(self.folder) / "autoscaler.yaml"
        path.write_text(json.dumps(config))  # which is YAML too
        self.start_head(
            cpus,
            f"--autoscaling-config={path}",
            AUTOSCALER_UPDATE_INTERVAL_S="1",
            RAY_FAKE_CLUSTER="1",
            RAY_enable_autoscaler_v2="1",
            RAY_CLOUD_INSTANCE_ID=head,
            RAY_OVERRIDE_NODE_ID_FOR_TESTING=head,
        )

    def raylets(self) -> list[psutil.Process]:
        """One process for each node that is up, the head's included; its children are the node's workers."""
        found = []
        for process in self.processes:
            for child in self.tree(process):
                with contextlib.suppress(psutil.NoSuchProcess):
                    if child.name() == "raylet":
                        found.append(child)
        return found

    def add_node(self, cpus: int) -> subprocess.Popen[bytes]:
        # In one folder, as they would share, nodes replace each other's working directories of a job.
        own = f"--temp-dir={self.folder}/{len(self.processes)}"
        size = (f"--num-cpus={cpus}", "--object-store-memory=200000000")
        return self._start({}, f"--address={self.address}", own, *size)

    def _start(self, environment: dict[str, str], *options: str) -> subprocess.Popen[bytes]:
        log = Path(self.folder) / f"start-{len(self.processes)}.log"
        # By default every agent of a machine wants one port; one that finds it taken serves no jobs.
        own_port = ["--dashboard-agent-listen-port=0"]
        with log.open("wb") as out:
            process = subprocess.Popen(
                [str(BIN / "ray"), "start", "--block", "--disable-usage-stats", *own_port, *options],
                stdout=out,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"} | environment,
                start_new_session=True,
            )
        self.processes.append(process)
        return process

    def _log(self, number: int) -> str:
        return (Path(self.folder) / f"start-{number}.log").read_text()[-2000:]

    def kill(self, process: subprocess.Popen[bytes]) -> None:
        """SIGKILL a node: every process of it at once, as when a machine is lost."""
        for each in self.tree(process):
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        process.wait()

    def give_notice(self, process: subprocess.Popen[bytes], seconds: int) -> None:
        """Tell the cluster that a node will be taken away, as a cloud does with a spot instance."""
        (raylet,) = (p for p in self.tree(process) if p.name() == "raylet")
        (node,) = (word.removeprefix("--node_id=") for word in raylet.cmdline() if word.startswith("--node_id="))
        words = ("--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot instance")
        when = ("--deadline-remaining-seconds", str(seconds))
        subprocess.run(
            [BIN / "ray", "drain-node", "--address", self.address, "--node-id", node, *words, *when],
            check=True,
            capture_output=True,
        )

    def tree(self, process: subprocess.Popen[bytes]) -> list[psutil.Process]:
        """A node's processes, which stand in groups of their own."""
        if process.poll() is not None:
            return []
        root = psutil.Process(process.pid)
        return [root, *root.children(recursive=True)]

    def close(self) -> None:
        for process in reversed(self.processes):
            self.kill(process)
        shutil.rmtree(self.folder, ignore_errors=True)

    def submit(self, *words: str, working_dir: Path = ROOT, timeout: float = 600) -> subprocess.CompletedProcess[str]:
        """`ray job submit --working-dir . -- WORDS`, as a user types it."""
        deadline = time.monotonic() + 90
        while True:
            done = subprocess.run(
                [BIN / "ray", "job", "submit", "--address", self.dashboard, "--working-dir", ".", "--", *words],
                cwd=working_dir,
                env=os.environ | {"PATH": f"{BIN}:{os.environ['PATH']}"},
                capture_output=True,
                text=True,
                timeout=timeout,
            )
            if "No available agent" not in done.stderr or time.monotonic() > deadline:
                return done
            time.sleep(2)  # the dashboard answers before the node's agent does


@contextlib.contextmanager
def ray_cluster(head_cpus: int, *node_cpus: int) -> Iterator[RayCluster]:
    """A cluster of a head and nodes, killed at the end."""
    cluster = RayCluster()
    try:
        cluster.start_head(head_cpus)
        for cpus in node_cpus:
            cluster.add_node(cpus)
        yield cluster
    finally:
        cluster.close()
