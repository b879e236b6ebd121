"""`udaseg evaluate`: per-class IoU, mIoU and pixel accuracy of checkpoints on a labelled dataset."""

from __future__ import annotations

import contextlib
import io
import sys
from collections.abc import Sequence

import numpy as np
import ray
import torch

from udaseg.checkpoints.directory import check_checkpoint, load_model, read_card
from udaseg.data.classes import read_classes, require_same_classes
from udaseg.data.depth import other_range
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest
from udaseg.data.storage import absolute, exists, join, to_uri, to_uris, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError, DatasetError
from udaseg.evaluation.metrics import confusion
from udaseg.job_config import Inference
from udaseg.jobs.output import own_directory
from udaseg.jobs.ray_session import ensure_ray, lazily, track
from udaseg.jobs.resources import actor_pool, require_gpu
from udaseg.models.inference import answering_device, by_size, predict, to_pixels
from udaseg.reports.scores import confusion_picture, iou_table, part_table, summary
from udaseg.reports.tables import show
from udaseg.types import Location

METRICS, PICTURE = "metrics.json", "confusion.png"


class Evaluator:
    """Ray Data actor: rows of a dataset -> a confusion matrix per checkpoint and dataset that was joined."""

    def __init__(self, checkpoints: Sequence[str], directory: str, inference: Inference, threads: int) -> None:
        torch.set_num_threads(threads)
        self.device = answering_device(inference.gpu)
        self.networks = [load_model(uri, inference.network) for uri in checkpoints]
        for network, _ in self.networks:
            network.to(self.device)
        self.index = open_index(directory)
        self.parts = self.index.datasets
        self.inference = inference

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        classes = len(self.index.classes)
        counts = np.zeros((1, len(self.networks), len(self.parts), classes, classes), np.int64)
        images = ((row, self.index.image(row)) for row in block["id"].tolist())
        for rows, pixels in by_size(images, self.inference.batch_size):
            labels = [self.index.train_ids(row) for row in rows]
            parts = [self.parts.index(self.index.dataset_of(row)) for row in rows]
            batch = to_pixels(pixels, self.device)
            for n, (network, card) in enumerate(self.networks):
                probability = predict(network, batch, **card.views(**self.inference.views()))
                found = probability.max(1).indices.cpu().numpy()
                for part, label, predicted in zip(parts, labels, found, strict=True):
                    counts[0, n, part] += confusion(label, predicted, classes)
        return {"counts": counts, "images": np.array([len(block["id"])])}


def evaluate(
    checkpoints: Location | Sequence[Location],
    dataset: Location,
    *,
    split: str = "val",
    inference: Inference | None = None,
) -> list[np.ndarray]:
    """The (K, K) confusion matrix of each checkpoint on a split of a labelled dataset, in one pass over its images.

    Raises ConfigError, CheckpointError or DatasetError, before any work, where they do not fit together.
    """
    parts = evaluate_parts(checkpoints, dataset, split=split, inference=inference)
    return list(np.sum([*parts.values()], axis=0))


def evaluate_parts(
    checkpoints: Location | Sequence[Location],
    dataset: Location,
    *,
    split: str = "val",
    inference: Inference | None = None,
) -> dict[str, np.ndarray]:
    """The same for each dataset that was joined, or the one that there is: by its name (checkpoints, K, K)."""
    inference = inference or Inference()
    inference.check()
    checkpoints, dataset = to_uris(checkpoints), to_uri(dataset)
    if inference.gpu:
        require_gpu("--inference.gpu")
    rows = read_manifest(dataset, split)
    if lacking := rows["label_uri"].null_count:
        raise DatasetError(
            f"{dataset}: evaluation needs labels, and {lacking} of {rows.num_rows} images of split {split!r} have none"
        )
    classes = read_classes(dataset)
    for uri in checkpoints:
        require_same_classes(classes, check_checkpoint(uri, inference.network).classes, uri, of=dataset)
    directory = absolute(dataset)
    index = open_index(directory)
    start, stop = index.rows(split)
    for uri in checkpoints:
        for warning in other_range(read_card(uri).depth_range, index.depth_range, uri, dataset):
            print(f"warning: {warning}", file=sys.stderr)
    parts, here = index.datasets, set(rows["dataset"].to_pylist())
    ensure_ray()
    options, threads = actor_pool(inference)
    local = [*map(absolute, checkpoints)]
    blocks = (
        ray.data.range(stop - start, override_num_blocks=1)
        .map_batches(lambda b: {"id": b["id"] + start}, batch_format="numpy")
        .repartition(target_num_rows_per_block=16, strict=True)
        .map_batches(
            lazily(Evaluator),
            fn_constructor_args=(local, directory, inference, threads),
            batch_size=None,
            batch_format="numpy",
            **options,
        )
        .iter_batches(batch_size=1, batch_format="numpy")
    )
    total = np.zeros((len(checkpoints), len(parts), len(classes), len(classes)), np.int64)
    for block in track(blocks, stop - start, "evaluate", size=lambda b: int(b["images"].sum())):
        total += block["counts"].sum(0)
    return {name: counts for name, counts in zip(parts, total.swapaxes(0, 1), strict=True) if name in here}


def evaluate_to(
    out: str | None,
    checkpoints: Sequence[str],
    dataset: str,
    *,
    split: str,
    inference: Inference,
    print_json: bool = False,
) -> None:
    """Evaluate checkpoints, print their table or JSON, and write it and pictures to the folder `out` where it is given.

    Of one checkpoint the JSON is an object, of several an array of such with their "checkpoint". Of datasets that were
    joined it has each one's own as well, by name.

    Raises, before any work, as `evaluate` does, and ConfigError where the folder holds anything already.
    """
    pictures = [PICTURE] if len(checkpoints) == 1 else [f"confusion_{n}.png" for n in range(1, len(checkpoints) + 1)]
    with contextlib.nullcontext() if out is None else own_directory(out, "evaluate"):
        if out is not None and any(exists(join(out, name)) for name in (METRICS, *pictures)):
            raise ConfigError(f"{out}: holds results already; choose another --out")
        parts = evaluate_parts(checkpoints, dataset, split=split, inference=inference)
        counts = list(np.sum([*parts.values()], axis=0))
        names = read_classes(dataset).names
        old_classes = [read_card(uri).old_classes for uri in checkpoints]
        rows = [summary(c, names, old) for c, old in zip(counts, old_classes, strict=True)]
        for n, row in enumerate(rows if len(parts) > 1 else ()):
            row["datasets"] = {name: summary(of[n], names, old_classes[n]) for name, of in parts.items()}
        named = [{"checkpoint": uri, **row} for uri, row in zip(checkpoints, rows, strict=True)]
        metrics = rows[0] if len(rows) == 1 else named
        if out is not None:
            write_bytes(join(out, METRICS), dump_json(metrics, indent=1).encode())
            for name, c in zip(pictures, counts, strict=True):
                picture = io.BytesIO()
                confusion_picture(c, names).save(picture, "PNG")
                write_bytes(join(out, name), picture.getvalue())
    if print_json:
        print(dump_json(metrics))
    else:
        same = old_classes[0] if len(set(old_classes)) == 1 else None
        titles = _titles(checkpoints)
        show(iou_table(dict(zip(titles, counts, strict=True)), names, same))
        if len(parts) > 1:
            show(part_table(titles, parts))


def _titles(uris: Sequence[str]) -> list[str]:
    """What tells addresses apart: of runs/a/model and runs/b/model a and b. Of a single one nothing."""
    parts = [uri.rstrip("/").split("/") for uri in uris]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[0] for p in parts}) == 1:
        parts = [p[1:] for p in parts]
    while len(parts) > 1 and min(map(len, parts)) > 1 and len({p[-1] for p in parts}) == 1:
        parts = [p[:-1] for p in parts]
    return ["/".join(p) for p in parts] if len(parts) > 1 else [""]
