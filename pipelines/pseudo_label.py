"""`udaseg pseudo-label`: label images with a checkpoint, and keep what is certain.

Two passes. Actors predict each image and write its classes and confidence; the confidence histograms of all images give
each class its threshold; then tasks apply the thresholds to the files, without a second inference. (The rule
"any_class" looks at every class's probability and so predicts again.)

    predictions/<image_id>.png  the most probable class of every pixel
    confidence/<image_id>.png   16 bits: -ln(1 - p) * 4096
    labels/<image_id>.png       the pseudo-label, 255 where it is not certain
    manifest.parquet ...        a dataset directory that `udaseg train` reads
"""

from __future__ import annotations

import dataclasses
import io
import json
import os
import posixpath
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray
import torch
import tyro
from PIL import Image
from rich.console import Console

from pipelines.evaluate import Inference
from pipelines.session import actor_pool, ensure_ray, track
from udaseg.config import PseudoLabel
from udaseg.data.datasets import IMAGE_SUFFIXES, files, read_image
from udaseg.data.schema import (
    PSEUDO_MANIFEST,
    Classes,
    DatasetError,
    exists,
    join,
    read_bytes,
    read_manifest,
    resolve,
    write_bytes,
    write_dataset,
)
from udaseg.inference import predict
from udaseg.pseudo_label import (
    HISTOGRAM_BINS,
    class_balanced_thresholds,
    confidence_histogram,
    decode_confidence,
    encode_confidence,
    threshold_top1,
    union_pseudo_label,
)
from udaseg.report import Shares, share_table
from udaseg.train import CheckpointError, load_model, read_card


class Predictor:
    """Ray Data actor: images -> prediction and confidence files, sizes, and the block's confidence histogram.

    With thresholds it writes the any-class pseudo-label instead.
    """

    def __init__(
        self,
        checkpoint: str,
        out: str,
        inference: Inference,
        threads: int,
        thresholds: np.ndarray | None = None,
        image_share: float = 0.0,
    ) -> None:
        torch.set_num_threads(threads)
        self.device = torch.device("cuda" if inference.gpu else "cpu")
        self.network, self.card = load_model(checkpoint)
        self.network.to(self.device)
        self.out, self.inference = out, inference
        self.thresholds, self.image_share = thresholds, image_share

    def _probability(self, uri: str) -> np.ndarray:
        pixels = torch.tensor(read_image(uri)).to(self.device).permute(2, 0, 1)[None].float() / 255
        i = self.inference
        probability = predict(
            self.network, pixels, short_side=self.card.short_side, window=i.window, overlap=i.overlap, domain=i.domain
        )
        return probability[0].cpu().numpy()

    def __call__(self, block: dict[str, np.ndarray]) -> dict[str, Any]:
        classes = self.card.classes
        if self.thresholds is not None:
            counts = []
            for image_id, uri in zip(block["image_id"], block["image_uri"], strict=True):
                label = union_pseudo_label(self._probability(uri), self.thresholds, self.image_share, rule="any_class")
                counts.append(_write_label(self.out, image_id, label, classes))
            return {"image_id": block["image_id"], "class_pixels": np.stack(counts)}
        sizes = []
        histogram = np.zeros((len(classes), HISTOGRAM_BINS), np.int64)
        for image_id, uri in zip(block["image_id"], block["image_uri"], strict=True):
            probability = self._probability(uri)
            label = probability.argmax(0).astype(np.uint8)
            code = encode_confidence(np.take_along_axis(probability, label[None].astype(np.int64), 0)[0])
            histogram += confidence_histogram(label, code, len(classes))
            _write_png(join(self.out, "predictions", f"{image_id}.png"), _palette_image(label, classes))
            _write_png(join(self.out, "confidence", f"{image_id}.png"), Image.fromarray(code))
            sizes.append((str(image_id), *label.shape))
        return {"sizes": np.array([json.dumps(sizes)]), "histogram": histogram[None]}  # one row a block


def pseudo_label(
    *,
    checkpoint: str,
    images: str,
    out: str,
    split: str | None = None,
    rules: PseudoLabel | None = None,
    inference: Inference | None = None,
) -> Shares:
    """Label images and write a dataset directory of them. True labels, where the images have some, are not read.

    Returns what was kept of each class.

    Args:
        checkpoint: model directory.
        images: dataset directory, or a folder or URI of images.
        out: dataset directory to write.
        split: of the dataset directory; None = all its images.
        rules: what is kept.
        inference: how images are predicted.

    Raises:
        DatasetError: no images, or `out` holds a dataset.
        CheckpointError: the checkpoint cannot be used.
    """
    rules, inference = rules or PseudoLabel(), inference or Inference()
    if not (0 < rules.share <= 1 and 0 < rules.cap <= 1 and 0 <= rules.image_share <= 1):
        raise DatasetError(f"{rules}: share and cap must lie in (0, 1], image_share in [0, 1]")
    card = read_card(checkpoint)
    classes = dataclasses.replace(card.classes, raw_to_train={})  # what is written are train ids
    out, checkpoint = (uri if "://" in uri else os.path.abspath(uri) for uri in (out, checkpoint))
    if exists(join(out, "manifest.parquet")):
        raise DatasetError(f"{out}: holds a dataset already; choose another --out")
    table = list_images(images, split)
    ensure_ray()
    options, threads = actor_pool(inference.actors, gpu=inference.gpu)
    source = ray.data.from_arrow(table.select(["image_id", "image_uri"])).repartition(
        target_num_rows_per_block=16, strict=True
    )

    histogram = np.zeros((len(classes), HISTOGRAM_BINS), np.int64)
    sizes: dict[str, tuple[int, int]] = {}
    predicted = source.map_batches(
        Predictor,
        fn_constructor_args=(checkpoint, out, inference, threads),
        batch_size=None,
        batch_format="numpy",
        **options,
    )
    blocks = predicted.iter_batches(batch_size=1, batch_format="numpy")
    for block in track(blocks, table.num_rows, "predict", size=lambda b: len(json.loads(b["sizes"][0]))):
        histogram += block["histogram"][0]
        sizes |= {image_id: (height, width) for image_id, height, width in json.loads(block["sizes"][0])}
    thresholds = class_balanced_thresholds(histogram, rules.share, cap=rules.cap, rare_class=rules.rare_class)

    if rules.rule == "any_class":
        labelled = source.map_batches(
            Predictor,
            fn_constructor_args=(checkpoint, out, inference, threads, thresholds, rules.image_share),
            batch_size=None,
            batch_format="numpy",
            **options,
        )
    else:

        def apply(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
            def one(image_id: str) -> np.ndarray:
                prediction = _read_png(join(out, "predictions", f"{image_id}.png"))
                confidence = decode_confidence(_read_png(join(out, "confidence", f"{image_id}.png")))
                label = threshold_top1(prediction, confidence, thresholds, rules.image_share)
                return _write_label(out, image_id, label, classes)

            with ThreadPoolExecutor(4) as pool:
                return {"image_id": block["image_id"], "class_pixels": np.stack(list(pool.map(one, block["image_id"])))}

        labelled = source.map_batches(apply, batch_size=None, batch_format="numpy", num_cpus=1)
    pixels: dict[str, list[int]] = {}
    blocks = labelled.iter_batches(batch_size=None, batch_format="numpy")
    for block in track(blocks, table.num_rows, "threshold", size=lambda b: len(b["image_id"])):
        for image_id, counts in zip(block["image_id"], block["class_pixels"], strict=True):
            pixels[str(image_id)] = counts.tolist()

    write_dataset(out, _manifest(table, sizes, pixels), classes)
    kept = np.sum(list(pixels.values()), axis=0)
    shares = Shares(kept, histogram.sum(1), thresholds)
    Console().print(share_table(classes.names, shares))
    return shares


def list_images(images: str, split: str | None) -> pa.Table:
    """`image_id`, `image_uri` (absolute), `dataset` and `split` of the images of a dataset directory or a bare folder.

    Raises DatasetError where there are none or an id would lead out of the output folder.
    """
    base = images if "://" in images else os.path.abspath(images)
    if exists(join(base, "manifest.parquet")):
        rows = read_manifest(base, split)
        uris = [resolve(uri, base) for uri in rows["image_uri"].to_pylist()]
        table = rows.select(["image_id", "dataset", "split"]).append_column("image_uri", pa.array(uris, pa.string()))
    else:
        found = files(base, IMAGE_SUFFIXES)
        names = [image_id for image_id, _ in found]
        if len(set(names)) < len(names):
            twice = next(name for name, n in Counter(names).items() if n > 1)
            raise DatasetError(f"{images}: two images are called {twice!r}; an id must be unique without its extension")
        table = pa.table(
            {
                "image_id": names,
                "image_uri": [uri for _, uri in found],
                "dataset": [posixpath.basename(base.rstrip("/"))] * len(names),
                "split": ["train"] * len(names),
            }
        )
    for image_id in table["image_id"].to_pylist():
        if posixpath.isabs(image_id) or ".." in image_id.split("/"):
            raise DatasetError(f"{images}: image id {image_id!r} would lead out of the output folder")
    return table


def _manifest(table: pa.Table, sizes: dict[str, tuple[int, int]], pixels: dict[str, list[int]]) -> pa.Table:
    ids = table["image_id"].to_pylist()
    columns = {
        "image_id": ids,
        "image_uri": table["image_uri"],
        "label_uri": [f"labels/{i}.png" for i in ids],
        "confidence_uri": [f"confidence/{i}.png" for i in ids],
        "height": [sizes[i][0] for i in ids],
        "width": [sizes[i][1] for i in ids],
        "class_pixels": [pixels[i] for i in ids],
        "dataset": table["dataset"],
        "split": table["split"],
    }
    return pa.table({name: columns[name] for name in PSEUDO_MANIFEST.names}, schema=PSEUDO_MANIFEST)


def _palette_image(label: np.ndarray, classes: Classes) -> Image.Image:
    image = Image.fromarray(label)
    colours = np.zeros((256, 3), np.uint8)
    colours[: len(classes)] = classes.palette
    image.putpalette(colours.tobytes())
    return image


def _write_label(out: str, image_id: str, label: np.ndarray, classes: Classes) -> np.ndarray:
    """Write a pseudo-label; returns its pixels per class."""
    _write_png(join(out, "labels", f"{image_id}.png"), _palette_image(label, classes))
    return np.bincount(label.ravel(), minlength=256)[: len(classes)]


def _write_png(uri: str, image: Image.Image) -> None:
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=1)
    write_bytes(uri, buffer.getvalue())


def _read_png(uri: str) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(read_bytes(uri))))


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """Pseudo-label a dataset or a folder of images with a checkpoint."""

    checkpoint: str
    """A run's model directory, or one of its checkpoints."""
    images: str
    """A dataset directory, or a folder or URI of images."""
    out: str
    """Dataset directory to write."""
    split: str | None = None
    """Split of a dataset directory; all its images without it."""
    rules: PseudoLabel = PseudoLabel()
    inference: Inference = Inference()


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    arguments = tyro.cli(Arguments, args=argv, prog="udaseg pseudo-label", config=(tyro.conf.AvoidSubcommands,))
    try:
        pseudo_label(**{f.name: getattr(arguments, f.name) for f in dataclasses.fields(arguments)})
    except (DatasetError, CheckpointError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"pseudo-labels: {arguments.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
