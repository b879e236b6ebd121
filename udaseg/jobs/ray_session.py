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

import grpc
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from udaseg.data.storage import exists, join, read_bytes, remove, write_bytes
from udaseg.errors import ConfigError
from udaseg.jobs.remote_errors import first_line, plain_errors
from udaseg.jobs.resources import ray_address, usable_cores, waits_told

Block = TypeVar("Block")


def _rows(block: Any) -> int:
    return int(block.num_rows)


def ensure_ray(num_cpus: int | None = None, *, dashboard: bool = False) -> None:
    """Connect to Ray unless that is done: to RAY_ADDRESS where it is set, else to a Ray of this process's own.

    `num_cpus` sizes the latter; a cluster knows its own size. Without its `dashboard` what a trial that Ray Tune had
    stopped holds is never freed. Call it before the first use of `ray.data`, which reads its environment once.

    Raises ConfigError, naming the address, where no cluster answers there.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    context = ray.data.DataContext.get_current()
    context.enable_progress_bars = False  # `track` shows progress
    context.raise_original_map_exception = True  # `plain_errors` looks for it
    context.execution_no_progress_timeout_s = -1  # none: a cluster may take long to grow, as `waits_told` says
    logging.getLogger("ray.data").setLevel(logging.WARNING)  # its import, just above, set it to tell every plan
    logging.getLogger("ray.data._internal.progress").setLevel(logging.ERROR)  # else it warns that they are disabled
    for name in ("exceptions", "_internal.execution.streaming_executor_state"):  # they log what they then raise
        logging.getLogger(f"ray.data.{name}").setLevel(logging.CRITICAL)
    os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")  # how soon a checkpoint counts as registered
    if ray.is_initialized():  # in a trial, say
        return
    os.environ.setdefault("RAY_raylet_start_wait_time_s", "120")  # a busy machine needs more than the 30 s by default
    local: dict[str, Any] = {}
    if ray_address() == "local":
        local = {"num_cpus": num_cpus or usable_cores() + 2, "include_dashboard": dashboard}
    else:
        _require_cluster(ray_address())
    if local and dashboard:  # Ray Train asks it who is alive; beside another Ray on the machine it finds it only so
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            local["dashboard_port"] = free.getsockname()[1]
        os.environ["RAY_API_SERVER_ADDRESS"] = f"http://127.0.0.1:{local['dashboard_port']}"
    logging.getLogger("ray._private.authentication").setLevel(logging.ERROR)  # says at every start that tokens are on
    terminate = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address=ray_address(), log_to_driver=False, logging_level=logging.WARNING, **local)
    except (Exception, SystemExit) as error:
        if isinstance(error, SystemExit) and error.code == signal.SIGTERM and callable(terminate):
            terminate(signal.SIGTERM, None)  # it came while Ray's own handler was in place
        where = "Ray on this machine" if local else f"the cluster at RAY_ADDRESS={ray_address()}"
        how = "" if local else f"; {_WITHOUT}"
        raise ConfigError(f"{where}: {first_line(error)}{how}") from error
    finally:
        if callable(terminate) and threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, terminate)  # Ray has put its own in place, which ends in a dump


_WITHOUT = "start it, correct the address, or unset RAY_ADDRESS to run on this machine alone"


def _require_cluster(address: str) -> None:
    """Raise ConfigError where no cluster answers: Ray would try for two minutes and then end the process."""
    if address == "auto":
        return
    host, _, port = address.rpartition(":")
    if "://" in host or not host or not port.isdigit() or not 0 < int(port) < 2**16:
        raise ConfigError(f"RAY_ADDRESS={address}: no address of a cluster such as 10.0.0.1:6379; {_WITHOUT}")
    try:
        socket.create_connection((host, int(port)), timeout=10).close()
        if os.environ.get("RAY_USE_TLS", "0") == "0":
            with grpc.insecure_channel(address, options=[("grpc.enable_http_proxy", 0)]) as channel:
                grpc.channel_ready_future(channel).result(timeout=5)
    except (OSError, grpc.FutureTimeoutError) as error:
        why = "what listens there is no Ray" if isinstance(error, grpc.FutureTimeoutError) else error
        raise ConfigError(f"RAY_ADDRESS={address}: no cluster answers ({why}); {_WITHOUT}") from None


def lazily(made: type) -> type:
    """An actor class for `map_batches` that makes a `made` at its first batch.

    What a constructor raises, Ray Data tries three times more and tells by text alone.
    """

    class Lazy:
        def __init__(self, *arguments: Any) -> None:
            self._arguments = arguments
            self._made: Any = None

        def __call__(self, batch: Any) -> Any:
            if self._made is None:
                self._made = made(*self._arguments)
            return self._made(batch)

    Lazy.__name__ = Lazy.__qualname__ = made.__name__  # of the process
    return Lazy


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


def track(blocks: Iterable[Block], total: int, what: str, size: Callable[[Block], int] = _rows) -> Iterator[Block]:
    """Pass blocks on and show how many of `total` items have come: a bar on a terminal, else a line every 5 seconds.

    `size` counts the items of a block: its rows, unless told. While none comes it is said what is waited for.
    Raises as `plain_errors` does.
    """
    console = Console()
    with plain_errors(), waits_told(what) as came:
        if console.is_terminal:
            columns = TextColumn(what, markup=False), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
            with Progress(*columns, console=console) as progress:
                task = progress.add_task(what, total=total)
                for block in blocks:
                    came()
                    progress.advance(task, size(block))
                    yield block
            return
        start = last = time.monotonic()
        done = 0
        for block in blocks:
            came()
            done += size(block)
            now = time.monotonic()
            if now - last >= 5 or done == total:
                print(f"{what}: {done} of {total}, {done / (now - start):.1f} per second", flush=True)
                last = now
            yield block
