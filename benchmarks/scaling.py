"""What data parallelism and large indices cost.

    python -m benchmarks.scaling index [--images 10000 100000 1000000 10000000]
    python -m benchmarks.scaling workers [--steps 150] [--rounds 3] [--height 128]

index: datasets of so many images, whose rows share 64 small files. For each, in a process of its own: what the checks
before a run and the index take in the driver, the cost of planning a sample, and the time from a Ray that is up to the
first batch of a plan.

workers: images per second of one worker, it and all of Ray pinned to one core, and of two workers on two cores, one
thread each; beside them the same step in processes apart, without Ray, which is what the machine itself allows; and how
much of a step rank 0 computes, waits for data, waits where it meets the other rank (for the counts that losses divide
by, the log's losses and batch norm statistics), and waits for gradients, which are exchanged beside the backward pass.
For a machine with nothing else to do.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.compute as pc
import ray
import torch
import tyro
from PIL import Image

from udaseg.config import Recipe, Stage
from udaseg.data.classes import Classes
from udaseg.data.index import open_index
from udaseg.data.manifest import MANIFEST, digest, write_dataset
from udaseg.data.plan import draw_row
from udaseg.data.synthetic import write_pair
from udaseg.job_config import Cluster
from udaseg.jobs.preflight import check
from udaseg.jobs.prepare import prepare
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.run_directory import read_metrics
from udaseg.jobs.stream import iterate, plan_dataset
from udaseg.jobs.train import make_plan, train
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.training.batches import to_batches
from udaseg.training.step import build_state, train_step

CLASSES = Classes(names=("ground", "sky", "box"), palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)))


# --- index ----------------------------------------------------------------------------------------------------------


def index(images: tuple[int, ...] = (10**4, 10**5, 10**6, 10**7)) -> None:
    """Cost of an index at these numbers of images."""
    print("images     checks s  checks MiB  index s  index MiB  uniform us  rare us  first batch s  largest worker MiB")
    for count in images:
        with tempfile.TemporaryDirectory() as folder:
            with _alone() as process:
                process.submit(_write_dataset, folder, count).result()
            with _alone() as process:
                r = process.submit(_measure_index, folder).result()
        print(
            f"{count:<11}{r['checks_s']:<10.2f}{r['checks_mib']:<12.0f}{r['index_s']:<9.3f}{r['index_mib']:<11.1f}"
            f"{r['uniform_us']:<12.0f}{r['rare_us']:<9.0f}{r['first_batch_s']:<15.1f}{r['worker_mib']:.0f}",
            flush=True,
        )


def _alone() -> ProcessPoolExecutor:
    """One fresh process."""
    return ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn"))


def _write_dataset(folder: str, count: int) -> None:
    rng = np.random.default_rng(0)
    for number in range(64):
        for kind, pixels in (("images", rng.integers(0, 256, (48, 64, 3))), ("labels", rng.integers(0, 3, (48, 64)))):
            (Path(folder) / kind).mkdir(exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(Path(folder) / kind / f"{number:02d}.png")
    number = pa.array(np.arange(count) % 64)
    uris = {kind: pa.array([f"{kind}/{n:02d}.png" for n in range(64)]).take(number) for kind in ("images", "labels")}
    pixels = pa.FixedSizeListArray.from_arrays(pa.array(rng.integers(0, 3000, 3 * count)), 3)
    columns = {
        "image_id": pc.utf8_lpad(pc.cast(pa.array(np.arange(count)), pa.string()), 8, "0"),
        "image_uri": uris["images"],
        "label_uri": uris["labels"],
        "height": pa.array(np.full(count, 48, np.int32)),
        "width": pa.array(np.full(count, 64, np.int32)),
        "class_pixels": pixels.cast(pa.list_(pa.int64())),
        "dataset": pa.array(["synthetic"]).take(pa.array(np.zeros(count, np.int64))),
        "split": pa.array(["train"]).take(pa.array(np.zeros(count, np.int64))),
    }
    write_dataset(folder, pa.table(columns, schema=MANIFEST), CLASSES)


def _measure_index(folder: str) -> dict[str, float]:
    recipe = _small("source_only_small", {"data.source.sampling": "rare_class"})
    plan = make_plan(recipe.stages[0], {"source": folder}, seed=1)
    rare = plan.streams["source"]
    ensure_ray(num_cpus=2)
    process = psutil.Process()
    result: dict[str, float] = {}

    def measure(name: str, function: Callable[[], object]) -> None:
        """Seconds, and MiB of the driver's own memory at the most above what it had."""
        before, began = _own(process), time.perf_counter()
        with ProcessWatch(process) as watch:
            function()
            result[f"{name}_s"] = time.perf_counter() - began
        most = max(watch.most, _own(process))
        result[f"{name}_mib"] = (most - before) / 2**20

    def checks() -> None:
        check(recipe, {"source": folder}, Cluster(gpu=False))
        digest(folder)

    def first_batch() -> None:
        next(iterate(plan_dataset(plan, start=0, world_size=1).iterator(), per_rank=plan.batch_size))
        held = [0]
        for child in process.children(recursive=True):
            with contextlib.suppress(psutil.NoSuchProcess):  # ended meanwhile
                if " ".join(child.cmdline()).startswith("ray::"):  # a worker, which may be idle again
                    held.append(_own(child))
        result["worker_mib"] = max(held) / 2**20

    measure("checks", checks)
    measure("index", lambda: open_index(folder))
    for name, stream in (("uniform", dataclasses.replace(rare, sampling="uniform")), ("rare", rare)):
        draw_row(stream, 0, 1, "source")  # what is done once
        began = time.perf_counter()
        for sample in range(2000):
            draw_row(stream, sample, 1, "source")
        result[f"{name}_us"] = (time.perf_counter() - began) / 2000 * 1e6
    measure("first_batch", first_batch)
    ray.shutdown()
    return result


def _own(process: psutil.Process) -> int:
    """Bytes that a process holds itself, without mapped files and shared memory."""
    info = process.memory_info()
    return info.rss - info.shared


class ProcessWatch:
    """The most bytes of its own that a process has while the block runs."""

    def __init__(self, process: psutil.Process) -> None:
        import threading

        self.most = 0
        self._stop = threading.Event()

        def watch() -> None:
            while not self._stop.wait(0.02):
                self.most = max(self.most, _own(process))

        self._thread = threading.Thread(target=watch, daemon=True)

    def __enter__(self) -> ProcessWatch:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join()


def _small(name: str, values: dict[str, Any]) -> Recipe:
    tiny = {"data.short_side": 48, "data.crop": (32, 32), "data.source.rare_min_pixels": 1}
    recipe = override(RECIPES[name](), tiny | values)
    return dataclasses.replace(recipe, stages=recipe.stages[:1])


# --- workers --------------------------------------------------------------------------------------------------------


def workers(steps: int = 150, recipe: str = "dacs_small", rounds: int = 3, height: int = 128) -> None:
    """Images per second of one worker on one core and of two on two, in the last stage of a recipe, in turns.

    Crops are `height` rows high and half as much again wide. Ends with the median of the turns' ratios.
    """
    cores = sorted(os.sched_getaffinity(0))[:2]
    if len(cores) < 2:
        raise SystemExit("two cores are needed")
    with tempfile.TemporaryDirectory() as folder:
        data, stage = _pair(Path(folder)), _last_stage(recipe, height)
        ratios = []
        for number in range(rounds):
            apart, found = {}, {}
            for count in (1, 2):
                with ProcessPoolExecutor(count, mp_context=multiprocessing.get_context("spawn")) as pool:
                    apart[count] = sum(pool.map(_measure_apart, [stage] * count, cores[:count]))
                with _alone() as process:
                    out = str(Path(folder) / f"run-{number}-{count}")
                    job = process.submit(_measure_workers, stage, steps, count, cores[:count], data, out)
                    found[count] = job.result()
            for count, r in found.items():
                print(
                    f"{count} worker(s): {r['speed']:.1f} images/s; rank 0 computes {r['own']:.0%}, waits for data "
                    f"{r['data']:.1%}, where it meets the other {r['met']:.1%}, for gradients "
                    f"{r['gradients']:.1%}; {count} process(es) apart: {apart[count]:.1f} images/s"
                )
            two, bound = (x[2] / x[1] for x in ({n: r["speed"] for n, r in found.items()}, apart))
            print(f"two against one: {two:.2f}; apart: {bound:.2f}", flush=True)
            ratios.append(two)
        print(f"median of {rounds}: {statistics.median(ratios):.2f}", flush=True)


def _last_stage(recipe: str, height: int) -> Stage:
    stage = dataclasses.replace(RECIPES[recipe]().stages[-1], init_from=None)
    data = dataclasses.replace(stage.data, short_side=height, crop=(height, height * 3 // 2))
    return dataclasses.replace(stage, data=data)


def _measure_apart(stage: Stage, core: int, seconds: float = 15.0) -> float:
    """Images per second of the step on one worker's share of two, in memory, in a process on a core of its own."""
    os.sched_setaffinity(0, [core])
    torch.set_num_threads(1)
    count = stage.data.batch_size // 2
    rng = np.random.default_rng(0)
    columns = _random_columns(stage, count, len(CLASSES), rng)
    state = build_state(stage, len(CLASSES), seed=1, init=None, device=torch.device("cpu"), bf16=False)
    times = [time.perf_counter()]
    while times[-1] < times[0] + seconds:
        train_step(state, to_batches(columns, stage.data, seed=1, device=torch.device("cpu")), stage, seed=1)
        times.append(time.perf_counter())
    return count * len(stage.data.streams()) / float(np.median(np.diff(times)))


def _random_columns(stage: Stage, count: int, classes: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    columns: dict[str, np.ndarray] = {"index": np.arange(count)}
    for stream in stage.data.streams():
        columns[f"{stream}_image"] = rng.integers(0, 256, (count, *stage.data.crop, 3)).astype(np.uint8)
        columns[f"{stream}_label"] = rng.integers(0, classes, (count, *stage.data.crop)).astype(np.uint8)
    return columns


def _pair(root: Path) -> dict[str, str | None]:
    write_pair(root / "pair", train=120, val=8)
    for domain in ("source", "target"):
        prepare(
            layout="folders",
            root=str(root / "pair" / domain),
            classes=str(root / "pair" / "classes.json"),
            out=str(root / domain),
        )
    ray.shutdown()
    return {domain: str(root / domain) for domain in ("source", "target")}


def _measure_workers(
    stage: Stage, steps: int, count: int, cores: list[int], data: dict[str, str | None], out: str
) -> dict[str, float]:
    """One run on these cores, Ray's own processes included; its first third warms up and does not count."""
    import udaseg.jobs.train as job
    from udaseg.jobs.worker import train_worker

    os.sched_setaffinity(0, cores)
    ensure_ray(num_cpus=count + 2)
    notes = f"{out}.jsonl"

    def timed(config: dict[str, Any]) -> dict[str, Any]:
        import torch.distributed as torch_dist

        import udaseg.training.step
        from udaseg.distributed import rank

        real_reduce, real_step = torch_dist.all_reduce, udaseg.training.step.queue_step
        spent = {"met": 0.0, "gradients": 0.0}

        class Work:
            def __init__(self, real: Any) -> None:
                self.real = real

            def wait(self) -> None:
                began = time.perf_counter()
                self.real.wait()
                spent["gradients"] += time.perf_counter() - began

        def all_reduce(tensor: Any, async_op: bool = False) -> Work | None:
            if async_op:
                return Work(real_reduce(tensor, async_op=True))
            began = time.perf_counter()
            real_reduce(tensor)
            spent["met"] += time.perf_counter() - began
            return None

        def queue_step(*arguments: Any, **named: Any) -> None:
            real_step(*arguments, **named)
            if rank() == 0:
                with open(notes, "a") as file:
                    file.write(json.dumps({"time": time.perf_counter(), "own": time.process_time(), **spent}) + "\n")

        torch_dist.all_reduce = all_reduce
        udaseg.training.step.queue_step = queue_step
        return train_worker(config)

    job.train_worker = timed
    stage = dataclasses.replace(stage, steps=steps)
    cluster = Cluster(workers=count, gpu=False, threads=1)
    train(
        Recipe(name="scaling", stages=(stage,), log_every=10, checkpoint_every=10**6),
        source=data["source"],
        target=data["target"],
        out=out,
        cluster=cluster,
    )
    ray.shutdown()
    rows = read_metrics(out)
    rows = [row for row in rows if row["step"] > steps // 3]
    lines = [json.loads(line) for line in Path(notes).read_text().splitlines()]
    first, last = lines[steps // 3], lines[-1]
    shares = {key: (last[key] - first[key]) / (last["time"] - first["time"]) for key in lines[0].keys() - {"time"}}
    return shares | {
        "speed": statistics.median(row["images_per_second"] for row in rows),
        "data": statistics.median(row["data_wait"] for row in rows),
    }


if __name__ == "__main__":
    tyro.extras.subcommand_cli_from_dict({"index": index, "workers": workers})
