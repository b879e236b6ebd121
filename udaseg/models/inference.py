"""Prediction of images: at the size the network was trained at, whole or in overlapping windows, in several views."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from itertools import product
from typing import Any, Protocol, TypeVar, get_args

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.errors import ConfigError
from udaseg.models.windows import window_starts
from udaseg.types import Blend, Detail, Domain, Resample, SegOutput

Key = TypeVar("Key")


class Classifier(Protocol):
    """A `Segmenter`, or what stands for one."""

    @property
    def num_classes(self) -> int: ...

    def __call__(self, image: Tensor, domain: Domain, /, *, detail: Detail) -> SegOutput: ...


def answering_device(gpu: bool) -> torch.device:
    """Where networks of a job answer. On a GPU matrix products take TF32 then, in all of this process."""
    if gpu:
        torch.set_float32_matmul_precision("high")
    return torch.device("cuda" if gpu else "cpu")


@torch.inference_mode()
def predict(
    network: Classifier,
    image: Tensor,
    *,
    short_side: int,
    resample: Resample = "antialias",
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    blend: Blend = "mean",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    domain: Domain = "target",
) -> Tensor:
    """Class probabilities of images, at their native size.

    Args:
        network: in evaluation mode.
        image: (B, 3, H, W) in [0, 1].
        short_side: pixels of the short side that the network sees. Without a window and aligned corners both sides are
            brought to whole cells of its last level, see `resized`.
        resample: how the image is brought to that size, as in training; see `udaseg.config.Data`.
        window: height and width in pixels of sliding windows; None = the whole image at once, or windows of the
            largest size that the network takes.
        overlap: share of a window that the next one covers again, in [0, 1).
        blend: how windows that overlap are averaged: all alike, or the less the nearer a pixel is to a window's edge.
        scales: factors on `short_side`; probabilities are averaged over them.
        flip: average over the mirrored image too.
        domain: which domain's parts of the network are used.

    Returns:
        (B, K, H, W) float probabilities.
    """
    check_views(window=window, overlap=overlap, blend=blend, scales=scales, flip=flip, domain=domain)
    height, width = image.shape[-2:]
    if (largest := getattr(network, "largest", None)) is not None:
        window = largest if window is None else (min(window[0], largest[0]), min(window[1], largest[1]))
    # Windows are taken as told; the DeepLabV2 line, whose corners are aligned, trains and predicts at any size.
    fits = window is not None or getattr(network, "align_corners", False)
    cell = 1 if fits else getattr(network, "feature_stride", 1)
    total: Tensor | None = None
    views = list(product(scales, (False, True) if flip else (False,)))
    for scale, mirrored in views:
        view = resized(image.flip(-1) if mirrored else image, scale * short_side, resample, cell)
        logits = (
            network(view, domain, detail="everywhere").logits
            if window is None
            else _slide(network, view, window, overlap, domain, blend)
        )
        if isinstance(height, torch.SymInt) or logits.shape[-2:] != (height, width):
            aligned = bool(getattr(network, "align_corners", False))
            logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=aligned)
        probability = logits.softmax(1)
        probability = probability.flip(-1) if mirrored else probability
        total = probability if total is None else total.add_(probability)
    assert total is not None
    return total if len(views) == 1 else total.div_(len(views))


def check_views(
    *,
    window: Any = None,
    overlap: float = 0.5,
    blend: str = "mean",
    scales: Sequence[float] = (1.0,),
    flip: bool = False,
    domain: str = "target",
) -> None:
    """Raise ConfigError, naming it, where an argument of `predict` is outside its range."""
    if window is not None and (not isinstance(window, list | tuple) or len(window) != 2 or min(window) < 1):
        raise ConfigError(f"window is {window}; give height and width in pixels")
    if not 0 <= overlap < 1:
        raise ConfigError(f"overlap is {overlap}; it must lie in [0, 1)")
    if not isinstance(scales, list | tuple) or not scales or min(scales) <= 0:
        raise ConfigError(f"scales is {scales}; give numbers above 0, at least one, e.g. (1.0,)")
    for name, value, known in (("blend", blend, get_args(Blend)), ("domain", domain, get_args(Domain))):
        if value not in known:
            raise ConfigError(f"{name} is {value!r}; choose from {', '.join(known)}")


def resized(image: Tensor, short_side: float, resample: Resample, cell: int = 1) -> Tensor:
    """(B, 3, H, W) images in [0, 1] with a short side of so many pixels, the same image where it has them.

    Sides of four cells and more are brought to the nearest whole number of them. Of any other number each level of a
    network rounds up, so that its logits, stretched to the image, lie beside the pixels, by how much depends on the
    size: four points of mIoU at 306 columns for a network trained on crops of 240 (docs/log.md).
    """
    height, width = image.shape[-2:]
    if short_side < 4 * cell:
        cell = 1
    short_side = short_side if cell == 1 else int(short_side / cell + 0.5) * cell
    factor = short_side / torch.sym_min(height, width)
    size = (_whole(height * factor, cell), _whole(width * factor, cell))
    if not any(isinstance(side, torch.SymInt) for side in (*size, height, width)) and size == (height, width):
        return image  # but an exported network asks nothing of a size
    mode = "bicubic" if resample == "bicubic" else "bilinear"
    out = F.interpolate(image, size=size, mode=mode, align_corners=False, antialias=resample != "bilinear")
    return out.clamp(0, 1) if resample == "bicubic" else out


def _whole(length: Any, cell: int) -> Any:
    """A side of whole cells, at least one; of a size that is yet open, in tracing, as torch.export can write it."""
    cells = length / cell
    if isinstance(cells, torch.SymFloat):
        return torch.sym_max(1, torch.sym_int(cells + 0.5)) * cell
    return max(1, round(cells) if cell == 1 else int(cells + 0.5)) * cell


def _slide(
    network: Classifier, image: Tensor, window: tuple[int, int], overlap: float, domain: Domain, blend: Blend
) -> Tensor:
    """The mean of the logits of all windows that cover a pixel."""
    height, width = image.shape[-2:]
    total = image.new_zeros(image.shape[0], network.num_classes, height, width)
    count = image.new_zeros(1, 1, height, width)
    rows, columns = min(window[0], height), min(window[1], width)
    weight = (
        image.new_ones(rows, columns) if blend == "mean" else torch.outer(_taper(rows, image), _taper(columns, image))
    )
    for top in window_starts(height, window[0], overlap):
        for left in window_starts(width, window[1], overlap):
            here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            total[here] += network(image[here], domain, detail="everywhere").logits * weight
            count[here] += weight
    return total / count


def _taper(length: int, like: Tensor) -> Tensor:
    """(length,) weights that fall linearly from 1 in the middle toward, but not to, 0 at both ends."""
    position = torch.arange(length, device=like.device, dtype=like.dtype)
    return torch.minimum(position + 1, length - position) * 2 / (length + 1)


def by_size(images: Iterable[tuple[Key, np.ndarray]], batch_size: int) -> Iterator[tuple[list[Key], np.ndarray]]:
    """Batches of images of one size each, none padded, from a stream of (key, (H, W, 3) image).

    A batch is passed on as soon as it is full, so that never more than `batch_size` images of each size are held; what
    does not fill one comes last.

    Returns:
        Iterator of (keys, (B, H, W, 3)).
    """
    waiting: dict[tuple[int, ...], list[tuple[Key, np.ndarray]]] = {}
    for key, image in images:
        bucket = waiting.setdefault(image.shape, [])
        bucket.append((key, image))
        if len(bucket) == batch_size:
            yield _stack(waiting.pop(image.shape))
    for bucket in waiting.values():
        yield _stack(bucket)


def _stack(bucket: list[tuple[Key, np.ndarray]]) -> tuple[list[Key], np.ndarray]:
    keys, images = zip(*bucket, strict=True)
    return list(keys), np.stack(images)


def to_pixels(images: np.ndarray, device: torch.device) -> torch.Tensor:
    """(B, H, W, 3) uint8 images as (B, 3, H, W) floats in [0, 1] on a device."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 255
