"""`udaseg train`: run a recipe's stages one after the other, with pseudo-labelling between them, and resume in any."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from udaseg.checkpoints.directory import CARD_FILE, copy_model, read_card
from udaseg.config import PseudoLabel, Recipe, Stage
from udaseg.data.classes import Classes
from udaseg.data.index import first_image, open_index
from udaseg.data.manifest import digest
from udaseg.data.plan import Plan, StreamPlan
from udaseg.data.storage import absolute, exists, join, to_uri, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import LostWorkError, TrainingError, UnreachableError
from udaseg.evaluation.checkpoint_scores import Scoring
from udaseg.job_config import Cluster, Inference, TrackerName, check_trackers
from udaseg.jobs.monitor import Monitor
from udaseg.jobs.output import own_directory, require_own
from udaseg.jobs.preflight import check, check_out, check_resources, check_resumable, classes_by_id, shortage
from udaseg.jobs.pseudo_label.job import pseudo_label, unreachable_images
from udaseg.jobs.ray_session import check_nodes, ensure_ray
from udaseg.jobs.remote_errors import plain_errors
from udaseg.jobs.resources import usable_cores
from udaseg.jobs.run_directory import read_registered
from udaseg.jobs.stream import PlanDataConfig
from udaseg.jobs.trackers import tracked
from udaseg.jobs.translate import translate
from udaseg.jobs.worker import ProgressLog, WorkerJob, clear_scratch, train_worker
from udaseg.overrides import to_json as recipe_to_json
from udaseg.reports.progress import PICTURES
from udaseg.rng import key_to_seed
from udaseg.types import DOMAIN_OF, Location, split_of


def train(
    recipe: Recipe,
    *,
    source: Location | None,
    target: Location | None,
    out: Location,
    resume: bool = False,
    cluster: Cluster | None = None,
    scoring: Scoring | None = None,
    on_score: Callable[[dict[str, Any]], None] | None = None,
    track: Sequence[TrackerName] = (),
) -> str:
    """Run a recipe; returns the model directory of its last stage, `out`/model.

    Args:
        recipe: what to run.
        source: dataset directory of labelled source images; None for a recipe that reads none.
        target: dataset directory of target images; None for a recipe that reads none.
        out: run directory, a path or URI that every node can write.
        resume: go on with the run in `out`; without it a run directory that exists is refused.
        cluster: workers and their resources.
        scoring: the images that every checkpoint is scored on; metrics.jsonl has a row of scores for each.
        on_score: takes these rows as they come, in a thread of its own.
        track: trackers that the run is shown to, see `udaseg.jobs.trackers`; a resumed run goes on there.

    Raises:
        ConfigError, DatasetError, CheckpointError: before anything runs, where something does not fit together.
        TrainingError: training cannot go on; LostWorkError where it can another time.
    """
    cluster = cluster or Cluster()
    check_trackers(track)
    out = to_uri(out)
    require_own(out, "train")
    directories = {"source": to_uri(source), "target": to_uri(target)}
    classes = check(recipe, directories, cluster)
    print(*(f"{line}\n" for line in classes_by_id(recipe, classes)), sep="", end="", flush=True)
    digests = {name: digest(directory) for name, directory in directories.items() if directory is not None}
    out = absolute(out)
    config = {"recipe": json.loads(recipe_to_json(recipe)), "manifests": digests}
    with own_directory(out, "train"):
        check_out(config, out, resume)
        check_resumable([stage_directory(out, recipe, number) for number in range(len(recipe.stages))])
        os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(cluster.wait))
        ensure_ray(num_cpus=usable_cores() + cluster.workers)
        check_resources(cluster)
        if not exists(join(out, "config.json")):
            write_bytes(join(out, "config.json"), dump_json(config, indent=1).encode())
        write_bytes(join(out, "classes.json"), classes.to_json().encode())
        check_nodes([first_image(directory) for directory in directories.values() if directory is not None], out)
        with tracked(track, out, recipe) as on_row:
            monitor = Monitor(out, on_score, on_row)
            run = _Run(recipe, classes, directories, digests, out, cluster, monitor, scoring)
            for number, stage in enumerate(recipe.stages):
                if not exists(join(run.stage_directory(number), "model", CARD_FILE)):
                    run_stage(run, number, stage)
        copy_model(join(run.stage_directory(len(recipe.stages) - 1), "model"), join(out, "model"))
        return join(out, "model")


def stage_folder(recipe: Recipe, number: int) -> str:
    """The name of a stage's folders."""
    return f"{number}-{recipe.stages[number].name}"


def stage_directory(out: str, recipe: Recipe, number: int) -> str:
    """Where a stage of the run in `out` keeps its checkpoints and its model."""
    return join(out, "stages", stage_folder(recipe, number))


@dataclass(frozen=True)
class _Run:
    """What all stages of a run share."""

    recipe: Recipe
    classes: Classes
    directories: dict[str, str | None]
    digests: dict[str, str]
    out: str
    cluster: Cluster
    monitor: Monitor
    scoring: Scoring | None

    def stage_directory(self, number: int) -> str:
        return stage_directory(self.out, self.recipe, number)

    def folder(self, number: int) -> str:
        return stage_folder(self.recipe, number)

    @property
    def inference(self) -> Inference:
        """How the run's workers predict between stages."""
        return Inference(gpu=self.cluster.gpu, actors=self.cluster.workers, min_actors=self.cluster.fewest)

    def model_uri(self, name: str | None) -> str | None:
        """The model directory that a stage's name stands for; any other name is one already."""
        names = [s.name for s in self.recipe.stages]
        return join(self.stage_directory(names.index(name)), "model") if name in names else name


def run_stage(run: _Run, number: int, stage: Stage) -> None:
    """Label the target and translate the source if the stage asks for it, and train to the stage's end on Ray Train.

    What was done before is not done again: pseudo-labels and translated images that are complete stay, and training
    goes on from the last registered checkpoint.
    """
    directory, inputs = run.stage_directory(number), dict(run.directories)
    if stage.pseudo_label is not None:
        inputs["target"] = _labelled(run, number, stage, stage.pseudo_label)
    if stage.translated_by is not None:
        inputs["source"] = _translated(run, number, stage.translated_by)
    # on this node: another one may be lost, and what it had not yet told with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = ProgressLog.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    trainer = _trainer(run, number, stage, inputs, progress)
    failure: BaseException | None = None
    with run.monitor.stage(number, stage, progress), _interruptible():
        try:
            with plain_errors():
                trainer.fit()
        except TrainingError as error:
            failure = error
    name = run.folder(number)
    if (told := ray.get(progress.error.remote())) is not None:
        raise type(told)(f"stage {name}: {told}") from failure
    if failure is not None:
        raise LostWorkError(f"stage {name} failed: {failure}{shortage(run.cluster)}") from failure
    step, last = read_registered(directory)[-1]
    if step != stage.steps:  # the report of the last was lost with its worker
        raise LostWorkError(f"stage {name}: its last checkpoint is of step {step} of {stage.steps}; go on by --resume")
    copy_model(last, join(directory, "model"))


def _labelled(run: _Run, number: int, stage: Stage, rules: PseudoLabel) -> str:
    """The target with pseudo-labels of a stage's own, which are made unless they are there.

    Raises UnreachableError where an image has none: what a stage learns must not depend on when a mount was away.
    """
    name = run.folder(number)
    out = join(run.out, "pseudo_labels", name)
    target, labeller = run.directories["target"], run.model_uri(rules.by or stage.init_from)
    assert target is not None and labeller is not None  # see `check`
    if not exists(join(out, "manifest.parquet")) or unreachable_images(out):
        pseudo_label(
            checkpoint=labeller,
            images=target,
            out=out,
            split="train",
            source=run.directories.get("source"),
            rules=rules,
            inference=run.inference,
        )
    if left := unreachable_images(out):
        raise UnreachableError(
            f"stage {name}: {left} target images could not be reached and have no pseudo-label, see "
            f"{join(out, 'failed.json')}; go on by --resume when they can"
        )
    return out


def _translated(run: _Run, number: int, by: str) -> str:
    """The source in the target's look, made by an earlier stage's generator unless it is there."""
    out, source = join(run.out, "translated", run.folder(number)), run.directories["source"]
    assert source is not None  # see `check`
    if not exists(join(out, "manifest.parquet")):
        earlier = [s.name for s in run.recipe.stages].index(by)
        stage, directory = run.recipe.stages[earlier], run.stage_directory(earlier)
        translate(stage, directory, source=source, out=out, inference=run.inference)
    return out


def _trainer(run: _Run, number: int, stage: Stage, inputs: dict[str, str | None], progress: Any) -> TorchTrainer:
    """What trains a stage on its inputs, from its beginning or its last registered checkpoint."""
    recipe, cluster, name = run.recipe, run.cluster, run.folder(number)
    seed = key_to_seed(recipe.seed, number, *(run.digests[domain] for domain in stage.data.domains()))
    plan = make_plan(stage, inputs, seed)
    window, overlap = windows_of(stage, run.model_uri(stage.init_from))
    job = WorkerJob(
        stage=stage,
        classes=run.classes,
        recipe=recipe.name,
        seed=seed,
        init_uri=run.model_uri(stage.init_from),
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        bf16=recipe.bf16,
        cluster=cluster,
        depth_range=open_index(absolute(str(run.directories["target"] or run.directories["source"]))).depth_range,
        window=window,
        overlap=overlap,
        scoring=run.scoring,
        # of the same images in every stage
        pictures=None if stage.data.target is None else replace(plan, seed=key_to_seed(recipe.seed, PICTURES)),
        picture_folder=join(run.out, PICTURES, name),
    )
    return TorchTrainer(
        train_worker,
        train_loop_config={"job": ray.cloudpickle.dumps(job), "progress": progress},
        scaling_config=ray.train.ScalingConfig(
            num_workers=cluster.workers if cluster.min_workers is None else (cluster.fewest, cluster.workers),
            use_gpu=cluster.gpu,
            resources_per_worker={"CPU": cluster.cpus_per_worker} | ({"GPU": 1} if cluster.gpu else {}),
            elastic_resize_monitor_interval_s=min(60.0, cluster.wait),
        ),
        run_config=ray.train.RunConfig(
            storage_path=join(run.out, "stages"),
            name=name,
            checkpoint_config=ray.train.CheckpointConfig(num_to_keep=recipe.keep_checkpoints),
            failure_config=ray.train.FailureConfig(
                max_failures=cluster.max_failures,
                max_preemption_failures=cluster.max_failures,
                controller_failure_limit=max(3, cluster.max_failures),  # a node may be lost while workers start
            ),
        ),
        torch_config=TorchConfig(timeout_s=600),
        datasets={"plan": ray.data.range(1)},  # a name only: PlanDataConfig deals the real one
        dataset_config=PlanDataConfig(plan, run.stage_directory(number), wait=cluster.wait),
    )


@contextlib.contextmanager
def _interruptible() -> Iterator[None]:
    """Around `trainer.fit`: Ctrl-C ends it as it ends all else, and what killed workers left here is cleared away."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    except SystemExit:  # so Ray Train ends the process when it has told the workers to stop
        until = time.monotonic() + 5
        while not clear_scratch() and time.monotonic() < until:
            time.sleep(0.2)
        raise KeyboardInterrupt from None
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGINT, before)
        clear_scratch()


def windows_of(stage: Stage, init_uri: str | None) -> tuple[tuple[int, int] | None, float]:
    """The windows and their overlap that a stage's network is evaluated by: those of the one that it starts from.

    HRDA's authors slide windows of their crop.
    """
    if stage.model.detail_crop:
        return stage.data.crop, 0.5
    if init_uri is None:
        return None, 0.5
    card = read_card(init_uri)
    return card.window, card.overlap


def make_plan(stage: Stage, directories: dict[str, str | None], seed: int) -> Plan:
    """The plan of a stage's samples. `directories` names the dataset of each stream."""
    streams = {}
    for name, stream in stage.data.streams().items():
        directory = directories[DOMAIN_OF[name]]
        assert directory is not None
        streams[name] = StreamPlan(
            directory=absolute(directory),
            manifest=open_index(absolute(directory)).manifest,
            split=split_of(name),
            labelled=stream.labels != "none",
            soft=stream.labels == "soft",
            distribution=stream.labels == "distribution",
            prior=absolute(str(directories["source"])) if stream.prior else None,
            candidates=stream.labels == "candidates",
            sampling=stream.sampling,
            rare_temperature=stream.rare_temperature,
            rare_min_pixels=stream.rare_min_pixels,
            rare_classes=stream.rare_classes,
            rare_min_crop_pixels=stream.rare_min_crop_pixels,
            short_side=stream.short_side,
            crop=stream.crop,
            resample=stream.resample,
            max_class_share=stream.max_class_share,
        )
    data = stage.data
    return Plan(
        seed=seed,
        batch_size=data.batch_size,
        steps=stage.steps,
        crop=data.crop,
        short_side=data.short_side,
        scale=data.scale,
        resample=data.resample,
        streams=streams,
    )
