"""What a job asks of the machine or cluster, what there is, and what is waited for."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import ray
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.exceptions import RayError

from udaseg.errors import ConfigError
from udaseg.job_config import Inference, has_gpu

SECONDS_OF_SILENCE = 30.0
"""After which it is said what is waited for."""


def ray_address() -> str:
    """Where Ray is: "local" for one of this process's own, of this machine alone, which cannot grow."""
    return os.environ.get("RAY_ADDRESS") or "local"


def take_address(address: str) -> None:
    """Have `ray_address` say in a process that Ray began what it says in its driver, who alone may have been told."""
    if address != "local":
        os.environ["RAY_ADDRESS"] = address


def quiet_tune() -> None:
    """Have Ray Tune leave to us what a trial's folder is, what Ctrl-C does and what is printed."""
    os.environ.setdefault("RAY_CHDIR_TO_TRIAL_DIR", "0")  # a recipe may name files by relative paths
    os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # Ctrl-C ends a sweep as it ends all else
    os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")  # which prints whatever its verbosity


def usable_cores() -> int:
    """Cores that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def require_gpu(option: str) -> None:
    """Raise ConfigError where this machine alone is to give a GPU and has none; `option` asked for it."""
    if ray_address() == "local" and not has_gpu():
        no = option.replace(".gpu", ".no-gpu")
        raise ConfigError(f"{option}: torch finds no GPU on this machine; use {no}, or join a cluster by RAY_ADDRESS")


def described(resources: Mapping[str, float]) -> str:
    """CPUs and GPUs, for people."""
    named = {name: resources.get(name, 0) for name in ("CPU", "GPU") if name == "CPU" or resources.get(name)}
    return " and ".join(f"{amount:g} {name}" for name, amount in named.items())


def actor_pool(inference: Inference) -> tuple[dict[str, Any], int]:
    """Options of `map_batches` for a pool of predicting actors, and the torch threads of each.

    A CPU is left to the tasks that feed them: a pool that takes all would wait for ever. What this machine does not
    have is done without; on a cluster, the pool begins with what there is and grows as nodes come.
    """
    # Cores in one process wait for one another: two processes of a thread label 1.4 times what one of two threads does.
    asked = inference.actors or (1 if inference.gpu else min(4, usable_cores()))
    has = ray.cluster_resources()
    fits = int(min(has.get("CPU", 0) - 1, has.get("GPU", 0) if inference.gpu else asked))
    most = max(1, min(asked, fits)) if ray_address() == "local" else asked
    fewest = min(inference.min_actors or inference.actors or 1, max(1, fits), most)
    if fits < (inference.min_actors or inference.actors or 1):
        each = "a CPU and a GPU" if inference.gpu else "a CPU"
        print(
            f"{asked} actors are asked for, which take {each} each beside a CPU for tasks; there are {described(has)}: "
            + (f"going on with {most}" if ray_address() == "local" else f"beginning with {fewest}, more as nodes come"),
            flush=True,
        )
    compute = ray.data.ActorPoolStrategy(min_size=fewest, max_size=most)
    return {"compute": compute, "num_cpus": 1, "num_gpus": int(inference.gpu)}, max(1, usable_cores() // most)


@contextlib.contextmanager
def waits_told(what: str) -> Iterator[Callable[[], None]]:
    """While the block runs, say every half minute in which nothing comes what is waited for.

    Yields a function to call whenever something has come.
    """
    heard = time.monotonic()
    over = threading.Event()

    def came() -> None:
        nonlocal heard
        heard = time.monotonic()

    def watch() -> None:
        said = heard
        while not over.wait(1):
            now = time.monotonic()
            if now - max(heard, said) >= SECONDS_OF_SILENCE:
                said = now
                if (awaited := waited_for()) and not over.is_set():
                    print(f"{what}: nothing for {now - heard:.0f} s; {awaited}", flush=True)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield came
    finally:
        over.set()


def waited_for() -> str:
    """What tasks, actors and groups of workers wait for, and what there is; "" where nothing waits."""
    try:
        status = get_cluster_status(ray.get_runtime_context().gcs_address)
    except (RayError, RuntimeError, OSError):  # asked in vain: the cluster is busy, or just going
        return ""
    waiting: Counter[str] = Counter()
    for demand in (*status.resource_demands.ray_task_actor_demand, *status.resource_demands.placement_group_demand):
        for asked in demand.bundles_by_count:
            waiting[described(asked.bundle)] += asked.count
    if not waiting:
        return ""
    asked_for = ", ".join(f"{count} x {resources}" for resources, count in waiting.items())
    total, free = status.total_resources(), status.available_resources()
    return f"waiting for {asked_for}; the cluster has {described(total)}, {described(free)} free"
