"""The source in the look of the target: every training image translated once, before a stage that is `translated_by`.

    images/<image_id>.png   the translated images, each of the size that it had
    manifest.parquet ...    a dataset directory with the labels of the source, which stay where they are
    job/                    the job's state: the listing, and what is done

Work is done in blocks of images, each entered in the job's state when all its files are written (`udaseg.jobs.ledger`).
A run that was killed goes on when it is resumed, and ends with the same bytes.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image

from udaseg.checkpoints.directory import STATE_FILE
from udaseg.checkpoints.tensor_files import read_state
from udaseg.config import Stage
from udaseg.data.classes import read_classes
from udaseg.data.images import read_image, require_proportions
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.manifest import MANIFEST, digest, read_manifest, with_columns, write_dataset
from udaseg.data.storage import absolute, exists, join, resolve
from udaseg.errors import CheckpointError
from udaseg.job_config import Inference
from udaseg.jobs.ledger import Ledger, open_ledger
from udaseg.jobs.pseudo_label.phases import run_phase
from udaseg.jobs.pseudo_label.tasks import (
    THREADS,
    clear_scratch_folder,
    each_once,
    in_order,
    scratch_folder,
    write_png,
)
from udaseg.jobs.ray_session import ensure_ray, lazily
from udaseg.jobs.resources import actor_pool
from udaseg.jobs.run_directory import SNAPSHOT, read_registered
from udaseg.models.inference import answering_device, resized, to_pixels
from udaseg.types import DepthRange

BLOCK_SIZE = 32
"""Images that are committed together."""


@dataclass(frozen=True, kw_only=True)
class Translation:
    """All that a task must know of the job."""

    stage: Stage
    """That has learnt to translate."""
    checkpoint: str
    out: str
    ledger: Ledger
    gpu: bool
    depth_range: DepthRange | None = None
    """With which the source's images are read."""

    @property
    def scratch(self) -> str | None:
        return scratch_folder(self.out)

    @property
    def size(self) -> dict[str, Any]:
        """How the generator has seen the source's images: the arguments of `udaseg.models.inference.resized`."""
        data, stream = self.stage.data, self.stage.data.source
        assert stream is not None  # it has learnt from it
        return {
            "short_side": stream.short_side or data.short_side,
            "resample": stream.resample or data.resample,
        }


class TranslateActor:
    """Ray Data actor: translates the images of a block, one after the other, beside threads that read and write."""

    def __init__(self, work: Translation, threads: int) -> None:
        torch.set_num_threads(threads)
        self.work = work
        self.device = answering_device(work.gpu)
        uri = join(work.checkpoint, STATE_FILE)
        try:
            self.generator = work.stage.method.translator(read_state(uri)["method"]).to(self.device)
        except RuntimeError as error:
            raise CheckpointError(f"{uri}: not of stage {work.stage.name!r}: {' '.join(str(error).split())}") from error

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        return each_once(self.work, "translate", batch, self._block)

    def _block(self, block: int) -> dict[str, Any]:
        rows = self.work.ledger.rows(block)
        with ThreadPoolExecutor(THREADS) as pool:
            images = in_order(pool, lambda row: read_image(row["image_uri"], self.work.depth_range), rows, THREADS)
            writes = [
                pool.submit(self._write, row["image_id"], self.translated(image, row["image_uri"]))
                for row, image in zip(rows, images, strict=True)
            ]
            for write in writes:
                write.result()
        return {"image_id": [row["image_id"] for row in rows]}

    @torch.inference_mode()
    def translated(self, image: np.ndarray, uri: str) -> np.ndarray:
        """(H, W, 3) uint8 -> the same, of the size that it has: what the generator changes of it is enlarged."""
        height, width, _ = image.shape
        require_proportions(height, width, self.work.size["short_side"], uri)
        whole = to_pixels(np.array(image[None]), self.device)
        small = resized(whole, **self.work.size)
        change = self.generator(small) - small
        change = torch.nn.functional.interpolate(change, size=(height, width), mode="bilinear", align_corners=False)
        pixels = ((whole + change).clamp(0, 1) * 255).round().to(torch.uint8)
        return pixels[0].permute(1, 2, 0).cpu().numpy()

    def _write(self, image_id: str, pixels: np.ndarray) -> None:
        write_png(join(self.work.out, "images", f"{image_id}.png"), Image.fromarray(pixels), self.work.scratch)


def translate(stage: Stage, directory: str, *, source: str, out: str, inference: Inference) -> None:
    """Translate the training images of a source, or what is left of them, with the last generator of a stage.

    Args:
        stage: whose method has learnt to translate.
        directory: where the stage keeps its checkpoints.
        source: dataset directory.
        out: dataset directory to write.
        inference: its actors, and whether they have a GPU each.

    Raises:
        CheckpointError: the stage has no checkpoint any more, or it is not its own.
        DatasetError: an image cannot be read, or `out` was begun with other images or another checkpoint.
    """
    if not exists(join(directory, SNAPSHOT)):
        raise CheckpointError(f"{directory}: its checkpoints are gone, and with them the generator; start a new run")
    step, checkpoint = read_registered(directory)[-1]
    source = absolute(source)
    ledger = open_ledger(
        join(out, "job"),
        lambda: list_images(source, "train"),
        block_size=BLOCK_SIZE,
        job={"stage": stage.name, "step": step, "source": digest(source)},
    )
    work = Translation(
        stage=stage,
        checkpoint=checkpoint,
        out=out,
        ledger=ledger,
        gpu=inference.gpu,
        depth_range=open_index(absolute(source)).depth_range,
    )
    ensure_ray()
    clear_scratch_folder(out)
    options, threads = actor_pool(inference)
    run_phase(
        ledger,
        "translate",
        fn=lazily(TranslateActor),
        fn_constructor_args=(work, threads),
        **options,
    )
    clear_scratch_folder(out)
    rows = read_manifest(source, "train").select(MANIFEST.names)
    images = [f"images/{image_id}.png" for image_id in rows["image_id"].to_pylist()]
    labels = [None if uri is None else resolve(uri, source) for uri in rows["label_uri"].to_pylist()]
    write_dataset(out, with_columns(rows, {"image_uri": images, "label_uri": labels}), read_classes(source))
