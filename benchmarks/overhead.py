"""What the pipeline costs on top of the bare device step.

    python -m benchmarks.overhead [--steps 480]

Prints, from one run on the embedded pair: seconds per step of the whole pipeline (Ray Data, Ray Train, one worker)
divided by seconds of the same step, augmentation included, on tensors already in memory; the share of the step that is
augmentation; and the share of time that the worker waits for data. Both use the same number of threads.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import tyro

from udaseg.data.synthetic import write_pair
from udaseg.job_config import Cluster
from udaseg.jobs.prepare import prepare
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.resources import usable_cores
from udaseg.jobs.run_directory import read_metrics
from udaseg.jobs.train import make_plan, train
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.training.batches import to_batches
from udaseg.training.step import build_state, train_step


@dataclass(frozen=True, kw_only=True)
class Arguments:
    steps: int = 480
    """Steps of the pipeline run; the first third warms up and does not count."""
    recipe: str = "dacs_small"
    """A recipe whose second stage is measured."""


def main() -> None:
    a = tyro.cli(Arguments)
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        write_pair(root / "pair", train=120, val=8)
        ensure_ray(num_cpus=usable_cores() + 1)
        data = {}
        for domain in ("source", "target"):
            data[domain] = str(root / domain)
            prepare(
                layout="folders",
                root=str(root / "pair" / domain),
                classes=str(root / "pair" / "classes.json"),
                out=data[domain],
            )
        recipe = override(RECIPES[a.recipe](), {"log_every": 10, "checkpoint_every": 10**6})
        stage = dataclasses.replace(recipe.stages[-1], steps=a.steps, init_from=None)
        recipe = dataclasses.replace(recipe, stages=(stage,))
        threads = usable_cores()
        train(
            recipe,
            source=data["source"],
            target=data["target"],
            out=str(root / "run"),
            cluster=Cluster(threads=threads),
        )
        rows = read_metrics(str(root / "run"))
        rows = [row for row in rows if row["step"] > a.steps // 3]
        images = stage.data.batch_size * len(stage.data.streams())
        pipeline = images / statistics.median(row["images_per_second"] for row in rows)
        waiting = statistics.median(row["data_wait"] for row in rows)

        torch.set_num_threads(threads)
        plan = make_plan(stage, data, seed=1)
        samples = [plan.load(g) for g in range(8 * plan.batch_size)]
        held = [
            {k: np.stack([s[k] for s in samples[i : i + plan.batch_size]]) for k in samples[0]}
            for i in range(0, len(samples), plan.batch_size)
        ]
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        state = build_state(stage, 8, seed=1, init=None, device=device, bf16=recipe.bf16)
        step_seconds, augment_seconds = [], []
        for n in range(a.steps * 2 // 3):
            began = time.perf_counter()
            batches = to_batches(held[n % len(held)], stage.data, seed=1, device=device)
            augmented = time.perf_counter()
            train_step(state, batches, stage, seed=1)
            step_seconds.append(time.perf_counter() - began)
            augment_seconds.append(augmented - began)
        weak_share = sum(augment_seconds) / sum(step_seconds)
        strong_share = _strong_share(held, stage, device) / statistics.median(step_seconds)
    bare = statistics.median(step_seconds)
    print(f"seconds per step: pipeline {pipeline:.3f}, in memory {bare:.3f}, ratio {pipeline / bare:.2f}")
    print(
        f"augmentation: {weak_share + strong_share:.1%} of the step (weak {weak_share:.1%}, strong {strong_share:.1%})"
    )
    print(f"waiting for data: {waiting:.1%} of the pipeline's time")


def _strong_share(held: list[dict[str, np.ndarray]], stage: object, device: torch.device) -> float:
    """Median seconds of the strong view of one batch."""
    from udaseg.components.augment import strong

    seconds = []
    for n in range(16):
        batch = to_batches(held[n % len(held)], stage.data, seed=1, device=device)["target"]  # type: ignore[attr-defined]
        began = time.perf_counter()
        strong(batch.image, batch.index, seed=1, purpose="mixed")
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


if __name__ == "__main__":
    main()
