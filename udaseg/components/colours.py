"""The colours of one domain on images of the other, whose labels stay what they are."""

from __future__ import annotations

from typing import Any

import kornia
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from udaseg.components.drawn import on_device
from udaseg.rng import uniforms


def recoloured(image: Tensor, like: Tensor, index: Tensor, *, seed: int, probability: float) -> Tensor:
    """Images of which some take the mean and standard deviation of another image's colours, in CIE Lab.

    Source: Reinhard et al., "Color transfer between images" (2001), in whose place of l-alpha-beta Lab stands here.

    Args:
        image: (B, 3, H, W) in [0, 1].
        like: (B, 3, h, w) in [0, 1], the other domain's; image i takes the colours of its image i.
        index: (B,) sample indices, on the CPU.
        seed: key of the run and stage.
        probability: of an image to be recoloured.

    Returns:
        (B, 3, H, W) in [0, 1].
    """
    drawn = uniforms(seed, index.numpy(), "recoloured", 1)[:, 0]
    chosen = on_device(drawn < probability, image.device)
    with _ConstantsUnawaited():
        lab, other = kornia.color.rgb_to_lab(image), kornia.color.rgb_to_lab(like)
        (mean, deviation), (new_mean, new_deviation) = _moments(lab), _moments(other)
        moved = (lab - mean) / deviation.clamp_min(1e-3) * new_deviation + new_mean
        return torch.where(chosen[:, None, None, None], kornia.color.lab_to_rgb(moved), image)


class _ConstantsUnawaited(TorchFunctionMode):
    """Within it `torch.tensor(numbers, device=...)`, as Kornia has it, does not wait for a GPU's earlier work."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        if func is not torch.tensor or kwargs.get("device") is None:
            return func(*args, **kwargs)
        device = kwargs.pop("device")
        return func(*args, **kwargs).to(device, non_blocking=True)


def _moments(lab: Tensor) -> tuple[Tensor, Tensor]:
    """(B, 3, 1, 1) mean and standard deviation of each channel."""
    return lab.mean((2, 3), keepdim=True), lab.std((2, 3), keepdim=True)
