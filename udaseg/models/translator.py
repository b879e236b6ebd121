"""The generator of image translation: from an image of one domain to the same scene in the look of another."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

_EDGE = 1e-3
"""Pixels are kept as far as this from 0 and 1, where the logit has no end: a quarter of a step of 8 bits."""


class Translator(nn.Module):
    """A residual generator of images of any size, (B, 3, H, W) in [0, 1] -> the same; it begins as the identity.

    out = sigmoid(logit(image) + r(image)). r is a 7x7 convolution, two of stride 2, `blocks` residual blocks, two
    upsamplings with a convolution each, and a 7x7 convolution whose weights begin at 0. Its instance norms normalise
    each image alone, so that what an image becomes depends on no other.

    Source: the generator of CycleGAN (1703.10593) with reflected borders. Bilinear upsampling in place of transposed
    convolutions, which takes any size, and the residual of logits are ours.

    Args:
        channels: width of the first convolution; twice and four times that at half and a quarter of the size.
        blocks: residual blocks at a quarter of the size.
    """

    def __init__(self, channels: int = 64, blocks: int = 9) -> None:
        super().__init__()
        self.first = _layer(3, channels, 7)
        self.down = nn.ModuleList([_layer(channels << i, channels << i + 1, 3, stride=2) for i in range(2)])
        self.blocks = nn.Sequential(*(_Block(4 * channels) for _ in range(blocks)))
        self.up = nn.ModuleList([_layer(channels << i + 1, channels << i, 3) for i in (1, 0)])
        self.last = nn.Conv2d(channels, 3, 7, padding=3, padding_mode="reflect")
        for parameter in self.last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, image: Tensor) -> Tensor:
        x, sizes = self.first(image), []
        for layer in self.down:
            sizes.append(x.shape[-2:])
            x = layer(x)
        x = self.blocks(x)
        for layer in self.up:
            x = layer(F.interpolate(x, size=sizes.pop(), mode="bilinear", align_corners=False))
        out: Tensor = torch.sigmoid(torch.logit(image, eps=_EDGE) + self.last(x))
        return out


class _Block(nn.Module):
    """x + two normalised 3x3 convolutions of x, with a ReLU between."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_layer(channels, channels, 3), *_layer(channels, channels, 3)[:2])

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = x + self.body(x)
        return out


def _layer(in_channels: int, out_channels: int, kernel: int, *, stride: int = 1) -> nn.Sequential:
    """A convolution with reflected borders, instance norm and ReLU."""
    return nn.Sequential(
        nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, bias=False, padding_mode="reflect"),
        nn.InstanceNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
