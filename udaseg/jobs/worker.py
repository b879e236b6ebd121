"""The function that Ray Train runs on every worker, and the channel on which its first rank reports progress.

Ray Train's controller and the driver load this module too. What only a worker needs (networks, augmentation) is
imported in its functions, which saves them seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import ray
import ray.train
import ray.train.torch
import torch
from ray.train import CheckpointUploadMode

from udaseg.data.classes import Classes
from udaseg.data.pictures import sheet
from udaseg.data.plan import Plan
from udaseg.data.storage import join, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import TrainingError, UnreachableError
from udaseg.jobs.remote_errors import first_line, on_node, own_error
from udaseg.jobs.resources import usable_cores
from udaseg.jobs.stream import iterate

if TYPE_CHECKING:
    from udaseg.checkpoints.directory import ModelCard
    from udaseg.config import Stage
    from udaseg.evaluation.checkpoint_scores import Scoring
    from udaseg.job_config import Cluster
    from udaseg.training.step import RunState
    from udaseg.types import Batch, DepthRange


_SCRATCH = "udaseg-checkpoint-"


HISTORY_FILE = "history.jsonl"
"""The stage's metrics up to a checkpoint: what a lost driver had not written yet is found there."""


@dataclass(frozen=True, kw_only=True)
class WorkerJob:
    """All that a worker must know to run a stage."""

    stage: Stage
    classes: Classes
    recipe: str
    seed: int
    """Key of the run and stage."""
    init_uri: str | None
    """Model directory to start from."""
    checkpoint_every: int
    log_every: int
    bf16: bool
    cluster: Cluster
    depth_range: DepthRange | None = None
    """For the card: that of the images which the network is for."""
    window: tuple[int, int] | None = None
    overlap: float = 0.5
    """For the card, as `ModelCard` has them."""
    scoring: Scoring | None = None
    """None = checkpoints are not scored."""
    pictures: Plan | None = None
    """Of the images that are drawn at every checkpoint; None = none are."""
    picture_folder: str = ""


_SAME = 3
"""How often an error may come at one step before it ends the stage, whatever `--cluster.max-failures` allows."""


@ray.remote(num_cpus=0)
class ProgressLog:
    """What ranks tell the driver: rank 0 its rows of metrics, which are taken twice a second; each what ended it."""

    def __init__(self) -> None:
        self._rows: list[dict[str, Any]] = []
        self._error: Exception | None = None
        self._failures: dict[int, list[tuple[int, str]]] = {}

    def put(self, row: dict[str, Any]) -> None:
        self._rows.append(row)

    def take(self) -> list[dict[str, Any]]:
        rows, self._rows = self._rows, []
        return rows

    def fail(self, error: Exception) -> None:
        self._error = self._error or error

    def failed(self, rank: int, step: int, kind: str, text: str, *, peer: bool) -> None:
        """A rank's words of an error that may pass: what came three times on end at one step does not.

        But where it is of a lost `peer`: machines may be lost as often as is allowed.
        """
        self._rows.append({"event": "failed", "text": f"rank {rank} at step {step}: {text}"})
        failures = self._failures.setdefault(rank, [])
        failures.append((step, "" if peer else kind))
        if not peer and failures[-_SAME:] == _SAME * [(step, kind)]:
            self.fail(TrainingError(f"{_SAME} times on end at step {step}: {text}"))

    def error(self) -> Exception | None:
        """The first error of a rank that another try would end in too."""
        return self._error


def make_scratch() -> tuple[Path, int]:
    """A folder for what is to be uploaded, and the handle that holds its lock as long as this process lives."""
    while True:
        folder = tempfile.mkdtemp(prefix=_SCRATCH)
        handle = os.open(folder, os.O_RDONLY)
        fcntl.flock(handle, fcntl.LOCK_EX)
        if os.path.exists(folder):  # else it was cleared away before it had its lock
            return Path(folder), handle
        os.close(handle)


def clear_scratch() -> bool:
    """Remove from this machine what processes that were killed left of `make_scratch`; whether nothing is left."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"):
        with contextlib.suppress(OSError):  # its process is alive, or it is another user's
            handle = os.open(folder, os.O_RDONLY)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder)
            finally:
                os.close(handle)
    return not any(Path(tempfile.gettempdir()).glob(f"{_SCRATCH}*"))


def train_worker(config: dict[str, Any]) -> None:
    """Train one stage on this rank.

    An error of ours would end another try too. It is left with `progress`, where the driver finds it, and raised, since
    other ranks may wait for this one; Ray Train then starts all of them again, and they return at once.

    Args:
        config: "job" (a `WorkerJob`, pickled, so that the controller need not load what it names) and "progress"
            (handle of a `ProgressLog`).
    """
    progress = config["progress"]
    if ray.get(progress.error.remote()) is not None:
        return
    states: list[RunState] = []
    try:
        _train(config, progress, states)
    except Exception as error:
        node = ray.util.get_node_ip_address()
        own = own_error(error, node=node)
        if own is not None and not isinstance(own, UnreachableError):  # which may pass
            ray.get(progress.fail.remote(own))
        elif own is None:
            rank, step = ray.train.get_context().get_world_rank(), states[0].step if states else 0
            text = f"{first_line(error)}{on_node(node)}"
            if isinstance(error, torch.OutOfMemoryError):
                text += "; use a smaller data.crop or data.batch_size, or more --cluster.workers"
            peer = isinstance(error, torch.distributed.DistError) or "gloo" in text  # where gloo tells its source files
            ray.get(progress.failed.remote(rank, step, type(error).__name__, text, peer=peer))
        raise


def _train(config: dict[str, Any], progress: Any, states: list[RunState]) -> None:
    """Build or restore this rank's state, which is put into `states`, and train."""
    from udaseg.checkpoints.directory import STATE_FILE, read_weights
    from udaseg.training.kernels import prepare, set_precision
    from udaseg.training.step import build_state

    job: WorkerJob = ray.cloudpickle.loads(config["job"])
    here = ray.train.get_context().get_local_world_size()
    torch.set_num_threads(job.cluster.threads or max(1, usable_cores() // here))
    device = ray.train.torch.get_device()
    set_precision(job.cluster, device)
    context = ray.train.get_context()
    checkpoint = ray.train.get_checkpoint()
    init = None if job.init_uri is None or checkpoint is not None else read_weights(job.init_uri)
    # of the checkpoint is all that there is, so that nothing is fetched for it
    model = job.stage.model if checkpoint is None else replace(job.stage.model, pretrained=False, weights=None)
    state = build_state(
        replace(job.stage, model=model),
        len(job.classes),
        seed=job.seed,
        init=init,
        device=device,
        bf16=job.bf16,
        channels_last=job.cluster.channels_last,
    )
    state.bf16_gradients = job.cluster.bf16_gradients
    states.append(state)
    prepare(state.method, job.cluster, device)
    history: list[dict[str, Any]] = []
    if checkpoint is not None:
        with checkpoint.as_directory() as directory:
            state.load(Path(directory) / STATE_FILE)
            history = [json.loads(line) for line in (Path(directory) / HISTORY_FILE).read_text().splitlines()]
    _run(state, history, job, device, context.get_world_rank(), context.get_world_size(), progress)


def _run(
    state: RunState,
    history: list[dict[str, Any]],
    job: WorkerJob,
    device: torch.device,
    rank: int,
    world_size: int,
    progress: Any,
) -> None:
    """Train from `state` to the stage's end; `history` holds the rows of metrics so far, and rank 0 adds its own."""
    from udaseg.evaluation.checkpoint_scores import score
    from udaseg.training.batches import to_batches
    from udaseg.training.pictures import draw_pictures, load_samples
    from udaseg.training.speed import Speed, peak_memory
    from udaseg.training.step import queue_step

    stage, data = job.stage, job.stage.data
    per_rank = data.batch_size // world_size

    def report(row: dict[str, Any]) -> None:
        if rank == 0:
            history.append(row)
            progress.put.remote(row)

    if rank == 0:
        progress.put.remote({"event": "start", "step": state.step, "workers": world_size, "history": history})
    rows = _checked(iterate(ray.train.get_dataset_shard("plan"), per_rank=per_rank), state, data.batch_size, rank)
    speed = Speed(state.step, images=data.batch_size * len(data.streams()))
    clear_scratch()
    scratch, _lock = make_scratch()
    noticed = False
    pictured = None if job.pictures is None else load_samples(job.pictures, per_rank)
    # images of many shapes, of a network that is none of the run's: none is compiled for
    uncompiled = partial(torch.compiler.set_stance, "force_eager") if job.cluster.compile else contextlib.nullcontext

    def upload() -> dict[str, Batch]:
        with speed.timing("wait"):
            columns = next(rows)
        with speed.timing("host"):
            return to_batches(columns, data, seed=job.seed, device=device)

    batches = upload() if state.step < stage.steps else {}
    while state.step < stage.steps:
        with speed.timing("host"):
            queue_step(state, batches, stage, seed=job.seed)
        last = state.step == stage.steps
        if not last:
            batches = upload()  # before anything waits for a GPU, which is at the step still
        if state.step % job.log_every == 0 or last:
            values = state.read()
            lr = stage.optim.lr * stage.optim.lr_factor(state.step - 1, stage.steps)
            measured = {**speed.take(state.step), "memory_mib": peak_memory(device), "workers": world_size}
            report({"event": "step", "step": state.step, "lr": lr, **values, **measured})
        due = state.step % job.checkpoint_every == 0 or last
        if due:
            state.read()  # on every rank: nothing that is not finite becomes a checkpoint
        if due and job.scoring is not None:
            # before the checkpoint counts: what is done again after a loss is scored again too
            with uncompiled():
                views = _card(job, state.step).views()
                scores = score(state.method.predictor, job.scoring, device=device, **views)
            report({"event": "score", "step": state.step, **scores})
        if due and pictured is not None and job.pictures is not None:
            with uncompiled():
                how: dict[str, Any] = {"step": state.step, "seed": job.pictures.seed, "device": device}
                drawn = draw_pictures(state.method, pictured, stage, job.classes, **how)
            if rank == 0:
                with contextlib.suppress(OSError):  # what a checkpoint cannot be written for either is told of that
                    write_bytes(join(job.picture_folder, f"{state.step:07d}.png"), sheet(drawn))
        if not noticed and state.step % job.log_every == 0:
            # a node is about to be taken away: save once, and go on until it is; all ranks hear the same
            noticed = ray.train.get_preemption_info() is not None
            due = due or noticed
        if due:
            _checkpoint(state, history, job, rank, scratch)


def _checked(
    rows: Iterator[dict[str, np.ndarray]], state: RunState, batch_size: int, rank: int
) -> Iterator[dict[str, np.ndarray]]:
    """The steps of a rank, each sure to be that of the state. Raises RuntimeError where it is not."""
    for columns in rows:
        per_rank = len(columns["index"])
        expected = np.arange(per_rank) + state.step * batch_size + rank * per_rank
        if not np.array_equal(columns["index"], expected):
            raise RuntimeError(f"rank {rank} got samples {columns['index']} at step {state.step}, not {expected}")
        yield columns


def _checkpoint(state: RunState, history: list[dict[str, Any]], job: WorkerJob, rank: int, folder: Path) -> None:
    """Save on rank 0, in `folder`, and have Ray Train upload and register it; a barrier of all ranks.

    Training goes on during the upload, unless nothing is left to train. A checkpoint counts once it is whole, so that a
    loss during an upload falls back on the one before.
    """
    from udaseg.checkpoints.directory import STATE_FILE, save_model

    name = f"checkpoint_{state.step:07d}"
    if rank != 0:
        ray.train.report({"step": state.step}, checkpoint_dir_name=name)
        return
    scratch = Path(tempfile.mkdtemp(dir=folder))
    state.save(scratch / STATE_FILE)
    (scratch / HISTORY_FILE).write_text("".join(dump_json(row) + "\n" for row in history))
    save_model(scratch, state.method.predictor, _card(job, state.step))
    last = state.step == job.stage.steps
    ray.train.report(
        {"step": state.step},
        checkpoint=ray.train.Checkpoint.from_directory(scratch),
        checkpoint_dir_name=name,
        checkpoint_upload_mode=CheckpointUploadMode.SYNC if last else CheckpointUploadMode.ASYNC,
        delete_local_checkpoint_after_upload=True,
    )


def _card(job: WorkerJob, step: int) -> ModelCard:
    from udaseg.checkpoints.directory import ModelCard

    stage = job.stage
    return ModelCard(
        model=stage.model,
        classes=job.classes,
        short_side=stage.data.short_side,
        resample=stage.data.resample,
        recipe=job.recipe,
        stage=stage.name,
        step=step,
        depth_range=job.depth_range,
        window=job.window,
        overlap=job.overlap,
        old_classes=stage.method.old_classes,
    )
