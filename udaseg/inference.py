"""Prediction of whole images: at the size the network was trained at, whole or in overlapping windows."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.models.segmenter import Domain, Segmenter
from udaseg.windows import window_starts


@torch.inference_mode()
def predict(
    network: Segmenter,
    image: Tensor,
    *,
    short_side: int,
    window: tuple[int, int] | None = None,
    overlap: float = 0.5,
    domain: Domain = "target",
) -> Tensor:
    """Class probabilities of images, at their native size.

    Args:
        network: in evaluation mode.
        image: (B, 3, H, W) in [0, 1].
        short_side: pixels of the short side that the network sees.
        window: height and width in pixels of sliding windows; None = the whole image at once.
        overlap: share of a window that the next one covers again, in [0, 1).
        domain: which domain's parts of the network are used.

    Returns:
        (B, K, H, W) float probabilities.
    """
    height, width = image.shape[-2:]
    factor = short_side / min(height, width)
    if factor != 1:
        size = (round(height * factor), round(width * factor))
        image = F.interpolate(image, size=size, mode="bilinear", align_corners=False, antialias=True)
    logits = network(image, domain).logits if window is None else _slide(network, image, window, overlap, domain)
    if factor != 1:
        logits = F.interpolate(logits, size=(height, width), mode="bilinear", align_corners=False)
    return logits.softmax(1)


def _slide(network: Segmenter, image: Tensor, window: tuple[int, int], overlap: float, domain: Domain) -> Tensor:
    """The mean of the logits of all windows that cover a pixel."""
    height, width = image.shape[-2:]
    total = image.new_zeros(image.shape[0], network.num_classes, height, width)
    count = image.new_zeros(1, 1, height, width)
    for top in window_starts(height, window[0], overlap):
        for left in window_starts(width, window[1], overlap):
            here = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            total[here] += network(image[here], domain).logits
            count[here] += 1
    return total / count
