"""What is found out before a run, since it would stop the run later."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from typing import Any

import ray
import ray.train

from udaseg.checkpoints.directory import CARD_FILE, MODEL_FILE, STATE_FILE, check_checkpoint
from udaseg.checkpoints.tensor_files import read_header, read_state
from udaseg.config import Recipe, Stage
from udaseg.data.classes import Classes, read_classes, require_first_classes, require_same_classes
from udaseg.data.index import open_index
from udaseg.data.storage import absolute, exists, join, read_bytes
from udaseg.errors import ConfigError, DatasetError
from udaseg.job_config import Cluster
from udaseg.jobs.resources import ray_address, require_gpu
from udaseg.jobs.run_directory import SNAPSHOT, read_registered
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import Segmenter
from udaseg.training.kernels import blocks_of
from udaseg.types import DOMAIN_OF, split_of

_COLUMN = {"pseudo": "confidence_uri", "soft": "confidence_uri", "distribution": "distribution_uri"}
"""Of labels that `udaseg pseudo-label` writes, the column of the manifest."""


def lacking_resources(cluster: Cluster) -> str:
    """What the fewest workers need and the cluster lacks; "" where it has enough."""
    has = ray.cluster_resources()
    need = {"CPU": cluster.fewest * cluster.cpus_per_worker + 1, "GPU": cluster.fewest if cluster.gpu else 0}
    short = [
        f"{amount:g} {name} (it has {has.get(name, 0):g})" for name, amount in need.items() if has.get(name, 0) < amount
    ]
    return " and ".join(short)


def check_resources(cluster: Cluster) -> None:
    """On a Ray of this process's own, which cannot grow, what it lacks will never come."""
    if ray_address() == "local" and (lacking := lacking_resources(cluster)):
        raise ConfigError(
            f"{cluster.fewest} workers and their data tasks need {lacking}; "
            "use fewer --cluster.workers or --cluster.cpus-per-worker, or a cluster"
        )


def shortage(cluster: Cluster) -> str:
    lacking = lacking_resources(cluster)
    return f"; {cluster.fewest} workers and their data tasks need {lacking}" if lacking else ""


def check(recipe: Recipe, directories: dict[str, str | None], cluster: Cluster) -> Classes:
    """Find, before anything runs, what would stop the run later. Returns the classes.

    Raises ConfigError, DatasetError or CheckpointError.
    """
    recipe.check()
    cluster.check()
    if cluster.gpu:
        require_gpu("--cluster.gpu")
    wanted = recipe.domains()
    for name, directory in directories.items():
        if directory is None and name in wanted:
            raise ConfigError(f"recipe {recipe.name!r} reads a {name}: give --{name} DIR")
        if directory is not None and name not in wanted:
            raise ConfigError(f"recipe {recipe.name!r} reads no {name}: leave --{name} out")
    lists = {name: read_classes(directory) for name, directory in directories.items() if directory is not None}
    classes = next(iter(lists.values()))
    if classes.unions or classes.parts:  # of this dataset's labels, which no network has
        classes = classes.of_train_ids()
    for name, other in lists.items():
        require_same_classes(classes, other, str(directories[name]), of="the source")
    for i, stage in enumerate(recipe.stages):
        for name, stream in stage.data.streams().items():
            directory = directories[DOMAIN_OF[name]]
            assert directory is not None
            index = open_index(absolute(directory))
            split = split_of(name)
            if stream.labels in ("true", "candidates") and index.lacks(split, "label_uri"):
                raise DatasetError(f"{directory}: stage {stage.name!r} needs labels, and {split} images have none")
            if stream.prior:
                open_index(absolute(str(directories["source"]))).spatial_prior()
            made_before = stream.labels in _COLUMN and stage.pseudo_label is None
            if made_before and index.lacks(split, _COLUMN[stream.labels]):
                raise DatasetError(
                    f"{directory}: stage {stage.name!r} reads pseudo-labels; "
                    "give a dataset that `udaseg pseudo-label` wrote"
                    f"{', with --rules.distribution' if stream.labels == 'distribution' else ''}"
                )
        for workers in range(cluster.fewest, cluster.workers + 1):
            if stage.data.batch_size % (workers * stage.data.group_size):
                raise ConfigError(
                    f"stages.{i}.data.batch_size {stage.data.batch_size} cannot be split among "
                    f"{workers} workers in whole groups of {stage.data.group_size}; "
                    "use --cluster.workers that divide it, and --cluster.min-workers with no others between"
                )
        for name, stream in stage.data.streams().items():
            if foreign := [k for k in stream.rare_classes if not 0 <= k < len(classes)]:
                raise ConfigError(
                    f"stages.{i}.data.{name}.rare_classes has {foreign[0]}, but the dataset has {len(classes)} classes"
                )
        earlier = [s.name for s in recipe.stages[:i]]
        by = None if stage.pseudo_label is None else stage.pseudo_label.by
        for uri in {stage.init_from, by} - {None, *earlier}:
            assert uri is not None
            theirs = check_checkpoint(uri).classes
            old = stage.method.old_classes
            if old is not None and uri == stage.init_from:
                require_first_classes(classes, theirs, old, uri)
            else:
                require_same_classes(classes, theirs, uri, of="the dataset")
        try:
            model = dataclasses.asdict(dataclasses.replace(stage.model, pretrained=False))
            student = build_segmenter(len(classes), **model)
            _check_crop(stage, student)
            if cluster.grad_checkpointing:
                blocks_of(student)
            if stage.init_from is not None and stage.init_from not in earlier:
                student.matched(read_header(join(stage.init_from, MODEL_FILE)), background=stage.method.background)
            stage.method.build(student, seed=0)
        except ValueError as error:
            raise ConfigError(f"stages.{i}: {error}") from error
    return classes


def classes_by_id(recipe: Recipe, classes: Classes) -> list[str]:
    """A line for each setting of a method that names classes by train ids, which are others in other datasets."""
    lines = []
    for i, stage in enumerate(recipe.stages):
        for field in ("things", "long_tail", "hard", "companions"):
            unused = field == "things" and getattr(stage.method, "feature_weight", 1) == 0  # may be beyond the classes
            ids = () if unused else getattr(stage.method, field, ())
            named = [
                " with ".join(repr(classes.names[k]) for k in ((of,) if isinstance(of, int) else of)) for of in ids
            ]
            if named:
                lines.append(
                    f"stage {stage.name!r}: {field} are {', '.join(named)}; others by --stages.{i}.method.{field}"
                )
    return lines


def _check_crop(stage: Stage, network: Segmenter) -> None:
    """Raise ValueError where crops are larger than the one size that the backbone takes.

    Warn where they are no whole number of its last cells, see `udaseg.models.inference.resized`.
    """
    limit, cell = network.largest, network.feature_stride
    own = {f"data.{name}.crop": stream.crop for name, stream in stage.data.streams().items() if stream.crop}
    for name, crop in {"data.crop": stage.data.crop, **own}.items():
        if not network.align_corners and min(crop) >= 4 * cell and any(side % cell for side in crop):
            print(
                f"warning: stage {stage.name!r}: {name} {crop} is no multiple of {cell}, the pixels of a last cell of "
                f"{stage.model.backbone!r}, so that logits lie beside the pixels; "
                f"better {tuple(side // cell * cell for side in crop)}",
                file=sys.stderr,
            )
        if limit is not None and any(side > most for side, most in zip(crop, limit, strict=True)):
            raise ValueError(
                f"{name} {crop} is larger than the {limit} that {stage.model.backbone!r} takes: "
                "set model.input_size to that of the crops"
            )


def check_resumable(directories: Sequence[str]) -> None:
    """Raise CheckpointError where a stage's model, or the checkpoint that it would go on from, cannot be used."""
    for directory in directories:
        if exists(join(directory, "model", CARD_FILE)):
            check_checkpoint(join(directory, "model"))
        elif exists(join(directory, SNAPSHOT)):
            for _, checkpoint in read_registered(directory)[-1:]:
                read_state(join(checkpoint, STATE_FILE))


def check_out(config: dict[str, Any], out: str, resume: bool) -> None:
    """Make sure that no run has begun in a directory, or that the one to be resumed has this configuration and data."""
    uri = join(out, "config.json")
    if not exists(uri):
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
