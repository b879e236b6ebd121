"""Sample the index, stream the pixels.

One Ray Dataset of plan rows is read, decoded and cropped to fixed uint8 in tasks, and dealt to the workers in order, so
that step k holds the samples [k G, (k+1) G) of a global batch G whatever the number of workers, and a run that starts
again at step k sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import ray
import ray.train
from ray.data import ExecutionOptions
from ray.data._internal.execution.execution_callback import ExecutionCallback

from udaseg.data.plan import Plan
from udaseg.data.storage import exists, filesystem, join, reach
from udaseg.errors import TrainingError
from udaseg.jobs.run_directory import SNAPSHOT

ROWS_PER_BLOCK = 16
"""A block of about this many samples is one Ray task: smaller ones cost more to schedule than to decode."""

PAUSE = 0.02
"""Seconds between two looks of Ray Data's at its tasks."""


class Unhurried(ExecutionCallback):
    """Has Ray Data wait a little after each look at its tasks.

    Without, it looks as often as it can while blocks are ready that nobody wants yet, which is nearly always where
    training is slower than decoding: that takes a core, on two cores half of the training's speed.
    """

    def on_execution_step(self, executor: object) -> None:
        time.sleep(PAUSE)


def sample_index(row: np.ndarray, *, start: int, batch_size: int, world_size: int, steps_per_block: int) -> np.ndarray:
    """The global sample index of rows of the plan dataset, which deals one block to each rank in turn.

    Block j goes to rank j % W and holds `steps_per_block` steps of that rank's share, so that after any number of
    whole rounds every rank has the same steps.
    """
    per_rank = batch_size // world_size
    block, within = np.divmod(row, steps_per_block * per_rank)
    turn, rank = np.divmod(block, world_size)
    step = start + turn * steps_per_block + within // per_rank
    return step * batch_size + rank * per_rank + within % per_rank


def plan_dataset(plan: Plan, *, start: int, world_size: int) -> ray.data.Dataset:
    """The Ray Dataset of a plan from step `start` on, in the order that `sample_index` says, padded to whole blocks."""
    per_rank = plan.batch_size // world_size
    steps_per_block = max(1, min(ROWS_PER_BLOCK // per_rank, plan.steps - start))
    rounds = max(1, -(-(plan.steps - start) // steps_per_block))
    rows_per_block = steps_per_block * per_rank
    rows = rounds * world_size * rows_per_block
    end = plan.steps * plan.batch_size

    def load(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        index = sample_index(
            block["id"], start=start, batch_size=plan.batch_size, world_size=world_size, steps_per_block=steps_per_block
        )
        with ThreadPoolExecutor(4) as threads:  # remote reads wait; a decode holds no lock
            samples = list(threads.map(lambda g: plan.load(int(g)) if g < end else plan.empty(), index))
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    dataset = (
        # few coarse blocks, cut in order: thousands of blocks in one list take a minute to schedule
        ray.data.range(rows, override_num_blocks=max(1, rows // (16 * rows_per_block)))
        .repartition(target_num_rows_per_block=rows_per_block, strict=True)
        .map_batches(load, batch_size=None, batch_format="numpy", num_cpus=1)
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    dataset.context.custom_execution_callback_classes = [Unhurried]
    return dataset


class PlanDataConfig(ray.train.DataConfig):
    """Deals a plan to the workers. Ray Train asks it at every start of a worker group, and so after every loss of one.

    Only here is the number of workers known, and the step that the last registered checkpoint resumes at. A CPU for the
    data tasks is waited for `wait` seconds.
    """

    def __init__(self, plan: Plan, stage_directory: str, *, wait: float) -> None:
        super().__init__(execution_options=ExecutionOptions(preserve_order=True))
        self.plan = plan
        self.stage_directory = stage_directory
        self.wait = wait

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        _await_cpu(world_size, self.wait)
        dataset = plan_dataset(self.plan, start=registered_step(self.stage_directory), world_size=world_size)
        dataset.set_name("plan")
        dataset.context.execution_no_progress_timeout_s = -1  # a consumer may pause for a checkpoint
        dataset.context.raise_original_map_exception = True  # so that a worker finds an error of ours in it
        shards = dataset.streaming_split(world_size, equal=True, locality_hints=worker_node_ids)
        return [{"plan": shard} for shard in shards]


def _await_cpu(world_size: int, seconds: float) -> None:
    """Make sure that the workers, which are in place, leave a CPU to data tasks: Ray Data would wait without a word.

    Raises TrainingError where none was had in time; on a cluster that grows, the request starts a node.
    """
    request = _nothing.remote()
    try:
        ray.get(request, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(request)
        has = ray.cluster_resources().get("CPU", 0)
        raise TrainingError(
            f"{world_size} workers leave no CPU for data tasks; waited {seconds:g} s for one, the cluster has {has:g}"
        ) from None


@ray.remote(num_cpus=1)
def _nothing() -> None: ...


def registered_step(stage_directory: str) -> int:
    """Steps done according to the last checkpoint that Ray Train has registered of a stage; 0 without one."""
    if not exists(join(stage_directory, SNAPSHOT)):
        return 0
    fs, path = filesystem(stage_directory)
    result = reach(stage_directory, lambda: ray.train.Result.from_path(path, storage_filesystem=fs))
    return int((result.metrics or {}).get("step", 0))


def iterate(shard: ray.data.DataIterator, *, per_rank: int) -> Iterator[dict[str, np.ndarray]]:
    """One rank's steps: columns of `per_rank` samples each."""
    return iter(shard.iter_batches(batch_size=per_rank, batch_format="numpy", prefetch_batches=2))
