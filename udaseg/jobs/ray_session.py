"""What every job shares: the connection to Ray, and progress on the terminal."""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, TypeVar

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from udaseg.data.storage import exists, join, read_bytes, remove, write_bytes
from udaseg.errors import ConfigError

Block = TypeVar("Block")


def _rows(block: Any) -> int:
    return int(block.num_rows)


def ensure_ray(num_cpus: int | None = None, *, dashboard: bool = False) -> None:
    """Connect to Ray unless that is done: to RAY_ADDRESS where it is set, else to a Ray of this process's own.

    `num_cpus` sizes the latter; a cluster knows its own size. Without its `dashboard` what a trial that Ray Tune had
    stopped holds is never freed. Call it before the first use of `ray.data`, which reads its environment once.
    """
    if ray.is_initialized():
        return
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    ray.data.DataContext.get_current().enable_progress_bars = False  # `track` shows progress
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its import, just above, set it to tell every plan
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # else it warns that they are disabled
    address = os.environ.get("RAY_ADDRESS", "local")
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon a checkpoint counts as registered
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": num_cpus or usable_cores() + 2, "include_dashboard": dashboard}
    if local and dashboard:  # Ray Train asks it who is alive; beside another Ray on the machine it finds it only so
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local["dashboard_port"] = free.getsockname()[1]
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{local['dashboard_port']}"
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says at every start that tokens are on
    terminate = signal.getsignal(signal.SIGTERM)
    ray.init(address=address, log_to_driver=False, logging_level=logging.WARNING, **local)
    if callable(terminate) and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in place, which ends in a dump


def check_nodes(files: Sequence[str], out: str) -> None:
    """On a cluster of several nodes, make sure that each can read the files and write the directory that all share.

    Raises ConfigError, naming the node and what it cannot do.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    if len(nodes) < 2:
        return
    asked = {}
    for node in nodes:
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        probe = join(out, f".written-by-{node['NodeID'][:12]}")
        asked[node["NodeManagerAddress"], probe] = _probe.options(scheduling_strategy=here).remote(list(files), probe)
    for (address, probe), answer in asked.items():
        try:
            problem = ray.get(answer, timeout=120)
        except ray.exceptions.GetTimeoutError:
            problem = "no answer within 120 s"
        except ray.exceptions.RayError:  # a node that has just left
            continue
        if problem:
            raise ConfigError(
                f"node {address}: {problem}; every node must reach the data and --out: use shared storage"
            )
        if not exists(probe):
            raise ConfigError(f"node {address} wrote {probe}, which is not seen from here; put --out on shared storage")
        remove(probe)


@ray.remote(num_cpus=0)
def _probe(files: list[str], probe: str) -> str:
    """Why this node cannot read the files or write the probe; "" where it can."""
    try:
        for uri in files:
            read_bytes(uri)
        write_bytes(probe, b"")
    except OSError as error:
        return f"{type(error).__name__}: {error}"
    return ""


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def actor_pool(actors: int | None, min_actors: int | None = None, *, gpu: bool) -> tuple[dict[str, Any], int]:
    """Options of `map_batches` for a pool of predicting actors, and the torch threads of each; see `Inference`."""
    # Cores in one process wait for one another: two processes of a thread label 1.4 times what one of two threads does.
    most = actors or (1 if gpu else min(4, usable_cores()))
    compute = ray.data.ActorPoolStrategy(min_size=min(min_actors or actors or 1, most), max_size=most)
    return {"compute": compute, "num_cpus": 1, "num_gpus": 1 if gpu else 0}, max(1, usable_cores() // most)


def track(blocks: Iterable[Block], total: int, what: str, size: Callable[[Block], int] = _rows) -> Iterator[Block]:
    """Pass blocks on and show how many of `total` items have come: a bar on a terminal, else a line every 5 seconds.

    `size` counts the items of a block: its rows, unless told.
    """
    console = Console()
    if console.is_terminal:
        columns = TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as progress:
            task = progress.add_task(what, total=total)
            for block in blocks:
                progress.advance(task, size(block))
                yield block
        return
    start = last = time.monotonic()
    done = 0
    for block in blocks:
        done += size(block)
        now = time.monotonic()
        if now - last >= 5 or done == total:
            print(f"{what}: {done} of {total}, {done / (now - start):.1f} per second", flush=True)
            last = now
        yield block
