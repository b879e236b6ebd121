"""The plan of a stage's samples: one sample is a pure function of (seed, global sample index).

The index decides which image of each stream is drawn, and which crop of it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from PIL import Image

from udaseg.data.confidence import decode_distribution, distribution_size, encode_distribution
from udaseg.data.index import open_index
from udaseg.data.resampling import Box, resample
from udaseg.errors import DatasetError
from udaseg.rng import keyed, permute
from udaseg.types import IGNORE, Resample, Sampling


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Where one stream of a plan draws its images, and how."""

    directory: str
    """Dataset directory, with its index."""
    manifest: str = ""
    """Its digest, with which the plan was made; "" = it is not looked at."""
    split: str = "train"
    labelled: bool
    """Whether labels are read."""
    soft: bool = False
    """Whether their confidence is read too."""
    distribution: bool = False
    """Whether the probabilities of all classes are read too."""
    prior: str | None = None
    """Dataset directory whose spatial prior goes with each crop; None = none does."""
    candidates: bool = False
    """Whether pixels that may be of several classes keep an id, see `udaseg.data.classes.Classes.unions`."""
    sampling: Sampling = "uniform"
    rare_temperature: float = 0.01
    rare_min_pixels: int = 3000
    rare_classes: tuple[int, ...] = ()
    rare_min_crop_pixels: int = 1500
    short_side: int | None = None
    """In place of the plan's."""
    crop: tuple[int, int] | None = None
    """In place of the plan's."""
    resample: Resample | None = None
    """In place of the plan's."""
    max_class_share: float = 1.0
    """Of a crop's labelled pixels that one class may hold; below 1 it must show two classes too."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All samples of a stage."""

    seed: int
    """Key of the run and stage."""
    batch_size: int
    """Samples a step over all workers."""
    steps: int
    crop: tuple[int, int]
    """Height and width in pixels."""
    short_side: int
    """Pixels of the short side after the resize, before the random scale."""
    scale: tuple[float, float]
    resample: Resample = "antialias"
    streams: Mapping[str, StreamPlan]

    def load(self, index: int) -> dict[str, np.ndarray]:
        """The sample at a global index: `<stream>_image` (h, w, 3) uint8; if labelled, `<stream>_label` (h, w) uint8;
        if soft, `<stream>_confidence` (h, w) uint16, see `udaseg.data.confidence.encode_confidence`; with the
        probabilities of all classes `<stream>_distribution` (K, h / 8, w / 8) uint16, see `encode_distribution` there;
        with a spatial prior that of the crop's place, `<stream>_prior`, likewise; with candidates `<stream>_candidates`
        (U + 1, K) uint8, see `udaseg.data.classes.Classes.candidates`.

        Raises DatasetError, naming the file, where one cannot be read or was changed after the dataset was made.
        """
        sample: dict[str, np.ndarray] = {"index": np.int64(index)}  # type: ignore[dict-item]
        for name, stream in self.streams.items():
            row, rare = draw_row(stream, index, self.seed, name)
            dataset = open_index(stream.directory)
            image = Image.fromarray(dataset.image(row))
            label = Image.fromarray(dataset.train_ids(row, unions=stream.candidates)) if stream.labelled else None
            rng, crop = keyed(self.seed, index, f"{name}.crop"), stream.crop or self.crop
            for attempt in range(10):
                box, cropped = self._draw_crop(image.size, label, stream, rng)
                if rare is None or cropped is None or attempt == 9:
                    break
                if int((cropped == rare).sum()) >= stream.rare_min_crop_pixels:
                    break
            sample[f"{name}_image"] = resample(image, box, crop, stream.resample or self.resample)
            if cropped is not None:
                sample[f"{name}_label"] = cropped
            if stream.soft:
                confidence = Image.fromarray(dataset.confidence(row))
                sample[f"{name}_confidence"] = _resized(confidence, box, crop)
            if stream.distribution:
                code = dataset.distribution(row)
                sample[f"{name}_distribution"] = _crop_planes(decode_distribution(code), image.size, box, crop)
            if stream.prior is not None:
                planes = open_index(stream.prior).spatial_prior()
                sample[f"{name}_prior"] = _crop_planes(planes, image.size, box, crop)
            if stream.candidates:
                sample[f"{name}_candidates"] = dataset.classes_of(row).candidates()
        return sample

    def empty(self) -> dict[str, np.ndarray]:
        """A row that only fills the last block; its index is -1."""
        sample: dict[str, np.ndarray] = {"index": np.int64(-1)}  # type: ignore[dict-item]
        for name, stream in self.streams.items():
            crop = stream.crop or self.crop
            sample[f"{name}_image"] = np.zeros((*crop, 3), np.uint8)
            if stream.labelled:
                sample[f"{name}_label"] = np.full(crop, IGNORE, np.uint8)
            if stream.soft:
                sample[f"{name}_confidence"] = np.zeros(crop, np.uint16)
            for column, on in (("distribution", stream.distribution), ("prior", stream.prior is not None)):
                if on:
                    classes = len(open_index(stream.directory).classes)
                    sample[f"{name}_{column}"] = np.zeros((classes, *distribution_size(*crop)), np.uint16)
            if stream.candidates:
                sample[f"{name}_candidates"] = open_index(stream.directory).classes.candidates()
        return sample

    def _draw_crop(
        self, size: tuple[int, int], label: Image.Image | None, stream: StreamPlan, rng: np.random.Generator
    ) -> tuple[Box, np.ndarray | None]:
        """The box of a random crop and its label; drawn again, nine times at most, while one class holds too much."""
        crop = stream.crop or self.crop
        for _ in range(10):
            box = self._crop_box(size, stream.short_side or self.short_side, crop, rng)
            if label is None:
                return box, None
            cropped = _resized(label, box, crop)
            if stream.max_class_share >= 1:
                break
            pixels = np.bincount(cropped.ravel(), minlength=IGNORE + 1)[:IGNORE]
            if np.count_nonzero(pixels) > 1 and pixels.max() < stream.max_class_share * pixels.sum():
                break
        return box, cropped

    def _crop_box(self, size: tuple[int, int], short_side: int, crop: tuple[int, int], rng: np.random.Generator) -> Box:
        """A random crop of a random scale, in pixels of the original image, never larger than the image."""
        width, height = size
        factor = rng.uniform(*self.scale) * short_side / min(width, height)
        factor = max(factor, crop[0] / height, crop[1] / width)
        box_height, box_width = crop[0] / factor, crop[1] / factor
        more = 1 if factor == 1 else 1e-9  # at its own size no pixel is made of others: whole places, the last one too
        top, left = rng.uniform(0, height - box_height + more), rng.uniform(0, width - box_width + more)
        if factor == 1:
            top, left = math.floor(top), math.floor(left)
        return left, top, min(left + box_width, width), min(top + box_height, height)


def draw_row(stream: StreamPlan, index: int, seed: int, name: str) -> tuple[int, int | None]:
    """The manifest row that global sample `index` takes from a stream, and the class it was drawn for, if for one.

    "Uniform" is a permutation of the split per pass, so that every image is seen once before any is seen twice. The
    others draw a class and then an image that has it.

    Raises DatasetError where the dataset is another than the plan was made for.
    """
    table = open_index(stream.directory)
    if stream.manifest not in ("", table.manifest):
        raise DatasetError(f"{stream.directory}: was made anew while it was trained on; begin another run")
    start, stop = table.rows(stream.split)
    if stream.sampling == "uniform":
        past, position = divmod(index, stop - start)
        return start + int(permute(np.array([position]), stop - start, seed, name, past)[0]), None
    rare = stream.sampling == "rare_class"
    if rare:
        rule = stream.rare_temperature, stream.rare_min_pixels, stream.rare_classes
        try:
            probability, rows = table.rare_classes(stream.split, *rule)
        except DatasetError as error:
            raise DatasetError(f"{error}; lower data.{name}.rare_min_pixels") from None
    else:
        probability, rows = table.balanced_classes(stream.split)
    rng = keyed(seed, index, f"{name}.{stream.sampling}")
    chosen = int(rng.choice(len(probability), p=probability))
    return int(rows[chosen][rng.integers(len(rows[chosen]))]), chosen if rare else None


def _crop_planes(planes: np.ndarray, size: tuple[int, int], box: Box, crop: tuple[int, int]) -> np.ndarray:
    """The (K, h, w) codes of what (K, ., .) probabilities over a whole image have in a crop of it."""
    columns, rows = planes.shape[2] / size[0], planes.shape[1] / size[1]
    left, top = box[0] * columns, box[1] * rows
    right, bottom = min(box[2] * columns, planes.shape[2]), min(box[3] * rows, planes.shape[1])
    cells = distribution_size(*crop)
    images = [Image.fromarray(plane) for plane in planes]
    crops = [_resized(plane, (left, top, right, bottom), cells, Image.Resampling.BILINEAR) for plane in images]
    return encode_distribution(np.stack(crops))


def _resized(
    plane: Image.Image, box: Box, crop: tuple[int, int], how: Image.Resampling = Image.Resampling.NEAREST
) -> np.ndarray:
    return np.asarray(plane.resize((crop[1], crop[0]), resample=how, box=box))
