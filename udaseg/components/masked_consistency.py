"""Masked image consistency: patches of the target are hidden, and the student tells what lies under them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from udaseg.components.augment import JitterForm, strong
from udaseg.components.drawn import on_device
from udaseg.losses.segmentation import Reduction, output_cross_entropy
from udaseg.models.segmenter import Segmenter
from udaseg.ranges import Jitter, NonNegative, Pixels, Share
from udaseg.rng import uniforms
from udaseg.types import Batch, Loss


def patch_mask(image: Tensor, index: Tensor, *, block: int, ratio: float, seed: int) -> Tensor:
    """MIC's mask: square patches of each image, in a grid, are hidden with probability `ratio`.

    Source: MIC (2212.01322), eq. 3, and `BlockMaskGenerator` of lhoyer/MIC, which draws a grid of round(side / block)
    cells, at least one, for each sample and stretches it over the image: in a side that is no multiple of `block` the
    patches are a little larger or smaller.

    Args:
        image: (B, 3, H, W), for its size and device.
        index: (B,) global sample indices.
        block: side of a patch in pixels.
        ratio: share of hidden patches, in [0, 1].
        seed: key of the run and stage.

    Returns:
        (B, H, W) bool, True where the pixel is shown.
    """
    height, width = image.shape[-2:]
    rows, columns = (max(1, round(side / block)) for side in (height, width))
    drawn = uniforms(seed, index.numpy(), "patch_mask", rows * columns).reshape(-1, rows, columns)
    shown = on_device(drawn >= ratio, image.device)
    row = torch.arange(height, device=image.device) * rows // height
    column = torch.arange(width, device=image.device) * columns // width
    return shown[:, row[:, None], column]


@dataclass(frozen=True, kw_only=True)
class MIC:
    """Masked image consistency: the student tells what it cannot see, most patches of a target image being hidden.

    Source: MIC (2212.01322; lhoyer/MIC). A part of any method with a teacher, which sees the whole image.
    """

    weight: NonNegative = 0.0
    """Of the masked cross-entropy; 1 in MIC, 0 = off."""
    block: Pixels = 64
    """Side of a patch in pixels."""
    ratio: Share = 0.7
    """Share of hidden patches, in [0, 1]."""
    jitter: Jitter = 0.2
    """Strength of the colour jitter, drawn anew for this view."""
    jitter_form: JitterForm | None = None
    """See `udaseg.components.augment.strong`; None = the method's own."""
    blur_probability: Share = 0.5
    """Share of images that are blurred."""
    images: Literal["target", "both"] = "target"
    """What is masked. "both": of every other sample the source image, which its true label teaches, in place of the
    target's; the authors' on ACDC and Dark Zurich, where a step masks the first image of each domain."""

    def losses(
        self,
        student: Segmenter,
        source: Batch,
        target: Batch,
        label: Tensor,
        weight: Tensor,
        *,
        seed: int,
        reduction: Reduction,
        jitter_form: JitterForm = "blend",
    ) -> Iterator[tuple[Loss, ...]]:
        """The term on the teacher's (B, H, W) labels and weights, a graph of its own; nothing where it is off.

        `jitter_form` is the method's own.
        """
        if not self.weight:
            return
        image = target.image
        if self.images == "both":
            swapped = (target.index % 2 == 0)[:, None, None].to(image.device, non_blocking=True)
            image = torch.where(swapped[:, None], source.image, image)
            label = torch.where(swapped, source.labels, label)
            weight = weight.masked_fill(swapped, 1)
        shown = patch_mask(image, target.index, block=self.block, ratio=self.ratio, seed=seed)
        view = strong(
            image,
            target.index,
            seed=seed,
            purpose="masked",
            jitter=self.jitter,
            blur_probability=self.blur_probability,
            form=self.jitter_form or jitter_form,
        )
        image = torch.where(shown[:, None], view, student.mean)  # hidden pixels are 0 once normalised
        out = student(image, "target", target.index)
        yield (Loss("masked_ce", output_cross_entropy(out, label, weight, reduction=reduction), self.weight),)
