"""`udaseg train` that notes what its workers do: python recorded_train.py FOLDER PAUSE WORDS.

Every process writes a file in FOLDER, a line of JSON at each step: its samples, just before it is taken; and what Ray
Train's controller learns. A step takes PAUSE seconds more.
"""

from __future__ import annotations

import json
import os
import sys
import time
from typing import Any

import ray.train

from pipelines.train import main as main_train
from udaseg.jobs import train as job
from udaseg.jobs.worker import train_worker


def note(folder: str, **row: Any) -> None:
    with open(f"{folder}/{os.getpid()}.jsonl", "a") as file:
        file.write(json.dumps({"time": time.time(), **row}) + "\n")


def main() -> int:
    folder, pause = sys.argv[1], float(sys.argv[2])

    def recording(config: dict[str, Any]) -> dict[str, Any]:
        import zlib

        import udaseg.training.step as loop
        from udaseg.distributed import rank, world_size

        real = loop.queue_step

        def step(state, batches, *rest, **named):  # type: ignore[no-untyped-def]
            samples = [
                [name, int(index), zlib.crc32(image.numpy().tobytes())]
                for name, batch in batches.items()
                for index, image in zip(batch.index, batch.image, strict=True)
            ]
            ranks = {"rank": rank(), "workers": world_size()}
            note(folder, event="step", stage=list(batches), step=state.step, **ranks, samples=samples)
            time.sleep(pause)
            return real(state, batches, *rest, **named)

        loop.queue_step = step
        return train_worker(config)

    class Controller(ray.train.UserCallback):
        """Runs in the controller."""

        def after_report(self, run_context: Any, metrics: Any, checkpoint: Any) -> None:
            note(folder, event="report", step=metrics[0]["step"])

        def after_exception(self, run_context: Any, worker_exceptions: Any) -> None:
            note(folder, event="exception")

    real_trainer = job.TorchTrainer

    def trainer(function: Any, *, run_config: ray.train.RunConfig, **named: Any) -> Any:
        run_config.callbacks.append(Controller())
        return real_trainer(function, run_config=run_config, **named)

    job.train_worker, job.TorchTrainer = recording, trainer
    return main_train(sys.argv[3:])


if __name__ == "__main__":
    sys.exit(main())
