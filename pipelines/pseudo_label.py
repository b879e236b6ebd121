"""`udaseg pseudo-label`: label images with a checkpoint, and keep what is certain.

Two passes. Actors predict each image and write its classes and confidence; the confidence histograms of all images give
each class its threshold; then tasks apply the thresholds to the files, without a second inference. (The rule
"any_class" looks at every class's probability and so predicts again.)

    predictions/<image_id>.png  the most probable class of every pixel
    confidence/<image_id>.png   16 bits: -ln(1 - p) * 4096
    entropy/<image_id>.png      the same of 1 - normalised entropy, where the rules look at it
    labels/<image_id>.png       the pseudo-label, 255 where it is not certain
    manifest.parquet ...        a dataset directory that `udaseg train` reads
    report.html                 how good the labels are; report.json has its numbers
    failed.json                 images that could not be read, and why
    job/                        the books: the listing, and what is done

Work is done in blocks of images, each entered in the books when all its files are written (`udaseg.data.ledger`). A job
that was killed, at whatever moment, goes on when the same command is run again, and ends with the same bytes.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import ray
import tyro
from rich.console import Console

from pipelines.label_blocks import Tally, Work, apply_thresholds, count_failed, label_chunk, scratch_folder, tally_chunk
from pipelines.label_networks import Labeller, PrototypeSums
from pipelines.session import actor_pool, check_nodes, ensure_ray, track
from udaseg.config import ConfigError, Inference, PseudoLabel
from udaseg.data.export import Layout
from udaseg.data.ledger import Ledger, open_ledger, sole_driver
from udaseg.data.listing import list_images
from udaseg.data.schema import (
    Classes,
    DatasetError,
    digest,
    exists,
    join,
    read_bytes,
    read_classes,
    read_manifest,
    write_bytes,
    write_dataset,
)
from udaseg.label_report import Quality, failure_table, label_page, sample
from udaseg.report import Shares, share_table
from udaseg.thresholds import class_balanced_thresholds
from udaseg.train import CARD_FILE, MODEL_FILE, STATE_FILE, CheckpointError, read_card

CHUNK = 128
"""Blocks whose entries one task adds up."""
PROTOTYPE_IMAGES = 500
"""Images of the source, at even distances, that prototypes are the mean of."""


def pseudo_label(
    *,
    checkpoint: str,
    images: str,
    out: str,
    split: str | None = None,
    agree_with: Sequence[str] = (),
    source: str | None = None,
    truth: bool = False,
    layouts: Sequence[Layout] = (),
    max_failed: float | None = None,
    block_size: int = 32,
    rules: PseudoLabel | None = None,
    inference: Inference | None = None,
) -> Shares:
    """Label images and write a dataset directory of them; go on where a job that was killed left off.

    Returns what was kept of each class.

    Args:
        checkpoint: model directory.
        images: dataset directory, or a folder or URI of images.
        out: dataset directory to write.
        split: of the dataset directory; None = all its images.
        agree_with: other model directories; what they do not all find alike is not kept.
        source: labelled dataset directory; its class balance is reported, and prototypes are made from it.
        truth: compare with the true labels that the images have. They are read for the report alone.
        layouts: folders for other tools to write beside.
        max_failed: stop when more images than this cannot be read; below 1 a share of all, None = never.
        block_size: images that are committed together.
        rules: what is kept.
        inference: how images are predicted.

    Raises:
        ConfigError: a setting lies outside its range.
        DatasetError: images that cannot be listed, too many that cannot be read, or `out` holds something else or is
            worked on by another process.
        CheckpointError: a checkpoint cannot be used.
    """
    rules, inference = rules or PseudoLabel(), inference or Inference()
    rules.check()
    inference.check()
    if block_size < 1 or (max_failed is not None and max_failed < 0):
        raise ConfigError("block_size must be at least 1, and max_failed at least 0")
    checkpoints = tuple(_absolute(uri) for uri in (checkpoint, *agree_with))
    out, images = _absolute(out), _absolute(images)
    classes = _common_classes(checkpoints)
    if rules.measure == "prototype" and source is None:
        raise ConfigError("measure prototype needs the labelled source that prototypes are made from: give --source")
    if exists(join(out, "manifest.parquet")) and not exists(join(out, "job", "job.json")):
        raise DatasetError(f"{out}: holds a dataset already; choose another --out")
    if (out + "/").startswith(images.rstrip("/") + "/") and not exists(join(images, "manifest.parquet")):
        raise DatasetError(f"{out}: lies in the folder of images; choose an --out outside of it")
    job = {
        "checkpoint": [_fingerprint(uri, inference) for uri in checkpoints],
        "rules": {k: v for k, v in dataclasses.asdict(rules).items() if k != "by"},
        "inference": inference.views() | {"network": inference.network},
        "source": None if source is None else digest(source),
        "truth": truth,
        "layouts": list(layouts),
    }
    ledger = open_ledger(join(out, "job"), lambda: list_images(images, split), block_size=block_size, job=job)
    if not exists(join(out, "manifest.parquet")):
        work = Work(
            checkpoints=checkpoints,
            out=out,
            ledger=ledger,
            classes=classes,
            rules=rules,
            inference=inference,
            layouts=tuple(layouts),
            truth=_truth(images, classes) if truth else None,
        )
        with sole_driver(ledger.directory, scratch=work.scratch):
            _clear_scratch(out)  # before the next sign of life, which is written there
            _do(work, source, max_failed)
    _clear_scratch(out)
    return _print(classes, json.loads(read_bytes(join(out, "report.json"))))


def _do(work: Work, source: str | None, max_failed: float | None) -> None:
    """Both passes, as far as they are not done, and what is made of them."""
    ledger, rules, inference, out = work.ledger, work.rules, work.inference, work.out
    ensure_ray()
    check_nodes([row["image_uri"] for row in ledger.rows(0) if exists(row["image_uri"])][:1], out)
    if rules.measure == "prototype":
        assert source is not None
        work = dataclasses.replace(work, prototypes=_prototypes(work, source))
    options, threads = actor_pool(inference.actors, inference.min_actors, gpu=inference.gpu)
    limit = _FailureLimit(max_failed, ledger)
    _run(ledger, "predict", limit, fn=Labeller, fn_constructor_args=(work, threads), **options)
    tally = _tally(ledger, len(work.classes))
    thresholds = _thresholds(rules, tally.histogram)
    if rules.rule == "any_class":
        _run(ledger, "label", limit, fn=Labeller, fn_constructor_args=(work, threads, thresholds), **options)
    else:
        _run(ledger, "label", limit, fn=apply_thresholds(work, thresholds), num_cpus=1)
    table, quality = _label_table(ledger, tally, thresholds, source)
    _write_reports(work, tally, quality)
    write_dataset(out, table, work.classes)


def _absolute(uri: str) -> str:
    return uri if "://" in uri else os.path.abspath(uri)


def _common_classes(checkpoints: Sequence[str]) -> Classes:
    """The classes of all checkpoints, for labels that hold train ids. Raises CheckpointError where they differ."""
    first, *others = (read_card(uri).classes for uri in checkpoints)
    for uri, other in zip(checkpoints[1:], others, strict=True):
        if other.names != first.names:
            raise CheckpointError(
                f"{uri}: its classes are {', '.join(other.names)}; {checkpoints[0]} has {', '.join(first.names)}"
            )
    return dataclasses.replace(first, raw_to_train={})


def _fingerprint(checkpoint: str, inference: Inference) -> str:
    content = hashlib.sha256()
    for name in (CARD_FILE, MODEL_FILE if inference.network == "predictor" else STATE_FILE):
        if not exists(join(checkpoint, name)):
            raise CheckpointError(f"{checkpoint}: no {name}; give one of a run's checkpoints for --inference.network")
        content.update(read_bytes(join(checkpoint, name)))
    return content.hexdigest()[:16]


def _truth(images: str, classes: Classes) -> Classes:
    if not exists(join(images, "classes.json")):
        raise DatasetError(f"{images}: --truth needs a dataset directory with labels")
    true_classes = read_classes(images)
    if true_classes.names != classes.names:
        raise DatasetError(f"{images}: --truth: its classes are not the checkpoint's {', '.join(classes.names)}")
    return true_classes


# --- phases ---------------------------------------------------------------------------------------------------------


class _FailureLimit:
    """Counts images that cannot be read, and stops the job where there are too many."""

    def __init__(self, most: float | None, ledger: Ledger) -> None:
        self.most = most if most is None or most >= 1 else most * ledger.images
        self.failed = 0
        if most is not None:
            before = sorted(ledger.committed("predict"))
            self.add(sum(_each_chunk(count_failed, ledger, before)))

    def add(self, failed: int) -> None:
        self.failed += failed
        if self.most is not None and self.failed > self.most:
            raise DatasetError(
                f"{self.failed} images could not be read, more than --max-failed allows; "
                "what is done stays: see why in job/predict, or run the same again with another --max-failed"
            )


def _run(ledger: Ledger, phase: str, limit: _FailureLimit, **how: Any) -> None:
    """Do a phase's blocks that are not done."""
    todo = sorted(set(range(ledger.blocks)) - ledger.committed(phase))
    if not todo:
        return
    dataset = (
        ray.data.from_arrow(pa.table({"block": todo}))
        .repartition(target_num_rows_per_block=1, strict=True)
        .map_batches(batch_size=None, batch_format="numpy", **how)
    )
    dataset.context.execution_no_progress_timeout_s = -1  # a block of large images may take long
    done = dataset.iter_batches(batch_size=None, batch_format="numpy")
    left = min(ledger.images, len(todo) * ledger.block_size)
    try:
        for batch in track(done, left, phase, size=lambda b: int(b["images"].sum() + b["failed"].sum())):
            if phase == "predict":
                limit.add(int(batch["failed"].sum()))
    except ray.exceptions.RayTaskError as error:  # its text is a traceback that ends with ours
        if reason := re.search(r"DatasetError: (.*)", str(error)):
            raise DatasetError(reason[1]) from None
        raise


def _each_chunk(task: Callable[..., Any], ledger: Ledger, blocks: Sequence[int], *more: Any) -> Iterator[Any]:
    """What a Ray task makes of each chunk of blocks, in their order."""
    anywhere = "DEFAULT"  # unsaid, a trial of a sweep would have its tasks where it has no CPU but its own
    remote = ray.remote(num_cpus=1, scheduling_strategy=anywhere)(task)
    ends = [*range(0, len(blocks), CHUNK), len(blocks)]
    for reference in [remote.remote(ledger, blocks[a:b], *more) for a, b in pairwise(ends)]:
        yield ray.get(reference)


def _tally(ledger: Ledger, classes: int) -> Tally:
    total = Tally()
    for part in _each_chunk(tally_chunk, ledger, range(ledger.blocks), classes):
        total.add(part)
    if not total.most:
        raise DatasetError(f"none of the images could be read: {total.failed[0][2]}")
    return total


def _thresholds(rules: PseudoLabel, histogram: np.ndarray) -> np.ndarray:
    """(K,) thresholds of the classes."""
    if rules.rule == "fixed":
        return np.full(len(histogram), rules.threshold, np.float32)
    if rules.rule == "soft":
        return np.zeros(len(histogram), np.float32)
    return class_balanced_thresholds(histogram, rules.share, cap=rules.cap, rare_class=rules.rare_class)


def _prototypes(work: Work, source: str) -> tuple[tuple[np.ndarray, np.ndarray], ...]:
    """Per checkpoint the mean feature of each class of the source, and which classes have one."""
    source = _absolute(source)
    classes = read_classes(source)
    if classes.names != work.classes.names:
        raise DatasetError(f"{source}: its classes are not the checkpoint's {', '.join(work.classes.names)}")

    def labelled() -> Iterator[dict[str, Any]]:
        rows = [row for row in list_images(source, "train") if row["label_uri"] is not None]
        for i in (
            sorted({*np.linspace(0, len(rows) - 1, PROTOTYPE_IMAGES).round().astype(int).tolist()}) if rows else ()
        ):
            yield rows[i]

    books = open_ledger(join(work.out, "job", "source"), labelled, block_size=work.ledger.block_size, job={})
    here = dataclasses.replace(work, ledger=books, truth=classes)
    i = work.inference
    options, threads = actor_pool(i.actors, i.min_actors, gpu=i.gpu)
    _run(
        books,
        "prototypes",
        _FailureLimit(None, books),
        fn=PrototypeSums,
        fn_constructor_args=(here, threads),
        **options,
    )
    total, count = 0.0, 0.0
    for block in range(books.blocks):  # in order: sums of floats
        entry = books.entry("prototypes", block)
        total, count = total + entry["sum"], count + entry["count"]
    counts = np.asarray(count).reshape(len(work.checkpoints), -1)
    sums = np.split(np.asarray(total), len(work.checkpoints))
    return tuple(
        ((s.reshape(len(c), -1) / np.maximum(c, 1)[:, None]).astype(np.float32), c > 0)
        for s, c in zip(sums, counts, strict=True)
    )


# --- results --------------------------------------------------------------------------------------------------------


def _label_table(ledger: Ledger, tally: Tally, thresholds: np.ndarray, source: str | None) -> tuple[pa.Table, Quality]:
    """The manifest's rows, and how good the labels are."""
    parts = list(_each_chunk(label_chunk, ledger, range(ledger.blocks)))
    table = pa.concat_tables([rows for rows, *_ in parts])
    classes = len(tally.histogram)
    balance = None
    if source is not None:
        rows = read_manifest(source)
        balance = np.array(rows["class_pixels"].combine_chunks().flatten()).reshape(-1, classes).sum(0)
    quality = Quality(
        shares=Shares(sum(part[1] for part in parts), tally.histogram.sum(1), thresholds),
        histogram=tally.histogram,
        source=balance,
        right=sum(part[2] for part in parts),
        reliability=sum(part[3] for part in parts),
        images=table.num_rows,
        failed=tally.failed,
    )
    return table, quality


def _write_reports(work: Work, tally: Tally, quality: Quality) -> None:
    wanted = list(dict.fromkeys([*tally.least, *reversed(tally.most)]))  # of few images, none twice
    examples = []
    for certainty, image_id, block in wanted:
        uri = next(row["image_uri"] for row in work.ledger.rows(block) if row["image_id"] == image_id)
        examples.append(sample(work.out, image_id, uri, certainty))
    failed = [dict(zip(("image_id", "image_uri", "reason"), row, strict=True)) for row in quality.failed]
    write_bytes(join(work.out, "failed.json"), json.dumps(failed, indent=1).encode())
    write_bytes(join(work.out, "report.json"), json.dumps(quality.to_json(work.classes.names), indent=1).encode())
    page = label_page(classes=work.classes, quality=quality, examples=examples, rules=dataclasses.asdict(work.rules))
    write_bytes(join(work.out, "report.html"), page.encode())


def _print(classes: Classes, numbers: dict[str, Any]) -> Shares:
    shares = Shares(*(np.array(numbers[name]) for name in ("kept", "predicted", "thresholds")))
    console = Console()
    console.print(share_table(classes.names, shares))
    if numbers["failed"]:
        console.print(failure_table(numbers["failed"]))
    return shares


def _clear_scratch(out: str) -> None:
    """Remove what killed tasks left half written."""
    folder = scratch_folder(out)
    if folder is not None and os.path.isdir(folder):
        pafs.LocalFileSystem().delete_dir(folder)


# --- command line ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pseudo-label images with a checkpoint. The same command again goes on with a job that was killed."""

    checkpoint: str
    """A run's model directory, or one of its checkpoints."""
    images: str
    """A dataset directory, or a folder or URI of images."""
    out: str
    """Dataset directory to write."""
    split: str | None = None
    """Split of a dataset directory; all its images without it."""
    agree_with: tuple[str, ...] = ()
    """Other model directories; a pixel that they do not all find the same class for is not kept."""
    source: str | None = None
    """Labelled dataset directory, whose class balance the report compares with and prototypes are made from."""
    truth: bool = False
    """Compare with the true labels that the images have, in the report alone."""
    layouts: tuple[Layout, ...] = ()
    """Folders for other tools: cityscapes, coco_stuff."""
    max_failed: float | None = None
    """Stop when more images than this cannot be read; below 1 a share of all. Without it they are listed alone."""
    block_size: int = 32
    """Images that are committed together: what a kill costs at most, for each process that predicts."""
    rules: PseudoLabel = PseudoLabel()
    inference: Inference = Inference()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = tyro.cli(Arguments, args=argv, prog="udaseg pseudo-label", config=(tyro.conf.AvoidSubcommands,))
    try:
        pseudo_label(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)})
    except (ConfigError, DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"pseudo-labels: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
