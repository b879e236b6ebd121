"""What the tasks of `udaseg pseudo-label` do with a block of images. The files of a block come first, its entry last.

Without the networks (`udaseg.jobs.pseudo_label.actors`), so that the tasks of the second pass start without torch.

Entries of the ledger:
    predict   image_id, height, width, certainty (mean, per image); failed_id, failed_uri, failed_reason; of these
              unreachable_id, which the next job tries again;
              slot and count: the block's confidence histogram where it is not 0
    label     image_id, height, width; class_pixels (images x K); right (images x 4); reliability (20 x 3)
    prototypes   image_id, failed_id, failed_uri, failed_reason; sum (per network K x A, in one row), count (networks
              x K)
"""

from __future__ import annotations

import heapq
import io
import os
import uuid
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeVar

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
from PIL import Image

from udaseg.components.thresholds import threshold_top1
from udaseg.config import PseudoLabel
from udaseg.data import export
from udaseg.data.classes import Classes
from udaseg.data.confidence import HISTOGRAM_BINS, decode_confidence
from udaseg.data.images import read_raw_label
from udaseg.data.manifest import PSEUDO_MANIFEST, SOFT_MANIFEST
from udaseg.data.pictures import palette_image, png
from udaseg.data.storage import filesystem, join, read_bytes, write_bytes
from udaseg.errors import DatasetError
from udaseg.evaluation.calibration import RELIABILITY_BINS, reliability_counts
from udaseg.job_config import Inference
from udaseg.jobs.ledger import Ledger
from udaseg.types import IGNORE, DepthRange

Item = TypeVar("Item")
Result = TypeVar("Result")


Prototypes = tuple[tuple[np.ndarray, np.ndarray], ...]
"""Per checkpoint (K, A) and the (K,) that are present."""


EXAMPLES = 4
"""Images at each end of the report's sheet."""


THREADS = 4
"""Of a task that read and write files beside the network."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """All that a task must know of the job."""

    checkpoints: tuple[str, ...]
    out: str
    ledger: Ledger
    classes: Classes
    """Their labels hold train ids."""
    rules: PseudoLabel
    inference: Inference
    layouts: tuple[export.ExportFormat, ...] = ()
    truth: Classes | None = None
    """How true labels are to be read, where they are to be compared with."""
    prototypes: Prototypes | None = None
    depth_range: DepthRange | None = None
    """With which the images are read."""

    @property
    def scratch(self) -> str | None:
        """Where local files are written before they get their names; None on an object store."""
        return scratch_folder(self.out)

    @property
    def plane(self) -> str:
        """The folder of the plane that thresholds look at."""
        return "entropy" if self.rules.measure == "entropy" else "confidence"


def scratch_folder(out: str) -> str | None:
    """The folder for files that are not yet whole; None on an object store."""
    fs, path = filesystem(out)
    return os.path.join(path, ".partial") if fs.type_name == "local" else None


def clear_scratch_folder(out: str) -> None:
    """Remove what killed tasks left half written."""
    folder = scratch_folder(out)
    if folder is not None and os.path.isdir(folder):
        pafs.LocalFileSystem().delete_dir(folder)


def apply_thresholds(work: Work, thresholds: np.ndarray) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """Ray Data function: labels the images of a block from the planes that are stored of them."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        name = f"{row['image_id']}.png"
        prediction = read_png(join(work.out, "predictions", name))
        certainty = decode_confidence(read_png(join(work.out, work.plane, name)))
        if work.rules.rule == "soft":
            label = np.where(certainty > 0, prediction, IGNORE).astype(np.uint8)
        else:
            image_share = 0.0 if work.rules.rule == "fixed" else work.rules.image_share
            label = threshold_top1(prediction, certainty, thresholds, image_share)
        if work.truth is not None and work.plane != "confidence":  # the report is about probabilities
            certainty = decode_confidence(read_png(join(work.out, "confidence", name)))
        return write_label(work, row, label, prediction, certainty)

    def label_block(block: int) -> dict[str, Any]:
        predicted = set(work.ledger.entry("predict", block)["image_id"])
        rows = [row for row in work.ledger.rows(block) if row["image_id"] in predicted]
        with ThreadPoolExecutor(THREADS) as pool:
            done = dict(zip((row["image_id"] for row in rows), in_order(pool, one, rows, THREADS), strict=True))
        return label_entry(rows, done)

    return lambda batch: each_once(work, "label", batch, label_block)


def write_label(
    work: Work, row: dict[str, Any], label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray
) -> dict[str, Any]:
    """Write an image's pseudo-label, in every layout; its part of the block's entry.

    "right" counts, of the pixels that have a true label, those kept that are right, all kept, those dropped that are
    right, all dropped.
    """
    image_id, image = row["image_id"], palette_image(label, work.classes)
    write_png(join(work.out, "labels", f"{image_id}.png"), image, work.scratch)
    for layout in work.layouts:
        names = export.names(layout, image_id, row["split"], row["image_uri"], work.classes)
        for name, lookup in names.labels.items():
            mapped = image if lookup is None else Image.fromarray(lookup[label])
            write_png(join(work.out, layout, name), mapped, work.scratch)
        for name, lookup in names.predictions.items():
            write_png(join(work.out, layout, name), Image.fromarray(lookup[prediction]), work.scratch)
        if names.image is not None:
            _place(row["image_uri"], join(work.out, layout, names.image), work.scratch)
    pixels = np.bincount(label.ravel(), minlength=256)[: len(work.classes)]
    right, reliability = np.zeros(4, np.int64), np.zeros((RELIABILITY_BINS, 3))
    if work.truth is not None and row["label_uri"] is not None:
        truth = read_truth(row, work.truth)
        if truth.shape != label.shape:
            raise DatasetError(f"{row['label_uri']}: the true label and its image differ in size")
        known = truth != IGNORE
        correct, kept = prediction == truth, label != IGNORE
        right[:] = [
            np.sum(part) for part in (known & kept & correct, known & kept, known & ~kept & correct, known & ~kept)
        ]
        reliability = reliability_counts(confidence[known], correct[known])
    return {"size": label.shape, "class_pixels": pixels, "right": right, "reliability": reliability}


def read_truth(row: Mapping[str, Any], classes: Classes) -> np.ndarray:
    """(H, W) uint8 train ids of a row's true label; ids outside the class list are ignored."""
    shown = classes.of(row["dataset"])
    mapped = shown.lookup()[read_raw_label(row["label_uri"], shown)]
    return np.where(mapped < 0, IGNORE, mapped).astype(np.uint8)


def _place(image_uri: str, uri: str, scratch: str | None) -> None:
    """Have an image under another name: by a link where both are local, else by a copy."""
    fs, path = filesystem(image_uri)
    if scratch is None or fs.type_name != "local":
        write_bytes(uri, read_bytes(image_uri), scratch=scratch)
        return
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    os.makedirs(scratch, exist_ok=True)
    temporary = os.path.join(scratch, f"{uuid.uuid4().hex}.link")
    os.symlink(path, temporary)
    os.replace(temporary, uri)


class Blocks(Protocol):
    """What `each_once` must know of a job."""

    @property
    def ledger(self) -> Ledger: ...

    @property
    def scratch(self) -> str | None: ...


def each_once(
    work: Blocks, phase: str, batch: dict[str, np.ndarray], make: Callable[[int], dict[str, Any]]
) -> dict[str, np.ndarray]:
    """Make and commit the blocks of a batch that are not there yet; how many images they have, and how many failed."""
    images, failed = [], []
    for block in batch["block"].tolist():
        if work.ledger.is_committed(phase, block):  # by a task that was lost after its work was done
            entry = work.ledger.entry(phase, block)
        else:
            entry = make(block)
            work.ledger.commit(phase, block, entry, scratch=work.scratch)
        images.append(len(entry["image_id"]))
        failed.append(len(entry.get("failed_id", [])))
    return {"images": np.array(images), "failed": np.array(failed)}


def predict_entry(rows: list[dict[str, Any]], done: dict[str, dict[str, Any]], classes: int) -> dict[str, Any]:
    """A block's entry of phase "predict", from what was done of each image that could be read."""
    good = [row for row in rows if "error" not in row]
    parts = [done[row["image_id"]] for row in good]
    histogram = np.zeros(classes * HISTOGRAM_BINS, np.int64)
    for part in parts:
        histogram[part["slot"]] += part["count"]
    slot = np.flatnonzero(histogram)
    return {
        "image_id": [row["image_id"] for row in good],
        "height": np.array([p["size"][0] for p in parts], np.int32),
        "width": np.array([p["size"][1] for p in parts], np.int32),
        "certainty": np.array([p["certainty"] for p in parts], np.float64),
        **failed_columns(rows),
        "unreachable_id": [row["image_id"] for row in rows if row.get("unreachable")],
        "slot": slot.astype(np.int32),
        "count": histogram[slot],
    }


def failed_columns(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Of an entry: the images that could not be read, and why."""
    bad = [row for row in rows if "error" in row]
    return {
        "failed_id": [row["image_id"] for row in bad],
        "failed_uri": [row["image_uri"] for row in bad],
        "failed_reason": [row["error"] for row in bad],
    }


def label_entry(rows: list[dict[str, Any]], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """A block's entry of phase "label"."""
    parts = [done[row["image_id"]] for row in rows]
    return {
        "image_id": [row["image_id"] for row in rows],
        "height": np.array([p["size"][0] for p in parts], np.int32),
        "width": np.array([p["size"][1] for p in parts], np.int32),
        "class_pixels": np.array([p["class_pixels"] for p in parts], np.int64).ravel(),
        "right": np.array([p["right"] for p in parts], np.int64).ravel(),
        "reliability": sum((p["reliability"] for p in parts), np.zeros((RELIABILITY_BINS, 3))).ravel(),
    }


def count_failed(ledger: Ledger, blocks: Sequence[int]) -> int:
    """Images of the blocks that could not be read."""
    return sum(len(ledger.entry("predict", block)["failed_id"]) for block in blocks)


def unreachable_blocks(ledger: Ledger, blocks: Sequence[int]) -> list[int]:
    """The blocks that hold images which could not be reached."""
    return [block for block in blocks if len(ledger.entry("predict", block)["unreachable_id"])]


@dataclass
class PredictionTotals:
    """What the first pass found, over all blocks; sums of whole numbers, so that their order does not matter."""

    histogram: np.ndarray | Any = 0
    """(K, 8192)."""
    failed: list[tuple[str, str, str]] = field(default_factory=list)
    """Id, URI and reason."""
    unreachable: set[str] = field(default_factory=set)
    """Ids of those that failed as they could not be reached."""
    least: list[tuple[float, str, int]] = field(default_factory=list)
    """Certainty, id and block of the least certain images, those first."""
    most: list[tuple[float, str, int]] = field(default_factory=list)

    def add(self, other: PredictionTotals) -> None:
        self.histogram = self.histogram + other.histogram
        self.failed += other.failed
        self.unreachable |= other.unreachable
        self.least = heapq.nsmallest(EXAMPLES, self.least + other.least)
        self.most = heapq.nlargest(EXAMPLES, self.most + other.most)


def tally_chunk(ledger: Ledger, blocks: Sequence[int], classes: int) -> PredictionTotals:
    """What the first pass found in the blocks."""
    total = PredictionTotals()
    for block in blocks:
        entry = ledger.entry("predict", block)
        histogram = np.zeros((classes, HISTOGRAM_BINS), np.int64)
        histogram.flat[entry["slot"]] = entry["count"]
        certainties = [(c, i, block) for c, i in zip(entry["certainty"].tolist(), entry["image_id"], strict=True)]
        failed = list(zip(entry["failed_id"], entry["failed_uri"], entry["failed_reason"], strict=True))
        unreachable = set(entry["unreachable_id"])
        total.add(PredictionTotals(histogram, failed, unreachable, certainties, certainties))
    return total


def label_chunk(
    ledger: Ledger, blocks: Sequence[int], distribution: bool
) -> tuple[pa.Table, np.ndarray, np.ndarray, np.ndarray]:
    """The manifest's rows of blocks; pixels kept of each class, counts against the truth, reliability.

    `distribution` says whether the probabilities of all classes are stored.
    """
    tables, kept, right, reliability = [], 0, np.zeros(4, np.int64), np.zeros((RELIABILITY_BINS, 3))
    for block in blocks:
        entry = ledger.entry("label", block)
        rows = {row["image_id"]: row for row in ledger.rows(block)}
        ids = entry["image_id"]
        pixels = entry["class_pixels"].reshape(len(ids), -1) if len(ids) else np.zeros((0, 1), np.int64)
        columns = {
            "image_id": ids,
            "image_uri": [rows[i]["image_uri"] for i in ids],
            "label_uri": [f"labels/{i}.png" for i in ids],
            "confidence_uri": [f"confidence/{i}.png" for i in ids],
            **({"distribution_uri": [f"distribution/{i}.png" for i in ids]} if distribution else {}),
            "height": entry["height"],
            "width": entry["width"],
            "class_pixels": list(pixels),
            "dataset": [rows[i]["dataset"] for i in ids],
            "split": [rows[i]["split"] for i in ids],
        }
        tables.append(pa.table(columns, schema=SOFT_MANIFEST if distribution else PSEUDO_MANIFEST))
        kept = kept + pixels.sum(0)
        right += entry["right"].reshape(-1, 4).sum(0)
        reliability += entry["reliability"].reshape(-1, 3)
    return pa.concat_tables(tables), np.asarray(kept), right, reliability


def write_png(uri: str, image: Image.Image, scratch: str | None) -> None:
    """Write an image whole or not at all."""
    write_bytes(uri, png(image), scratch=scratch)


def read_png(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(read_bytes(uri))))


def in_order(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], ahead: int) -> Iterator[Result]:
    """`map` in the threads of a pool, at most `ahead` items ahead of what has been taken."""
    running: deque[Future[Result]] = deque()
    for item in items:
        running.append(pool.submit(function, item))
        if len(running) > ahead:
            yield running.popleft().result()
    while running:
        yield running.popleft().result()
