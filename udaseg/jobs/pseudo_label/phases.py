"""The phases of a labelling job: which blocks are left, and what is summed over all of them."""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice, pairwise
from typing import Any

import numpy as np
import pyarrow as pa
import ray

from udaseg.components.thresholds import class_balanced_thresholds
from udaseg.config import PseudoLabel
from udaseg.data.classes import read_classes, require_same_classes
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.storage import absolute, join, remove
from udaseg.errors import DatasetError
from udaseg.jobs.ledger import Ledger, open_ledger
from udaseg.jobs.pseudo_label.actors import PrototypeActor
from udaseg.jobs.pseudo_label.tasks import (
    PredictionTotals,
    Prototypes,
    Work,
    count_failed,
    tally_chunk,
    unreachable_blocks,
)
from udaseg.jobs.ray_session import lazily, track
from udaseg.jobs.remote_errors import plain_errors
from udaseg.jobs.resources import actor_pool, waits_told

_AHEAD = 64
"""Chunks whose results may lie in the object store at once: histograms of all classes, megabytes each."""

CHUNK = 128
"""Blocks whose entries one task adds up."""


PROTOTYPE_IMAGES = 500
"""Images of the source, at even distances, that prototypes are the mean of."""


class FailureLimit:
    """Counts images that cannot be read, and stops the job where there are too many."""

    def __init__(self, most: float, ledger: Ledger) -> None:
        self.most = most if most >= 1 else round(most * ledger.images, 6)  # 0.29 * 100 is a little below 29
        self.failed = 0
        self.add(sum(each_chunk(count_failed, ledger, sorted(ledger.committed("predict")))))

    def add(self, failed: int) -> None:
        self.failed += failed
        if self.failed > self.most:
            raise DatasetError(
                f"{self.failed} images could not be read, more than --max-failed allows; "
                "what is done stays: see why in job/predict, or run the same again with another --max-failed"
            )


def forget_unreachable(ledger: Ledger, manifest: str) -> None:
    """Have the blocks of images that could not be reached done again, and all labels, as thresholds look at all images.

    Their entries go last, so that a kill between leaves it to be found again. `manifest` is the finished dataset's.
    """
    chunks = each_chunk(unreachable_blocks, ledger, sorted(ledger.committed("predict")))
    if blocks := [block for chunk in chunks for block in chunk]:
        remove(manifest)
        for phase, forgotten in (("label", ledger.committed("label")), ("predict", blocks)):
            for block in forgotten:
                ledger.forget(phase, block)


def run_phase(ledger: Ledger, phase: str, limit: FailureLimit | None = None, **how: Any) -> None:
    """Do a phase's blocks that are not done."""
    todo = sorted(set(range(ledger.blocks)) - ledger.committed(phase))
    if not todo:
        return
    dataset = (
        ray.data.from_arrow(pa.table({"block": todo}))
        .repartition(target_num_rows_per_block=1, strict=True)
        .map_batches(batch_size=None, batch_format="numpy", **how)
    )
    done = dataset.iter_batches(batch_size=None, batch_format="numpy")
    left = min(ledger.images, len(todo) * ledger.block_size)
    for batch in track(done, left, phase, size=lambda b: int(b["images"].sum() + b["failed"].sum())):
        if limit is not None:
            limit.add(int(batch["failed"].sum()))


def each_chunk(task: Callable[..., Any], ledger: Ledger, blocks: Sequence[int], *more: Any) -> Iterator[Any]:
    """What a Ray task makes of each chunk of blocks, in their order."""
    anywhere = "DEFAULT"  # unsaid, a trial of a sweep would have its tasks where it has no CPU but its own
    remote = ray.remote(num_cpus=1, scheduling_strategy=anywhere)(task)
    ends = [*range(0, len(blocks), CHUNK), len(blocks)]
    with plain_errors(), waits_told(task.__name__) as came:
        chunks = pairwise(ends)
        running = deque(remote.remote(ledger, blocks[a:b], *more) for a, b in islice(chunks, _AHEAD))
        while running:
            part = ray.get(running.popleft())
            came()
            running.extend(remote.remote(ledger, blocks[a:b], *more) for a, b in islice(chunks, 1))
            yield part


def predicted_totals(ledger: Ledger, classes: int) -> PredictionTotals:
    total = PredictionTotals()
    for part in each_chunk(tally_chunk, ledger, range(ledger.blocks), classes):
        total.add(part)
    if not total.most:
        raise DatasetError(f"none of the images could be read: {total.failed[0][2]}")
    return total


def class_thresholds(rules: PseudoLabel, histogram: np.ndarray) -> np.ndarray:
    """(K,) thresholds of the classes."""
    if rules.rule == "fixed":
        return np.full(len(histogram), rules.threshold, np.float32)
    if rules.rule == "soft":
        return np.zeros(len(histogram), np.float32)
    return class_balanced_thresholds(histogram, rules.share, cap=rules.cap, rare_class=rules.rare_class)


def source_prototypes(work: Work, source: str) -> tuple[Prototypes, list[tuple[str, str, str]]]:
    """Per checkpoint the mean feature of each class of the source, and which classes have one.

    Second are id, URI and reason of the images that could not be read, and so are in no mean. Raises DatasetError where
    none could.
    """
    source = absolute(source)
    classes = read_classes(source)
    require_same_classes(work.classes, classes, source, of="the checkpoint")

    def labelled() -> Iterator[dict[str, Any]]:
        """Some rows at even distances, none of the others held."""
        count = sum(row["label_uri"] is not None for row in list_images(source, "train"))
        chosen = {*np.linspace(0, count - 1, PROTOTYPE_IMAGES).round().astype(int).tolist()}
        rows = (row for row in list_images(source, "train") if row["label_uri"] is not None)
        yield from (row for i, row in enumerate(rows) if i in chosen)

    ledger = open_ledger(join(work.out, "job", "source"), labelled, block_size=work.ledger.block_size, job={})
    here = dataclasses.replace(work, ledger=ledger, truth=classes, depth_range=open_index(source).depth_range)
    options, threads = actor_pool(work.inference)
    run_phase(
        ledger,
        "prototypes",
        fn=lazily(PrototypeActor),
        fn_constructor_args=(here, threads),
        **options,
    )
    total, count = 0.0, 0.0
    failed: list[tuple[str, str, str]] = []
    for block in range(ledger.blocks):  # in order: sums of floats
        entry = ledger.entry("prototypes", block)
        total, count = total + entry["sum"], count + entry["count"]
        failed += zip(entry["failed_id"], entry["failed_uri"], entry["failed_reason"], strict=True)
    if len(failed) == ledger.images:
        raise DatasetError(f"none of the source's images could be read: {failed[0][2]}")
    counts = np.asarray(count).reshape(len(work.checkpoints), -1)
    sums = np.split(np.asarray(total), len(work.checkpoints))
    prototypes = tuple(
        ((s.reshape(len(c), -1) / np.maximum(c, 1)[:, None]).astype(np.float32), c > 0)
        for s, c in zip(sums, counts, strict=True)
    )
    return prototypes, failed
