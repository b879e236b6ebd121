"""What the tasks of `udaseg pseudo-label` do with a block of images. The files of a block come first, its entry last.

Entries of the ledger:
    predict   image_id, height, width, certainty (mean, per image); failed_id, failed_uri, failed_reason;
              slot and count: the block's confidence histogram where it is not 0
    label     image_id, height, width; class_pixels (images x K); right (images x 4); reliability (20 x 3)
    prototypes   sum (per network K x A, in one row), count (networks x K)
"""

from __future__ import annotations

import io
import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import ray
import torch
from PIL import Image
from torch import Tensor

from pipelines.evaluate import Inference, to_pixels
from udaseg.config import PseudoLabel
from udaseg.data import export
from udaseg.data.datasets import MAX_PIXELS, read_image, read_label
from udaseg.data.ledger import Ledger
from udaseg.data.schema import Classes, DatasetError, filesystem, join, read_bytes, write_bytes
from udaseg.inference import PrototypeClassifier, by_size, predict
from udaseg.losses.contrastive import downscale_label
from udaseg.models.segmenter import Segmenter
from udaseg.pseudo_label import (
    HISTOGRAM_BINS,
    RELIABILITY_BINS,
    confidence_histogram,
    decode_confidence,
    encode_confidence,
    normalised_certainty,
    reliability_counts,
    threshold_top1,
    union_pseudo_label,
)
from udaseg.train import ModelCard, load_model
from udaseg.types import IGNORE

Item = TypeVar("Item")
Result = TypeVar("Result")
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
    layouts: tuple[export.Layout, ...] = ()
    truth: Classes | None = None
    """How true labels are to be read, where they are to be compared with."""
    prototypes: tuple[tuple[np.ndarray, np.ndarray], ...] | None = None
    """Per checkpoint (K, A) and the (K,) that are present."""

    @property
    def scratch(self) -> str | None:
        """Where local files are written before they get their names; None on an object store."""
        return scratch_folder(self.out)

    @property
    def plane(self) -> str:
        """The folder of the plane that thresholds look at."""
        return "entropy" if self.rules.measure == "entropy" else "confidence"


def scratch_folder(out: str) -> str | None:
    fs, path = filesystem(out)
    return os.path.join(path, ".partial") if fs.type_name == "local" else None


# --- with the network -----------------------------------------------------------------------------------------------


class Networks:
    """The networks of a job on their device."""

    def __init__(self, work: Work, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work
        self.device = torch.device("cuda" if work.inference.gpu else "cpu")
        self.loaded: list[tuple[Segmenter, ModelCard]] = []
        for uri in work.checkpoints:
            network, card = load_model(uri, work.inference.network)
            self.loaded.append((network.to(self.device), card))
        self.pool = ThreadPoolExecutor(THREADS)
        self.read_image = _ReadApart() if _was_restarted() else read_image

    def read(self, row: Mapping[str, Any]) -> np.ndarray | DatasetError:
        """The image of a row, or why there is none."""
        try:
            image = self.read_image(row["image_uri"])
        except DatasetError as error:
            return error
        height, width = image.shape[:2]
        side = max(card.short_side for _, card in self.loaded) * max(self.work.inference.scales)
        if side * side * max(height, width) / min(height, width) > MAX_PIXELS:
            return DatasetError(
                f"{row['image_uri']}: {width} x {height} pixels are too long and narrow to be predicted"
            )
        return image

    def batches(self, rows: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """Batches of one size, of the images that can be read; the others get an "error"."""

        def images() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
            ahead = self.work.inference.batch_size + THREADS
            for row, image in zip(rows, in_order(self.pool, self.read, rows, ahead), strict=True):
                if isinstance(image, DatasetError):
                    row["error"] = str(image)
                else:
                    yield row, image

        return by_size(images(), self.work.inference.batch_size)


class _ReadApart:
    """`read_image` in a process of its own, which a decoder that crashes takes with it in place of this one.

    For an actor that has been lost once: whatever it is that it was lost by comes again with its block.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # one image at a time, so that a crash tells whose it was
        self.process: ProcessPoolExecutor | None = None

    def __call__(self, uri: str) -> np.ndarray:
        with self.lock:
            if self.process is None:
                spawn = multiprocessing.get_context("spawn")
                self.process = ProcessPoolExecutor(1, spawn, initializer=_end_with, initargs=(os.getpid(),))
            try:
                return self.process.submit(read_image, uri).result()
            except BrokenProcessPool:
                self.process = None
                raise DatasetError(f"{uri}: crashes the process that decodes it") from None


def _end_with(parent: int) -> None:
    """End this process soon after its parent, however that ends."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _was_restarted() -> bool:
    """Whether this process is that of an actor which was lost before."""
    if not ray.is_initialized():  # asking would start a Ray
        return False
    context = ray.get_runtime_context()
    return context.get_actor_id() is not None and bool(context.was_current_actor_reconstructed)


class Labeller(Networks):
    """Ray Data actor: predicts the images of a block; with thresholds, by the rule "any_class", labels them at once."""

    def __init__(self, work: Work, threads: int, thresholds: np.ndarray | None = None) -> None:
        super().__init__(work, threads)
        self.thresholds = thresholds
        rules = work.rules
        self.classifiers: list[Segmenter | PrototypeClassifier] = [network for network, _ in self.loaded]
        if work.prototypes is not None:
            self.classifiers = [
                PrototypeClassifier(
                    network,
                    torch.from_numpy(prototypes).to(self.device),
                    torch.from_numpy(present).to(self.device),
                    rules.temperature,
                )
                for (network, _), (prototypes, present) in zip(self.loaded, work.prototypes, strict=True)
            ]

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return each_once(self.work, "predict" if self.thresholds is None else "label", batch, self._block)

    def _block(self, block: int) -> dict[str, Any]:
        rows = self.work.ledger.rows(block)
        if self.thresholds is None:
            done = self._each(rows, self._planes)
            return _predict_entry(rows, done, len(self.work.classes))
        predicted = set(self.work.ledger.entry("predict", block)["image_id"])
        rows = [row for row in rows if row["image_id"] in predicted]
        done = self._each(rows, self._any_class)
        if lost := [row["error"] for row in rows if "error" in row]:
            raise DatasetError(f"{lost[0]}; it could be read when it was predicted")
        return _label_entry(rows, done)

    def _each(self, rows: list[dict[str, Any]], task: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Predict the rows' images and run a task on each of them in a thread; what it returns, by image id."""
        tasks: deque[tuple[str, Future[dict[str, Any]]]] = deque()
        done = {}
        for batch, images in self.batches(rows):
            planes = self._predict(images)
            for i, row in enumerate(batch):
                tasks.append((row["image_id"], self.pool.submit(task, row, *(plane[i] for plane in planes))))
            while len(tasks) > len(batch) + THREADS:  # else memory grows where writing is slower than predicting
                image_id, future = tasks.popleft()
                done[image_id] = future.result()
        return done | {image_id: future.result() for image_id, future in tasks}

    @torch.inference_mode()
    def _predict(self, images: np.ndarray) -> tuple[np.ndarray, ...]:
        """Of (B, H, W, 3) images the planes that are needed: classes and certainties, or all probabilities.

        Several networks: the mean of their probabilities; 0 where they do not all find the same class.
        """
        pixels = to_pixels(images, self.device)
        views = self.work.inference.views()
        total, first, agree = None, None, None
        for classifier, (_, card) in zip(self.classifiers, self.loaded, strict=True):
            probability = predict(classifier, pixels, short_side=card.short_side, **views)
            best = probability.argmax(1)
            agree = None if first is None else (best == first) if agree is None else agree & (best == first)
            first = best if first is None else first
            total = probability if total is None else total.add_(probability)
        assert total is not None
        probability = total.div_(len(self.loaded))
        if self.thresholds is not None:
            probability = probability if agree is None else probability * agree[:, None]
            return (probability.cpu().numpy(),)
        confidence, label = probability.max(1)
        planes = [confidence]
        if self.work.rules.measure == "entropy":
            planes.append(normalised_certainty(probability))
        agreed = planes if agree is None else [plane * agree for plane in planes]
        return (label.to(torch.uint8).cpu().numpy(), *(plane.cpu().numpy() for plane in agreed))

    def _planes(
        self, row: dict[str, Any], label: np.ndarray, confidence: np.ndarray, entropy: np.ndarray | None = None
    ) -> dict[str, Any]:
        """Write the planes of an image; its part of the block's entry."""
        out, scratch, image_id = self.work.out, self.work.scratch, row["image_id"]
        code = encode_confidence(confidence)
        write_png(join(out, "predictions", f"{image_id}.png"), palette_image(label, self.work.classes), scratch)
        write_png(join(out, "confidence", f"{image_id}.png"), Image.fromarray(code), scratch)
        if entropy is not None:
            code = encode_confidence(entropy)
            write_png(join(out, "entropy", f"{image_id}.png"), Image.fromarray(code), scratch)
        return {
            "size": label.shape,
            "certainty": float(decode_confidence(code).mean(dtype=np.float64)),
            "histogram": confidence_histogram(label, code, len(self.work.classes)),
        }

    def _any_class(self, row: dict[str, Any], probability: np.ndarray) -> dict[str, Any]:
        """Label an image by the rule "any_class"; its part of the block's entry."""
        assert self.thresholds is not None
        label = union_pseudo_label(probability, self.thresholds, self.work.rules.image_share, rule="any_class")
        return _finish(self.work, row, label, probability.argmax(0), probability.max(0))


class PrototypeSums(Networks):
    """Ray Data actor: sums the features of the labelled pixels of a block, per network and class."""

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        return each_once(self.work, "prototypes", batch, self._block)

    def _block(self, block: int) -> dict[str, Any]:
        assert self.work.truth is not None
        rows = self.work.ledger.rows(block)
        classes = len(self.work.classes)
        sums = [np.zeros((classes, n.embedding_channels)) for n, _ in self.loaded]
        counts = np.zeros((len(self.loaded), classes))
        for batch, images in self.batches(rows):
            label = torch.from_numpy(np.stack([read_truth(row, self.work.truth) for row in batch])).to(self.device)
            pixels = to_pixels(images, self.device)
            for n, (network, card) in enumerate(self.loaded):
                feature = _features(network, pixels, card.short_side)
                cells = downscale_label(label.long(), (feature.shape[2], feature.shape[3]))
                for k in range(classes):
                    here = feature.movedim(1, -1)[cells == k].double()
                    sums[n][k] += here.sum(0).cpu().numpy()
                    counts[n, k] += len(here)
        return {"image_id": [row["image_id"] for row in rows if "error" not in row], "failed_id": [],
                "sum": np.concatenate([s.ravel() for s in sums]), "count": counts.ravel()}  # fmt: skip


@torch.inference_mode()
def _features(network: Segmenter, pixels: Tensor, short_side: int) -> Tensor:
    """(B, A, h, w) features of source images at the size of training."""
    height, width = pixels.shape[-2:]
    factor = short_side / min(height, width)
    size = (round(height * factor), round(width * factor))
    scaled = torch.nn.functional.interpolate(pixels, size=size, mode="bilinear", align_corners=False, antialias=True)
    return network(scaled, "source").embedding


# --- without it -----------------------------------------------------------------------------------------------------


def apply_thresholds(work: Work, thresholds: np.ndarray) -> Callable[[dict[str, np.ndarray]], dict[str, Any]]:
    """Ray Data function: labels the images of a block from the planes that are stored of them."""

    def one(row: dict[str, Any]) -> dict[str, Any]:
        name = f"{row['image_id']}.png"
        prediction = _read_png(join(work.out, "predictions", name))
        certainty = decode_confidence(_read_png(join(work.out, work.plane, name)))
        if work.rules.rule == "soft":
            label = np.where(certainty > 0, prediction, IGNORE).astype(np.uint8)
        else:
            image_share = 0.0 if work.rules.rule == "fixed" else work.rules.image_share
            label = threshold_top1(prediction, certainty, thresholds, image_share)
        if work.truth is not None and work.plane != "confidence":  # the report is about probabilities
            certainty = decode_confidence(_read_png(join(work.out, "confidence", name)))
        return _finish(work, row, label, prediction, certainty)

    def label_block(block: int) -> dict[str, Any]:
        predicted = set(work.ledger.entry("predict", block)["image_id"])
        rows = [row for row in work.ledger.rows(block) if row["image_id"] in predicted]
        with ThreadPoolExecutor(THREADS) as pool:
            done = dict(zip((row["image_id"] for row in rows), in_order(pool, one, rows, THREADS), strict=True))
        return _label_entry(rows, done)

    return lambda batch: each_once(work, "label", batch, label_block)


def _finish(
    work: Work, row: dict[str, Any], label: np.ndarray, prediction: np.ndarray, confidence: np.ndarray
) -> dict[str, Any]:
    """Write an image's pseudo-label, in every layout; its part of the block's entry.

    "right" counts, of the pixels that have a true label, those kept that are right, all kept, those dropped that are
    right, all dropped.
    """
    image_id, image = row["image_id"], palette_image(label, work.classes)
    write_png(join(work.out, "labels", f"{image_id}.png"), image, work.scratch)
    for layout in work.layouts:
        suffix = export.suffix_of(row["image_uri"])
        names = export.names(layout, image_id, row["split"], suffix, work.classes)
        for name, lookup in names.labels.items():
            mapped = image if lookup is None else Image.fromarray(lookup[label])
            write_png(join(work.out, layout, name), mapped, work.scratch)
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
    mapped = classes.lookup()[read_label(row["label_uri"])]
    return np.where(mapped < 0, IGNORE, mapped).astype(np.uint8)


def _place(image_uri: str, uri: str, scratch: str | None) -> None:
    """Have an image under another name: by a link where both are local, else by a copy."""
    fs, path = filesystem(image_uri)
    if scratch is None or fs.type_name != "local":
        write_bytes(uri, read_bytes(image_uri), scratch=scratch)
        return
    os.makedirs(os.path.dirname(uri), exist_ok=True)
    os.makedirs(scratch, exist_ok=True)
    temporary = os.path.join(scratch, f"{os.getpid()}-{threading.get_ident()}.link")
    os.symlink(path, temporary)
    os.replace(temporary, uri)


# --- entries --------------------------------------------------------------------------------------------------------


def each_once(
    work: Work, phase: str, batch: dict[str, np.ndarray], make: Callable[[int], dict[str, Any]]
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


def _predict_entry(rows: list[dict[str, Any]], done: dict[str, dict[str, Any]], classes: int) -> dict[str, Any]:
    good, bad = [row for row in rows if "error" not in row], [row for row in rows if "error" in row]
    parts = [done[row["image_id"]] for row in good]
    histogram = sum((p["histogram"] for p in parts), np.zeros((classes, HISTOGRAM_BINS), np.int64)).ravel()
    slot = np.flatnonzero(histogram)
    return {
        "image_id": [row["image_id"] for row in good],
        "height": np.array([p["size"][0] for p in parts], np.int32),
        "width": np.array([p["size"][1] for p in parts], np.int32),
        "certainty": np.array([p["certainty"] for p in parts], np.float64),
        "failed_id": [row["image_id"] for row in bad],
        "failed_uri": [row["image_uri"] for row in bad],
        "failed_reason": [row["error"] for row in bad],
        "slot": slot.astype(np.int32),
        "count": histogram[slot],
    }


def _label_entry(rows: list[dict[str, Any]], done: dict[str, dict[str, Any]]) -> dict[str, Any]:
    parts = [done[row["image_id"]] for row in rows]
    return {
        "image_id": [row["image_id"] for row in rows],
        "height": np.array([p["size"][0] for p in parts], np.int32),
        "width": np.array([p["size"][1] for p in parts], np.int32),
        "class_pixels": np.array([p["class_pixels"] for p in parts], np.int64).ravel(),
        "right": np.array([p["right"] for p in parts], np.int64).ravel(),
        "reliability": sum((p["reliability"] for p in parts), np.zeros((RELIABILITY_BINS, 3))).ravel(),
    }


# --- files ----------------------------------------------------------------------------------------------------------


def palette_image(label: np.ndarray, classes: Classes) -> Image.Image:
    """An 8-bit image of (H, W) uint8 train ids with the classes' colours."""
    image = Image.fromarray(label)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = classes.palette
    image.putpalette(colours.tobytes())
    return image


def write_png(uri: str, image: Image.Image, scratch: str | None) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    write_bytes(uri, buffer.getvalue(), scratch=scratch)


def _read_png(uri: str) -> np.ndarray:
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
