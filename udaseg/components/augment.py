"""Augmentation on the device with Kornia, keyed per sample: the result does not depend on who else is in the batch.

What is drawn stays on the host, which so knows whom to flip, jitter and blur without asking; Kornia moves it.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Literal

import kornia
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.rng import keyed, uniforms
from udaseg.types import IGNORE, Batch

JitterForm = Literal["blend", "hsv"]
BLUR_KERNEL = (7, 7)


@contextlib.contextmanager
def full_precision() -> Iterator[None]:
    """Products of matrices without TF32, whose eleven bits are up to half a pixel of an image of 1024."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


def _draws(index: Tensor, seed: int, purpose: str, count: int) -> Tensor:
    """(count, B) floats in [0, 1), on the host."""
    return torch.from_numpy(uniforms(seed, index.numpy(), purpose, count).T.copy()).float()


def _below(drawn: Tensor, probability: float) -> Tensor:
    """The samples that drew less than a probability, on the host."""
    return torch.from_numpy(np.flatnonzero(drawn.numpy() < np.float32(probability)))


@full_precision()
def weak(batch: Batch, *, seed: int, purpose: str, flip: float = 0.5, rotation: float = 0.0) -> Batch:
    """The geometric view: image, label and weight are flipped and rotated together, other planes are flipped alone.

    Args:
        batch: label, weight, distribution and prior may be None.
        seed: key of the run and stage.
        purpose: key of the stream, so that source and target of one sample differ.
        flip: probability of a horizontal flip.
        rotation: largest angle in degrees; what turns in from outside is labelled 255 with weight 0.
    """
    u_flip, u_angle = _draws(batch.index, seed, f"weak.{purpose}", 2)
    planes = {"image": batch.image, "label": batch.label, "weight": batch.weight, "distribution": batch.distribution}
    planes["prior"] = batch.prior
    flipped = _below(u_flip, flip)
    if len(flipped):
        flipped = flipped.to(batch.image.device, non_blocking=True)
        for name, plane in planes.items():
            if plane is not None:
                planes[name] = plane.index_copy(0, flipped, plane[flipped].flip(-1))
    if rotation:
        height, width = batch.image.shape[-2:]
        center = torch.tensor([[(width - 1) / 2, (height - 1) / 2]]).expand(len(u_angle), -1)
        matrix = kornia.geometry.transform.get_rotation_matrix2d(
            center, (2 * u_angle - 1) * rotation, torch.ones_like(center)
        )
        matrix = matrix.to(batch.image.device, non_blocking=True)
        for name, plane in planes.items():
            if plane is not None and name not in ("distribution", "prior"):  # `Data.check` rotates no images with them
                planes[name] = _warp(plane, matrix, is_label=name == "label")
    return replace(batch, **planes)  # type: ignore[arg-type] # the image is never None


def balanced_crop(batch: Batch, label: Tensor, *, size: tuple[int, int], max_class_share: float, seed: int) -> Batch:
    """Of ten random crops of each image the one whose classes are many and alike in size: the largest product of them.

    One that shows a single class, or one too much, is taken where all are so, the first. Source: SePiCo (2204.08808),
    which judges crops of the target by the teacher's labels.

    Args:
        batch: images (B, 3, H, W) at least as large as the crop; label and weight may be None.
        label: (B, H, W) int64 train ids that judge, 255 = ignore.
        size: height and width of the crop in pixels.
        max_class_share: share of the labelled pixels of a crop that a class must stay below, in (0, 1].
        seed: key of the run and stage.
    """
    rows, columns = (whole - part for whole, part in zip(label.shape[-2:], size, strict=True))
    if rows < 0 or columns < 0:
        raise ValueError(f"crops of {size} do not fit into images of {tuple(label.shape[-2:])}")
    generators = (keyed(seed, number, "balanced_crop") for number in batch.index.tolist())
    drawn = [[(int(g.integers(rows + 1)), int(g.integers(columns + 1))) for _ in range(10)] for g in generators]
    at = torch.tensor(drawn).to(label.device, non_blocking=True)  # (B, 10, 2): all draws, since the device judges them
    crops = label[_window(at, size)]
    draw = torch.arange(crops[..., 0, 0].numel(), device=label.device).view(*at.shape[:2], 1, 1)
    slot = (draw * (IGNORE + 1) + crops).flatten()
    counts = torch.zeros(draw.numel() * (IGNORE + 1), device=label.device)
    counts.index_add_(0, slot, torch.ones((), device=label.device).expand(len(slot)))
    seen = counts.view(*at.shape[:2], IGNORE + 1)[..., :IGNORE]
    several = (seen > 1).sum(2) > 1
    good = several & (seen.amax(2) < max_class_share * seen.sum(2))
    score = torch.where(good, seen.clamp_min(1).log().sum(2), 0)
    best = score.argmax(1)
    sample, row, column = _window(at.gather(1, best[:, None, None].expand(-1, 1, 2)), size)
    image = batch.image[sample, :, row, column][:, 0].movedim(-1, 1)
    label_, weight = (None if x is None else x[sample, row, column][:, 0] for x in (batch.label, batch.weight))
    return replace(batch, image=image, label=label_, weight=weight)


def _window(at: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
    """What cuts crops of a size (h, w) from (B, N, 2) top left corners on out of (B, H, W) planes: (B, N, h, w)."""
    sample = torch.arange(len(at), device=at.device)[:, None, None, None]
    row, column = (at[..., i, None] + torch.arange(size[i], device=at.device) for i in (0, 1))
    return sample, row[..., :, None], column[..., None, :]


@full_precision()
def random_resized_crop(
    image: Tensor,
    label: Tensor,
    index: Tensor,
    *,
    size: tuple[int, int],
    scale: tuple[float, float],
    seed: int,
    purpose: str,
) -> tuple[Tensor, Tensor]:
    """A crop of random area and shape of each image, at one size: images bilinearly, labels by nearest neighbour.

    As torchvision and Albumentations have it, sides being in a ratio of 3/4 to 4/3; drawn anew, nine times at most,
    where it does not fit into the image, and cut to the image then.

    Args:
        image: (B, 3, H, W).
        label: (B, H, W) int64.
        index: (B,) global sample indices.
        size: height and width of the crops in pixels.
        scale: least and largest share of the image's area.
        seed: key of the run and stage.
        purpose: key of the use.
    """
    whole = (rows, columns) = image.shape[-2:]
    matrices = np.zeros((len(image), 2, 3), np.float32)
    for matrix, number in zip(matrices, index.tolist(), strict=True):
        rng = keyed(seed, number, f"resized_crop.{purpose}")
        for _ in range(10):
            area = rng.uniform(*scale) * rows * columns
            ratio = math.exp(rng.uniform(math.log(3 / 4), math.log(4 / 3)))
            height, width = math.sqrt(area / ratio), math.sqrt(area * ratio)
            if height <= rows and width <= columns:
                break
        for axis, (side, part) in enumerate(zip(whole, (min(height, rows), min(width, columns)), strict=True)):
            share, place = part / side, rng.uniform(0, side - part) / side
            matrix[1 - axis, 1 - axis], matrix[1 - axis, 2] = share, 2 * place + share - 1
    theta = on_device(matrices, image.device)
    grid = F.affine_grid(theta.to(image.dtype), [len(image), 1, *size], align_corners=False)
    view = F.grid_sample(image, grid, mode="bilinear", padding_mode="border", align_corners=False)
    ids = F.grid_sample(
        label[:, None].to(image.dtype), grid, mode="nearest", padding_mode="border", align_corners=False
    )
    return view, ids[:, 0].long()


def _warp(plane: Tensor, matrix: Tensor, *, is_label: bool) -> Tensor:
    """Images bilinearly, maps by nearest neighbour; labels are shifted by one so that the outside reads 255."""
    image = plane.ndim == 4
    x = plane if image else plane[:, None].float()
    if is_label:
        x = IGNORE - x
    warped = kornia.geometry.transform.warp_affine(
        x, matrix, (x.shape[-2], x.shape[-1]), mode="bilinear" if image else "nearest", align_corners=True
    )
    if image:
        return warped
    return (IGNORE - warped[:, 0]).round().long() if is_label else warped[:, 0]


def jitter_hsv(
    image: Tensor,
    brightness: Tensor,
    contrast: Tensor,
    saturation: Tensor,
    hue: Tensor,
    orders: Sequence[Sequence[int]],
) -> Tensor:
    """Colour jitter as Kornia 0.5.8 has it: brightness is added, contrast multiplied, saturation and hue are HSV's.

    Each of the four clamps to [0, 1], so that their order matters. Source: `ColorJitter.apply_transform` of that
    version, which DAFormer, HRDA and MIC pin.

    Args:
        image: (B, 3, H, W) in [0, 1].
        brightness: (B,) 1 + what is added.
        contrast: (B,) factors.
        saturation: (B,) factors.
        hue: (B,) in turns, -0.5 to 0.5.
        orders: of each sample, 0 = brightness, 1 = contrast, 2 = saturation, 3 = hue.
    """

    def change(x: Tensor, which: int, i: int) -> Tensor:
        if which == 0:
            return kornia.enhance.adjust_brightness(x, brightness[i] - 1)
        if which == 1:
            return kornia.enhance.adjust_contrast(x, contrast[i])
        if which == 2:
            return kornia.enhance.adjust_saturation(x, saturation[i])
        return kornia.enhance.adjust_hue(x, hue[i] * 2 * math.pi)

    samples = []
    for i, order in enumerate(orders):
        x = image[i : i + 1]
        for which in order:
            x = change(x, which, i).clamp(0, 1)
        samples.append(x)
    return torch.cat(samples)


def strong(
    image: Tensor,
    index: Tensor,
    *,
    seed: int,
    purpose: str,
    jitter: float = 0.25,
    jitter_probability: float = 0.8,
    hue: float | None = None,
    grey_probability: float = 0.0,
    blur_probability: float = 0.5,
    form: JitterForm = "blend",
) -> Tensor:
    """The photometric view of the DACS line: colour jitter, then Gaussian blur with sigma in [0.15, 1.15].

    SDCA's line has grey images besides, and another strength of the hue.

    The authors of DAFormer, HRDA and MIC draw once a batch whether it is jittered and blurred, here each sample draws.

    Args:
        image: (B, 3, H, W) in [0, 1].
        index: (B,) global sample indices.
        seed: key of the run and stage.
        purpose: key of the use, so that two strong views of one sample differ.
        jitter: strength of the change in brightness, contrast, saturation and hue; 0 to 0.5.
        jitter_probability: share of images that are jittered.
        hue: strength of the change in hue alone, where it is another; 0.5 is half of the circle.
        grey_probability: share of images that lose their colours, jittered or not.
        blur_probability: share of images that are blurred.
        form: "blend" as Kornia has it since 0.6: brightness, contrast and saturation are factors that blend with black,
            the mean grey and grey, in this order, then hue. "hsv" as Kornia 0.5.8, which that line pins, has it, see
            `jitter_hsv`.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    u = _draws(index, seed, f"strong.{purpose}", 7)
    out = image
    chosen = _below(u[0], jitter_probability)
    if jitter and len(chosen):
        there = chosen.to(image.device, non_blocking=True)
        brightness, contrast, saturation = 1 + jitter * (2 * u[2:5, chosen] - 1)
        turn = (jitter if hue is None else hue) * (2 * u[5, chosen] - 1)
        if form == "hsv":
            numbers = index[chosen].tolist()
            orders = [keyed(seed, i, f"strong.{purpose}", "order").permutation(4).tolist() for i in numbers]
            x = jitter_hsv(out[there], brightness, contrast, saturation, turn, orders)
        else:
            x = kornia.enhance.adjust_brightness_accumulative(out[there], brightness)
            x = kornia.enhance.adjust_contrast_with_mean_subtraction(x, contrast)
            x = kornia.enhance.adjust_saturation_with_gray_subtraction(x, saturation)
            x = kornia.enhance.adjust_hue(x, turn * 2 * math.pi).clamp(0, 1)
        out = out.index_copy(0, there, x)
    if grey_probability:
        grey = _below(_draws(index, seed, f"grey.{purpose}", 1)[0], grey_probability)
        there = grey.to(image.device, non_blocking=True)
        out = out.index_copy(0, there, kornia.color.rgb_to_grayscale(out[there]).expand(-1, 3, -1, -1))
    blurred = _below(u[1], blur_probability)
    if len(blurred):
        sigma = (0.15 + u[6, blurred])[:, None].expand(-1, 2)
        there = blurred.to(image.device, non_blocking=True)
        border = "reflect" if min(out.shape[-2:]) > BLUR_KERNEL[0] // 2 else "replicate"  # less has nothing to reflect
        out = out.index_copy(0, there, kornia.filters.gaussian_blur2d(out[there], BLUR_KERNEL, sigma, border))
    return out
