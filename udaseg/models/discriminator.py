"""Discriminators: networks that tell from a prediction which domain it is of, cell by cell."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

Form = Literal["advent", "proda"]


class Discriminator(nn.Sequential):
    """A fully convolutional discriminator, (B, C, H, W) -> (B, 1, h, w) logits of "this is the target".

    Four convolutions of stride 2, as wide as 1, 2, 4 and 8 times `channels`, and one to a single channel; no norm.

    Args:
        in_channels: C, for class probabilities the number of classes.
        channels: width of the first convolution; 64 in all papers.
        form: "advent": kernels of 4, the last convolution of stride 2 too, LeakyReLU of slope 0.2 between all
            (AdaptSegNet, ADVENT, CLAN); h = H / 32. "proda": kernels of 3, ReLU, LeakyReLU after the fourth, and a 1x1
            convolution (ProDA's warm-up); h = H / 16.
    """

    def __init__(self, in_channels: int, channels: int = 64, *, form: Form = "advent") -> None:
        widths = [in_channels, channels, 2 * channels, 4 * channels, 8 * channels]
        advent = form == "advent"
        layers: list[nn.Module] = []
        for i in range(4):
            layers.append(nn.Conv2d(widths[i], widths[i + 1], 4 if advent else 3, stride=2, padding=1))
            layers.append(nn.LeakyReLU(0.2, inplace=True) if advent or i == 3 else nn.ReLU(inplace=True))
        last = nn.Conv2d(widths[4], 1, 4, stride=2, padding=1) if advent else nn.Conv2d(widths[4], 1, 1)
        super().__init__(*layers, last)

    def judge(self, prediction: Tensor) -> Tensor:
        """Its verdict on what another network predicts, from which that network alone learns."""
        weights = {name: parameter.detach() for name, parameter in self.named_parameters()}
        verdict: Tensor = torch.func.functional_call(self, weights, (prediction,))
        return verdict
