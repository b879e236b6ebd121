"""Attention between two domains: what one image's features find in another's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class CrossDomainAttention(nn.Module):
    """One domain's features with the context of another's, position by position and channel by channel.

    Both are scaled dot-product attention. By position: each cell of the own map attends to all cells of the other one.
    By channel: each channel of the own map, a vector over cells, attends to all channels of the other one. A gate,
    a number in (0, 1) for each cell, which both maps' features tell, says how much of either context is taken.

    Source: our reconstruction of CADA (2003.04010), whose two modules extend self-attention by position and by channel,
    as DANet (1809.02983) has it, to two domains and aggregate their contexts selectively.

    Args:
        in_channels: channels of the features.
        channels: width to which they are brought first, a multiple of 8; queries and keys of positions have an eighth.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"attention channels are {channels}; they must be a multiple of 8")
        self.reduce = nn.Sequential(nn.Conv2d(in_channels, channels, 1), nn.ReLU(inplace=True))
        self.query, self.key = (nn.Conv2d(channels, channels // 8, 1) for _ in range(2))
        self.value = nn.Conv2d(channels, channels, 1)
        self.position_gate, self.channel_gate = (nn.Conv2d(2 * channels, 1, 1) for _ in range(2))

    def forward(self, own: Tensor, other: Tensor) -> Tensor:
        """(B, C, h, w) features of images of both domains -> (B, channels, h, w) of the own ones.

        Raises ValueError where the maps differ in size.
        """
        if own.shape != other.shape:
            sizes = tuple(own.shape[2:]), tuple(other.shape[2:])
            raise ValueError(f"maps of {sizes[0]} and {sizes[1]} cells cannot attend: streams need one data.crop")
        own, other = self.reduce(own), self.reduce(other)
        contexts = (
            (self.by_position(own, other), self.position_gate),
            (self.by_channel(own, other), self.channel_gate),
        )
        gated = [gate(torch.cat([own, context], 1)).sigmoid() * context for context, gate in contexts]
        return own + gated[0] + gated[1]

    def by_position(self, own: Tensor, other: Tensor) -> Tensor:
        """(B, channels, h, w): to each cell of the own map the values of the other one's cells that are like it."""
        query, key, value = (
            layer(x).flatten(2).transpose(1, 2)
            for layer, x in ((self.query, own), (self.key, other), (self.value, other))
        )
        found = _attention(query, key, value)
        return found.transpose(1, 2).unflatten(2, own.shape[2:])

    def by_channel(self, own: Tensor, other: Tensor) -> Tensor:
        """(B, channels, h, w): to each channel of the own map those of the other one that are like it."""
        theirs = other.flatten(2)
        return _attention(own.flatten(2), theirs, theirs).unflatten(2, own.shape[2:])


def _attention(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Of one head: torch's kernels that hold no matrix of all pairs take heads as a dimension of their own."""
    return F.scaled_dot_product_attention(query[:, None], key[:, None], value[:, None])[:, 0]
