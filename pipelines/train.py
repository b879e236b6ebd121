"""`udaseg train`: run a recipe's stages one after the other, with pseudo-labelling between them, and resume in any."""

from __future__ import annotations

import dataclasses
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import ray
import ray.train
import torch
import tyro
from ray.train.torch import TorchConfig, TorchTrainer
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipelines.monitor import Monitor
from pipelines.pseudo_label import pseudo_label
from pipelines.session import check_nodes, ensure_ray, usable_cores
from udaseg.cluster import ProgressLog, WorkerJob, read_registered, train_worker
from udaseg.config import DOMAIN_OF, ConfigError, Inference, Recipe, Stage, full_names
from udaseg.config import from_json as recipe_from_json
from udaseg.config import to_json as recipe_to_json
from udaseg.data.schema import (
    Classes,
    DatasetError,
    absolute,
    children,
    digest,
    exists,
    join,
    read_bytes,
    read_classes,
    write_bytes,
)
from udaseg.data.stream import Plan, PlanDataConfig, StreamPlan, first_image, open_index
from udaseg.models.build import build_segmenter
from udaseg.recipes import RECIPES
from udaseg.rng import key_to_seed
from udaseg.scoring import Scoring
from udaseg.train import CARD_FILE, CheckpointError, TrainingError, copy_model, read_card


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes from the cluster."""

    workers: int = 1
    """Training workers; the global batch stays as it is and is split among them."""
    min_workers: int | None = None
    """Elastic: go on with as few as this while more cannot be had; None = always `workers`. Results then depend on how
    many there were, since batch norm normalises per worker, but not which samples make a step."""
    gpu: bool = torch.cuda.is_available()
    """One GPU a worker."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray sets aside for a worker; data tasks need some beside them."""
    threads: int = 0
    """Threads of torch in a worker on the CPU; 0 = the machine's cores shared among the workers."""
    max_failures: int = 3
    """How many losses of a worker a stage survives, and beside them how many of nodes that gave notice."""
    wait: float = 60.0
    """Seconds that missing workers are waited for; where a cluster grows on demand, longer than a machine boots."""

    @property
    def fewest(self) -> int:
        """The least workers that training goes on with."""
        return self.workers if self.min_workers is None else self.min_workers


def train(
    recipe: Recipe,
    *,
    source: str | None,
    target: str | None,
    out: str,
    resume: bool = False,
    cluster: Cluster | None = None,
    scoring: Scoring | None = None,
    on_score: Callable[[dict[str, Any]], None] | None = None,
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

    Raises:
        ConfigError, DatasetError, CheckpointError: before anything runs, where something does not fit together.
        TrainingError: training cannot go on.
    """
    cluster = cluster or Cluster()
    directories = {"source": source, "target": target}
    classes = check(recipe, directories, cluster)
    digests = {name: digest(directory) for name, directory in directories.items() if directory is not None}
    out = absolute(out)
    config = {"recipe": json.loads(recipe_to_json(recipe)), "manifests": digests}
    _check_out(config, out, resume)
    os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(cluster.wait))
    ensure_ray(num_cpus=usable_cores() + cluster.workers)
    _check_resources(cluster)
    if not exists(join(out, "config.json")):
        write_bytes(join(out, "config.json"), json.dumps(config, indent=1).encode())
    write_bytes(join(out, "classes.json"), classes.to_json().encode())
    check_nodes([first_image(directory) for directory in directories.values() if directory is not None], out)
    run = _Run(recipe, classes, directories, digests, out, cluster, Monitor(out, on_score), scoring)
    for number, stage in enumerate(recipe.stages):
        if not exists(join(run.stage_directory(number), "model", CARD_FILE)):
            run_stage(run, number, stage)
    copy_model(join(run.stage_directory(len(recipe.stages) - 1), "model"), join(out, "model"))
    return join(out, "model")


def stage_directory(out: str, recipe: Recipe, number: int) -> str:
    """Where a stage of the run in `out` keeps its checkpoints and its model."""
    return join(out, "stages", f"{number}-{recipe.stages[number].name}")


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

    def model_uri(self, name: str | None) -> str | None:
        """The model directory that a stage's name stands for; any other name is one already."""
        names = [s.name for s in self.recipe.stages]
        return join(self.stage_directory(names.index(name)), "model") if name in names else name


def run_stage(run: _Run, number: int, stage: Stage) -> None:
    """Label the target if the stage asks for it, and train to the stage's end on Ray Train.

    What was done before is not done again: pseudo-labels that are complete stay, and training goes on from the last
    registered checkpoint.
    """
    recipe, cluster, directory = run.recipe, run.cluster, run.stage_directory(number)
    init = run.model_uri(stage.init_from)
    name = f"{number}-{stage.name}"
    inputs = dict(run.directories)
    if stage.pseudo_label is not None:
        target, labelled = inputs["target"], join(run.out, "pseudo_labels", name)
        labeller = init if stage.pseudo_label.by is None else run.model_uri(stage.pseudo_label.by)
        assert target is not None and labeller is not None  # see `check`
        if not exists(join(labelled, "manifest.parquet")):
            inference = Inference(gpu=cluster.gpu, actors=cluster.workers, min_actors=cluster.fewest)
            pseudo_label(
                checkpoint=labeller,
                images=target,
                out=labelled,
                split="train",
                source=inputs.get("source"),
                rules=stage.pseudo_label,
                inference=inference,
            )
        inputs["target"] = labelled
    seed = key_to_seed(recipe.seed, number, *(run.digests[domain] for domain in stage.data.domains()))
    job = WorkerJob(
        stage=stage,
        classes=run.classes,
        recipe=recipe.name,
        seed=seed,
        init_uri=init,
        checkpoint_every=recipe.checkpoint_every,
        log_every=recipe.log_every,
        bf16=recipe.bf16,
        threads=cluster.threads or max(1, usable_cores() // cluster.workers),
        scoring=run.scoring,
    )
    # on this node: another one may be lost, and what it had not yet told with it
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    progress = ProgressLog.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]
    trainer = TorchTrainer(
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
                controller_failure_limit=3,
            ),
        ),
        torch_config=TorchConfig(timeout_s=600),
        datasets={"plan": ray.data.range(1)},  # a name only: PlanDataConfig deals the real one
        dataset_config=PlanDataConfig(make_plan(stage, inputs, seed), directory, wait=cluster.wait),
    )
    with run.monitor.stage(number, stage, progress):
        try:
            result = trainer.fit()
        except ray.train.TrainingFailedError as error:
            raise TrainingError(f"stage {name} failed: {_root_cause(error)}{_shortage(cluster)}") from error
    if reason := (result.return_value or {}).get("error"):
        raise TrainingError(f"stage {name}: {reason}")
    copy_model(read_registered(directory)[-1][1], join(directory, "model"))


def _lacking(cluster: Cluster) -> str:
    """What the fewest workers need and the cluster lacks; "" where it has enough."""
    has = ray.cluster_resources()
    need = {"CPU": cluster.fewest * cluster.cpus_per_worker + 1, "GPU": cluster.fewest if cluster.gpu else 0}
    short = [
        f"{amount:g} {name} (it has {has.get(name, 0):g})" for name, amount in need.items() if has.get(name, 0) < amount
    ]
    return " and ".join(short)


def _check_resources(cluster: Cluster) -> None:
    """On a Ray of this process's own, which cannot grow, what it lacks will never come."""
    if os.environ.get("RAY_ADDRESS", "local") == "local" and (lacking := _lacking(cluster)):
        raise ConfigError(
            f"{cluster.fewest} workers and their data tasks need {lacking}; use fewer --cluster.workers or a cluster"
        )


def _shortage(cluster: Cluster) -> str:
    lacking = _lacking(cluster)
    return f"; {cluster.fewest} workers and their data tasks need {lacking}" if lacking else ""


def make_plan(stage: Stage, directories: dict[str, str | None], seed: int) -> Plan:
    """The plan of a stage's samples. `directories` names the dataset of each stream."""
    streams = {}
    for name, stream in stage.data.streams().items():
        directory = directories[DOMAIN_OF[name]]
        assert directory is not None
        streams[name] = StreamPlan(
            directory=absolute(directory),
            labelled=stream.labels != "none",
            soft=stream.labels == "soft",
            rare_class=stream.sampling == "rare_class",
            rare_temperature=stream.rare_temperature,
            rare_min_pixels=stream.rare_min_pixels,
            rare_min_crop_pixels=stream.rare_min_crop_pixels,
            short_side=stream.short_side,
        )
    data = stage.data
    return Plan(
        seed=seed,
        batch_size=data.batch_size,
        steps=stage.steps,
        crop=data.crop,
        short_side=data.short_side,
        scale=data.scale,
        streams=streams,
    )


def check(recipe: Recipe, directories: dict[str, str | None], cluster: Cluster) -> Classes:
    """Find, before anything runs, what would stop the run later. Returns the classes.

    Raises ConfigError, DatasetError or CheckpointError.
    """
    recipe.check()
    if not 1 <= cluster.fewest <= cluster.workers:
        raise ConfigError(f"--cluster.min-workers is {cluster.fewest}; it must lie in 1 ... {cluster.workers}")
    wanted = {name for stage in recipe.stages for name in stage.data.domains()}
    for name, directory in directories.items():
        if directory is None and name in wanted:
            raise ConfigError(f"recipe {recipe.name!r} reads a {name}: give --{name} DIR")
        if directory is not None and name not in wanted:
            raise ConfigError(f"recipe {recipe.name!r} reads no {name}: leave --{name} out")
    lists = {name: read_classes(directory) for name, directory in directories.items() if directory is not None}
    classes = next(iter(lists.values()))
    for name, other in lists.items():
        if other.names != classes.names:
            raise DatasetError(
                f"{directories[name]}: classes {', '.join(other.names)} are not the source's "
                f"{', '.join(classes.names)}; "
                "prepare both with the same names, and map raw ids with raw_to_train"
            )
    for i, stage in enumerate(recipe.stages):
        for name, stream in stage.data.streams().items():
            directory = directories[DOMAIN_OF[name]]
            assert directory is not None
            index = open_index(absolute(directory))
            if stream.labels == "true" and index.lacks("train", "label_uri"):
                raise DatasetError(f"{directory}: stage {stage.name!r} needs labels, and train images have none")
            made_before = stream.labels in ("pseudo", "soft") and stage.pseudo_label is None
            if made_before and index.lacks("train", "confidence_uri"):
                raise DatasetError(
                    f"{directory}: stage {stage.name!r} reads pseudo-labels; "
                    "give a dataset that `udaseg pseudo-label` wrote"
                )
        for workers in range(cluster.fewest, cluster.workers + 1):
            if stage.data.batch_size % (workers * stage.data.group_size):
                raise ConfigError(
                    f"stages.{i}.data.batch_size {stage.data.batch_size} cannot be split among "
                    f"{workers} workers in whole groups of {stage.data.group_size}; "
                    "use --cluster.workers that divide it, and --cluster.min-workers with no others between"
                )
        earlier = [s.name for s in recipe.stages[:i]]
        by = None if stage.pseudo_label is None else stage.pseudo_label.by
        for uri in {stage.init_from, by} - {None, *earlier}:
            assert uri is not None
            card = read_card(uri)
            if card.classes.names != classes.names:
                raise CheckpointError(
                    f"{uri}: its classes are {', '.join(card.classes.names)}, the dataset's {', '.join(classes.names)}"
                )
        try:
            model = dataclasses.asdict(dataclasses.replace(stage.model, pretrained=False))
            stage.method.build(build_segmenter(len(classes), **model), seed=0)
        except ValueError as error:
            raise ConfigError(f"stages.{i}: {error}") from error
    return classes


def _check_out(config: dict[str, Any], out: str, resume: bool) -> None:
    """Make sure that a run directory is new, or that the run to be resumed has this configuration and data."""
    uri = join(out, "config.json")
    if not exists(uri):
        if not resume and children(out):
            raise ConfigError(f"{out}: exists and is no run directory; choose another --out")
        return
    if not resume:
        raise ConfigError(f"{out}: holds a run already; go on with it by --resume, or choose another --out")
    theirs = json.loads(read_bytes(uri))
    if theirs["manifests"] != config["manifests"]:
        raise ConfigError(
            f"{out}: the manifests have changed since the run began, so it cannot be resumed; start a new run"
        )
    if theirs["recipe"] != config["recipe"]:
        raise ConfigError(f"{out}: the configuration differs from the run's, see {uri}; start a new run")


def _root_cause(error: BaseException) -> str:
    """The last line of the innermost worker error, for people; the traceback stays in Ray's logs."""
    failures = getattr(error, "worker_failures", None) or {}
    first = next(iter(failures.values()), None) or error.__cause__ or error
    lines = [line for line in str(first).strip().splitlines() if line.strip()]
    return lines[-1] if lines else repr(first)


# --- command line ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Adapt a segmentation network: udaseg train RECIPE --source DIR --target DIR --out DIR [--section.field value].

    A field such as --method.temperature stands for that field in every stage; --stages.2.method.temperature for one.
    """

    recipe: Annotated[Recipe, tyro.conf.arg(name="")]
    out: str
    """Run directory, a path or URI that every node can write."""
    source: str | None = None
    """Dataset directory of labelled source images."""
    target: str | None = None
    """Dataset directory of target images."""
    resume: bool = False
    """Go on with the run in --out."""
    cluster: Cluster = dataclasses.field(default_factory=Cluster)


def parse(argv: Sequence[str]) -> Arguments:
    """Arguments of the command line. Raises ConfigError for an unknown recipe or field."""
    if argv and argv[0] == "--config":
        if len(argv) < 2 or not exists(argv[1]):
            raise ConfigError(f"--config: no file {argv[1] if len(argv) > 1 else ''}; give a run's config.json")
        raw = json.loads(read_bytes(argv[1]))
        recipe, rest = recipe_from_json(json.dumps(raw.get("recipe", raw)), RECIPES, argv[1]), argv[2:]
    elif argv and argv[0] in RECIPES:
        recipe, rest = RECIPES[argv[0]](), argv[1:]
    elif not argv or argv[0] in ("-h", "--help"):
        print(Arguments.__doc__)
        print("Recipes (udaseg train RECIPE --help lists the fields of one; --config FILE runs a saved configuration):")
        for name, function in RECIPES.items():
            print(f"  {name:20} {(function.__doc__ or '').strip().splitlines()[0]}")
        raise SystemExit(0)
    else:
        raise ConfigError(f"no recipe {argv[0]!r}; there are {', '.join(RECIPES)}")
    default = Arguments(recipe=recipe, out=tyro.MISSING)
    return tyro.cli(
        Arguments,
        args=spell_out(recipe, rest, {"out", "source", "target", "resume"}),
        default=default,
        prog="udaseg train",
        config=(tyro.conf.AvoidSubcommands,),
    )


def spell_out(recipe: Recipe, argv: Sequence[str], own: set[str]) -> list[str]:
    """Repeat `--section.field value` for each stage that it stands for; `own` names the command's other options."""
    out: list[str] = []
    groups: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    flags = {"--help", "-h"} | {f"--{no}{name}" for name in own for no in ("", "no-")}
    for flag, *values in groups:
        flag, equals, value = flag.partition("=")
        values = [value, *values] if equals else values
        if not flag.startswith("--") or flag in flags or flag.startswith("--cluster."):
            out += [flag, *values]
            continue
        name = flag[2:].replace("-", "_")
        negated = name.rpartition(".")[2].startswith("no_")
        names = full_names(recipe, name.replace("no_", "", 1) if negated else name)
        for path in names:
            head, _, leaf = path.rpartition(".")
            spelled = f"{head}.{'no-' if negated else ''}{leaf}" if head else f"{'no-' if negated else ''}{leaf}"
            out += [f"--{spelled.replace('_', '-')}", *values]
    return out


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    try:
        arguments = parse(sys.argv[1:] if argv is None else argv)
        model = train(
            arguments.recipe,
            source=arguments.source,
            target=arguments.target,
            out=arguments.out,
            resume=arguments.resume,
            cluster=arguments.cluster,
        )
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except TrainingError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    print(f"model: {model}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
