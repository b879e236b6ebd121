"""Pixel classification losses: cross-entropy in the field's three reductions, entropy in two forms, and others."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import kornia
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from udaseg.distributed import mean_over_ranks
from udaseg.types import IGNORE, SegOutput

LovaszClasses = Literal["all", "present"]
Reduction = Literal["valid", "all", "nonzero"]
EntropyForm = Literal["shannon", "double_softmax"]
DETAIL_SHARE = 0.1
"""Of HRDA's detail crop in the loss of an output."""


def cross_entropy(
    logits: Tensor, label: Tensor, weight: Tensor | None = None, *, reduction: Reduction = "valid"
) -> Tensor:
    """Mean pixel cross-entropy; 0 where nothing is to be learned. The denominator counts the pixels of all ranks.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64 train ids, 255 = ignore.
        weight: (B, H, W) factor for each pixel's loss, >= 0. It does not enter the denominator.
        reduction: over what the mean is taken. "valid": pixels that are not ignored (torch's own, BCL, LDBE, SDCA);
            "all": every pixel, so ignored ones dilute the loss (DACS, DSP, DAFormer and their line);
            "nonzero": pixels whose loss, before it is weighted, is above 0 (LDBE's boundary stage).
    """
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none")
    weighted = loss if weight is None else loss * weight
    if reduction == "all":
        return weighted.mean()  # ranks have as many
    count = (label != IGNORE if reduction == "valid" else loss > 0).sum()
    return weighted.sum() / mean_over_ranks(count.to(loss.dtype)).clamp_min(1e-12)


def output_cross_entropy(
    out: SegOutput,
    label: Tensor,
    weight: Tensor | None = None,
    *,
    reduction: Reduction = "valid",
) -> Tensor:
    """`cross_entropy` of a network's output, in which HRDA's detail crop has `DETAIL_SHARE`.

    Source: HRDA (2204.13132), eq. 11: 0.9 of the blended prediction's loss, 0.1 of the crop's.

    Args:
        out: of a `Segmenter`.
        label, weight, reduction: see `cross_entropy`.
    """
    return with_detail(partial(cross_entropy, reduction=reduction), out, label, weight)


def with_detail(loss: Callable[..., Tensor], out: SegOutput, label: Tensor, *planes: Tensor | None) -> Tensor:
    """`loss(logits, label, *planes)` of an output, in which HRDA's detail crop, by itself, has `DETAIL_SHARE`.

    Args:
        loss: a mean over pixels; gets 255 as the label, and 0 in the planes, where the crop leaves the image.
        out: of a `Segmenter`.
        label: (B, H, W) int64.
        planes: (B, H, W), or None.
    """
    whole = loss(out.logits, label, *planes)
    if "detail_logits" not in out.aux:
        return whole
    logits, at = out.aux["detail_logits"], out.aux["detail_at"]
    size = logits.shape[-2:]
    cropped = [None if plane is None else _crops(plane, at, size, 0) for plane in planes]
    return (1 - DETAIL_SHARE) * whole + DETAIL_SHARE * loss(logits, _crops(label, at, size, IGNORE), *cropped)


def unbiased_cross_entropy(out: SegOutput, label: Tensor, old_classes: int) -> Tensor:
    """`output_cross_entropy` of labels that tell new classes apart, while an old one may be any of the old ones.

    A pixel whose label is old loses -log of the sum of the old classes' probabilities. The mean is over every pixel.

    Source: MiB (2002.00718), eq. 3, which UCD (2203.14098) keeps; `UnbiasedCrossEntropy` of fcdl94/MiB.

    Args:
        out: of a `Segmenter`.
        label: (B, H, W) int64 train ids, 255 = ignore.
        old_classes: how many classes are old; they are the first.
    """

    def joined(logits: Tensor) -> Tensor:
        return torch.cat([logits[:, :old_classes].logsumexp(1, keepdim=True), logits[:, old_classes:]], 1)

    aux = {name: joined(logits) if name == "detail_logits" else logits for name, logits in out.aux.items()}
    place = torch.where(label == IGNORE, label, (label - old_classes + 1).clamp_min(0))
    return output_cross_entropy(replace(out, logits=joined(out.logits), aux=aux), place, reduction="all")


def logit_adjusted(out: SegOutput, shares: Tensor, power: float) -> SegOutput:
    """An output whose logits are raised by power * log(share of their class), for the loss it learns by alone.

    A network trained so predicts as if each class had share ** (1 - power) of the pixels that it has: with 0 the
    frequencies of its labels stay in its predictions, with 1 all classes are alike to it.

    Source: logit adjustment (Menon et al., 2007.07314), eq. 10, there with power 1.

    Args:
        out: of a `Segmenter`.
        shares: (K,) > 0, of the classes in the labels.
        power: tau, >= 0.
    """
    shift = power * shares.log()[:, None, None]
    aux = dict(out.aux)
    if "detail_logits" in aux:
        aux["detail_logits"] = aux["detail_logits"] + shift
    return replace(out, logits=out.logits + shift, aux=aux)


def divided(out: SegOutput, temperature: float) -> SegOutput:
    """An output whose logits, HRDA's of the detail crop too, are divided by a temperature."""
    aux = {name: plane / temperature if name == "detail_logits" else plane for name, plane in out.aux.items()}
    return replace(out, logits=out.logits / temperature, aux=aux)


def _crops(plane: Tensor, at: Tensor, size: Sequence[int], fill: float) -> Tensor:
    """(B, *size) crops of a (B, H, W) plane from their (B, 2) top left corners on, filled up beyond the border."""
    plane = F.pad(plane, (0, size[1], 0, size[0]), value=fill)
    sample = torch.arange(len(plane), device=plane.device)[:, None, None]
    row, column = (at[:, i, None] + torch.arange(size[i], device=plane.device) for i in (0, 1))
    return plane[sample, row[:, :, None], column[:, None, :]]


def focal_cross_entropy(logits: Tensor, label: Tensor, *, gamma: float = 2.0) -> Tensor:
    """Mean of (1 - p)^gamma * -log p over labelled pixels, p of the label's class; 0 where nothing is to be learned.

    Source: focal loss (1708.02002), eq. 4; checked against `CrossEntropy2d` of RoyalVane/CLAN, which keeps p >= 1e-9.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64 train ids, 255 = ignore.
        gamma: >= 0; 0 = cross-entropy.
    """
    loss = F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none").clamp_max(-math.log(1e-9))
    missed = -torch.expm1(-loss)  # 1 - p, without cancellation
    count = mean_over_ranks((label != IGNORE).sum().to(loss.dtype))
    return (missed.clamp_min(1e-9) ** gamma * loss).sum() / count.clamp_min(1e-12)


def entropy(logits: Tensor, *, form: EntropyForm = "shannon") -> Tensor:
    """Mean entropy of the pixels' predicted distributions, in nats.

    Args:
        logits: (B, K, H, W).
        form: "shannon" is the entropy of p = softmax(logits), in [0, ln K]. "double_softmax" is what the released code
            of BCL (cvlab-yonsei/DASS) and LDBE computes: -sum p * log_softmax(p), the log-softmax taken of the
            probabilities; it lies in [ln(e + K - 1) - 1, ln K], never reaches 0 and has a much weaker gradient.
    """
    if form == "shannon":
        log_probability = logits.log_softmax(1)
        return -(log_probability.exp() * log_probability).sum(1).mean()
    probability = logits.softmax(1)
    return (probability.logsumexp(1) - probability.square().sum(1)).mean()


def negative_learning(logits: Tensor, place: int) -> Tensor:
    """Mean of -log(1 - p) of each pixel's class in a given place of its ranking: what the pixel is surely not.

    Source: LDBE (2110.06484), which draws the place near the middle of the ranking at each step; checked against
    `Trainer.iter` of fumyou13/LDBE. The label is complementary and heuristic, so no pixel is left out.

    Args:
        logits: (B, K, H, W).
        place: 1 = the most probable class ... K = the least.

    Raises:
        ValueError: the place lies outside 1 ... K.
    """
    if not 1 <= place <= logits.shape[1]:
        raise ValueError(f"place is {place}; it must lie in 1 ... {logits.shape[1]}, the number of classes")
    probability = logits.softmax(1)
    chosen = probability.detach().topk(place, dim=1).indices[:, -1:]
    return -(1 - probability.gather(1, chosen)).clamp(1e-5, 1).log().mean()


def reverse_cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean of -sum_k p_k log y_k, prediction and label in exchanged places: bounded where a label is wrong.

    Source: symmetric cross-entropy (1908.06112), of which this is the second half, as ProDA (2101.10979) has it: zeros
    of the one-hot label are 1e-4, so that a pixel's loss is (1 - p_y) * 9.21; checked against `rce` of microsoft/ProDA.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64 train ids, 255 = ignore.

    Returns:
        Scalar, the mean over labelled pixels of all ranks; 0 where there are none.
    """
    labelled = label != IGNORE
    probability = logits.softmax(1).clamp(1e-7, 1)
    own = probability.gather(1, label.where(labelled, 0)[:, None])[:, 0]
    loss = (probability.sum(1) - own) * -math.log(1e-4)
    return (loss * labelled).sum() / mean_over_ranks(labelled.sum().to(loss.dtype)).clamp_min(1e-12)


def uniform_divergence(logits: Tensor) -> Tensor:
    """Mean of -log p over all pixels and classes: the divergence of predictions from a uniform one, but for a constant.

    Source: CRST's MRKLD (1908.09822), as ProDA (2101.10979) has it; checked against `regular_loss` of microsoft/ProDA.
    It keeps a network that learns from its own labels from being too sure.

    Args:
        logits: (B, K, H, W).
    """
    return -logits.log_softmax(1).mean()


def lovasz_softmax(logits: Tensor, label: Tensor, *, classes: LovaszClasses = "all") -> Tensor:
    """Kornia's Lovasz-softmax loss, a surrogate of the Jaccard index, on each image's labelled pixels.

    Source: Berman et al. (1705.08790), whose code takes the mean over the classes that are present.

    Other pixels get a class of their own, which they surely are and no other pixel is: their errors are 0, so that they
    come last in Kornia's order and add nothing, and what is labelled need not be picked out.

    Args:
        logits: (B, K, H, W).
        label: (B, H, W) int64 train ids, 255 = ignore.
        classes: over which the mean is taken: "all", of which one that an image's labels lack adds its largest
            probability there, or those that are "present" in its labels.

    Returns:
        Scalar, the mean over images; an image without labels counts as 0.
    """
    count = logits.shape[1]

    def image_loss(logits: Tensor, label: Tensor) -> Tensor:
        ignored = (label == IGNORE)[:, None]
        surely = torch.zeros_like(logits[:, :1]).masked_fill(~ignored, -math.inf)
        widened = torch.cat([logits.masked_fill(ignored, -math.inf), surely], 1)
        label = label.masked_fill(ignored[:, 0], count)
        counted = logits.new_ones(count + 1)
        if classes == "present":
            counted = torch.zeros_like(counted).scatter_(0, label.flatten(), 1)
        counted[count] = 0
        # Kornia's mean counts the class that is added
        weight = (count + 1) * counted / counted.sum().clamp_min(1)
        loss: Tensor = kornia.losses.lovasz_softmax_loss(widened, label, weight)
        return loss

    if not (torch.is_grad_enabled() and logits.requires_grad):
        return torch.stack([image_loss(*one) for one in zip(logits.split(1), label.split(1), strict=True)]).mean()
    loss: Tensor = _ImageByImage.apply(image_loss, logits, label)
    return loss


class _ImageByImage(torch.autograd.Function):
    """The mean over images of a loss whose gradient is made with it, so that only one image at a time is sorted."""

    @staticmethod
    def forward(ctx: FunctionCtx, loss: Callable[[Tensor, Tensor], Tensor], logits: Tensor, label: Tensor) -> Tensor:
        losses, gradient = [], torch.empty_like(logits)
        for number, (image, truth) in enumerate(zip(logits.split(1), label.split(1), strict=True)):
            with torch.enable_grad():
                image = image.detach().requires_grad_()
                losses.append(loss(image, truth) / len(logits))
            gradient[number : number + 1] = torch.autograd.grad(losses[-1], image)[0]
        ctx.save_for_backward(gradient)
        return torch.stack(losses).sum()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grad: Tensor) -> tuple[None, Tensor, None]:
        (gradient,) = ctx.saved_tensors
        return None, grad[0] * gradient, None
