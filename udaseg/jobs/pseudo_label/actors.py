"""The actors of `udaseg pseudo-label` that predict: what they write of a block, see `tasks`."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import numpy as np
import ray
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from udaseg.checkpoints.directory import ModelCard, load_model
from udaseg.components.prototypes import PrototypeClassifier
from udaseg.components.pseudo_label import normalised_certainty
from udaseg.components.thresholds import union_pseudo_label
from udaseg.data.confidence import (
    confidence_histogram,
    decode_confidence,
    distribution_size,
    encode_confidence,
    encode_distribution,
)
from udaseg.data.images import read_image, require_proportions
from udaseg.data.pictures import palette_image
from udaseg.data.storage import join
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs.pseudo_label.tasks import (
    THREADS,
    Work,
    each_once,
    failed_columns,
    in_order,
    label_entry,
    predict_entry,
    read_png,
    read_truth,
    write_label,
    write_png,
)
from udaseg.losses.contrastive import downscale_label
from udaseg.models.inference import answering_device, by_size, predict, resized, to_pixels
from udaseg.models.segmenter import Segmenter
from udaseg.types import DepthRange


class Networks:
    """The networks of a job on their device."""

    def __init__(self, work: Work, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work
        self.device = answering_device(work.inference.gpu)
        self.loaded: list[tuple[Segmenter, ModelCard]] = []
        for uri in work.checkpoints:
            network, card = load_model(uri, work.inference.network)
            self.loaded.append((network.to(self.device), card))
        self.pool = ThreadPoolExecutor(THREADS)
        self.read_image = _IsolatedReader() if _was_restarted() else read_image

    def read(self, row: Mapping[str, Any]) -> np.ndarray | DatasetError:
        """The image of a row, or why there is none."""
        try:
            image = self.read_image(row["image_uri"], self.work.depth_range)
            side = max(card.short_side for _, card in self.loaded) * max(self.work.inference.scales)
            require_proportions(image.shape[0], image.shape[1], side, row["image_uri"])
        except DatasetError as error:
            return error
        return image

    def batches(self, rows: list[dict[str, Any]]) -> Iterator[tuple[list[dict[str, Any]], np.ndarray]]:
        """Batches of one size, of the images that can be read; the others get an "error"."""

        def images() -> Iterator[tuple[dict[str, Any], np.ndarray]]:
            ahead = self.work.inference.batch_size + THREADS
            for row, image in zip(rows, in_order(self.pool, self.read, rows, ahead), strict=True):
                if isinstance(image, DatasetError):
                    row["error"], row["unreachable"] = str(image), isinstance(image, UnreachableError)
                else:
                    yield row, image

        return by_size(images(), self.work.inference.batch_size)


class _IsolatedReader:
    """`read_image` in a process of its own, which a decoder that crashes takes with it in place of this one.

    For the first block of an actor that has been lost: whatever it is that it was lost by comes again with that.
    """

    def __init__(self) -> None:
        self.lock = threading.Lock()  # one image at a time, so that a crash tells whose it was
        self.process: ProcessPoolExecutor | None = None

    def __call__(self, uri: str, depth_range: DepthRange | None) -> np.ndarray:
        with self.lock:
            for _ in range(2):  # once it may be for want of memory, say
                if self.process is None:
                    spawn = multiprocessing.get_context("spawn")
                    self.process = ProcessPoolExecutor(1, spawn, initializer=_end_with, initargs=(os.getpid(),))
                try:
                    return self.process.submit(read_image, uri, depth_range).result()
                except BrokenProcessPool:
                    self.process = None
            raise DatasetError(f"{uri}: crashes the process that decodes it, twice")


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


class PredictActor(Networks):
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
        done = each_once(self.work, "predict" if self.thresholds is None else "label", batch, self._block)
        self.read_image = read_image  # which is many times as fast where files are far
        return done

    def _block(self, block: int) -> dict[str, Any]:
        rows = self.work.ledger.rows(block)
        if self.thresholds is None:
            done = self._each(rows, self._planes)
            return predict_entry(rows, done, len(self.work.classes))
        predicted = set(self.work.ledger.entry("predict", block)["image_id"])
        rows = [row for row in rows if row["image_id"] in predicted]
        done = self._each(rows, self._any_class)
        if lost := [row["error"] for row in rows if "error" in row]:
            raise DatasetError(f"{lost[0]}; it could be read when it was predicted")
        return label_entry(rows, done)

    def _each(self, rows: list[dict[str, Any]], task: Callable[..., dict[str, Any]]) -> dict[str, dict[str, Any]]:
        """Predict the rows' images and run a task on each of them in a thread; what it returns, by image id."""
        tasks: deque[tuple[str, Future[dict[str, Any]]]] = deque()
        done = {}
        for batch, images in self.batches(rows):
            planes = (
                self._certainties(images) if self.thresholds is None else {"probability": self._probabilities(images)}
            )
            for i, row in enumerate(batch):
                own = {name: plane[i] for name, plane in planes.items()}
                tasks.append((row["image_id"], self.pool.submit(task, row, **own)))
            while len(tasks) > len(batch) + THREADS:  # else memory grows where writing is slower than predicting
                image_id, future = tasks.popleft()
                done[image_id] = future.result()
        return done | {image_id: future.result() for image_id, future in tasks}

    @torch.inference_mode()
    def _predict(self, images: np.ndarray) -> tuple[Tensor, Tensor]:
        """Of (B, H, W, 3) images the networks' mean (B, K, H, W) probability, and where all find the same class."""
        pixels = to_pixels(images, self.device)
        views = self.work.inference.views()

        def one(number: int) -> Tensor:
            return predict(self.classifiers[number], pixels, **self.loaded[number][1].views(**views))

        total = one(0)
        first = total.max(1).indices  # argmax takes six times as long on a CPU
        agree = torch.ones_like(first, dtype=torch.bool)
        for number in range(1, len(self.loaded)):
            probability = one(number)
            agree &= probability.max(1).indices == first
            total.add_(probability)
        return total.div_(len(self.loaded)), agree

    @torch.inference_mode()
    def _probabilities(self, images: np.ndarray) -> np.ndarray:
        """(B, K, H, W) probabilities; 0 where the networks do not all find the same class."""
        probability, agree = self._predict(images)
        found: np.ndarray = (probability * agree[:, None]).cpu().numpy()
        return found

    @torch.inference_mode()
    def _certainties(self, images: np.ndarray) -> dict[str, np.ndarray]:
        """(B, H, W) classes and confidences; as the rules ask for them, certainties by entropy and (B, K, h, w)
        distributions, the mean probability of each cell.

        Certainties and probabilities are 0 where the networks do not all find the same class.
        """
        probability, agree = self._predict(images)
        confidence, label = probability.max(1)
        planes = {"label": label.to(torch.uint8), "confidence": confidence * agree}
        if self.work.rules.measure == "entropy":
            planes["entropy"] = normalised_certainty(probability) * agree
        if self.work.rules.distribution:
            size = distribution_size(probability.shape[2], probability.shape[3])
            planes["distribution"] = torch.nn.functional.adaptive_avg_pool2d(probability * agree[:, None], size)
        return {name: plane.cpu().numpy() for name, plane in planes.items()}

    def _planes(
        self,
        row: dict[str, Any],
        label: np.ndarray,
        confidence: np.ndarray,
        entropy: np.ndarray | None = None,
        distribution: np.ndarray | None = None,
    ) -> dict[str, Any]:
        """Write the planes of an image; its part of the block's entry."""
        out, scratch, image_id = self.work.out, self.work.scratch, row["image_id"]
        code = encode_confidence(confidence)
        if distribution is not None:
            codes = Image.fromarray(encode_distribution(distribution).reshape(-1, distribution.shape[2]))
            write_png(join(out, "distribution", f"{image_id}.png"), codes, scratch)
        write_png(join(out, "predictions", f"{image_id}.png"), palette_image(label, self.work.classes), scratch)
        write_png(join(out, "confidence", f"{image_id}.png"), Image.fromarray(code), scratch)
        if entropy is not None:
            code = encode_confidence(entropy)
            write_png(join(out, "entropy", f"{image_id}.png"), Image.fromarray(code), scratch)
        histogram = confidence_histogram(label, code, len(self.work.classes)).ravel()
        slot = np.flatnonzero(histogram)  # of many classes nearly all is empty, and a block's images are held at once
        certainty = float(decode_confidence(code).mean(dtype=np.float64))
        return {"size": label.shape, "certainty": certainty, "slot": slot, "count": histogram[slot]}

    def _any_class(self, row: dict[str, Any], probability: np.ndarray) -> dict[str, Any]:
        """Label an image by the rule "any_class"; its part of the block's entry."""
        assert self.thresholds is not None
        label = union_pseudo_label(probability, self.thresholds, self.work.rules.image_share, rule="any_class")
        # not of `probability`, which is 0 where networks do not agree
        prediction = read_png(join(self.work.out, "predictions", f"{row['image_id']}.png"))
        return write_label(self.work, row, label, prediction, probability.max(0))


class PrototypeActor(Networks):
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
                feature = _features(network, pixels, card)
                cells = downscale_label(label.long(), (feature.shape[2], feature.shape[3]))
                cell, of = feature.movedim(1, -1).flatten(0, 2), cells.flatten().clamp_max(classes)
                one_hot = F.one_hot(of, classes + 1)[:, :classes].double()
                sums[n] += (one_hot.T @ cell.double()).cpu().numpy()
                counts[n] += one_hot.sum(0).cpu().numpy()
        if lost := [row["error"] for row in rows if row.get("unreachable")]:
            raise UnreachableError(f"{lost[0]}; prototypes are made of it: run the same again")
        return {"image_id": [row["image_id"] for row in rows if "error" not in row], **failed_columns(rows),
                "sum": np.concatenate([s.ravel() for s in sums]), "count": counts.ravel()}  # fmt: skip


@torch.inference_mode()
def _features(network: Segmenter, pixels: Tensor, card: ModelCard) -> Tensor:
    """(B, A, h, w) features of source images at the size of training."""
    cell = 1 if network.align_corners else network.feature_stride  # as `predict` brings images to size
    return network(resized(pixels, card.short_side, card.resample, cell), "source", detail="everywhere").embedding
