"""A learned metric over features: how near a cell is to what stands for a class."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.models.heads import ProjectionHead


class ProxyMetric(nn.Module):
    """An embedding in unit vectors, and for each class one or more learnable ones, its proxies.

    Source: proxies that learn with the embedding are those of Proxy-NCA (1703.07464); several of them for a class, its
    modes, are RepMet's representatives (1806.04728).

    Args:
        in_channels: channels of the features.
        num_classes: K.
        channels: A, width of the embedding.
        modes: M, proxies of a class.
    """

    def __init__(self, in_channels: int, num_classes: int, channels: int, *, modes: int = 1) -> None:
        super().__init__()
        self.embed = ProjectionHead(in_channels, channels)
        self.proxies = nn.Parameter(torch.randn(num_classes, modes, channels))

    def forward(self, feature: Tensor) -> tuple[Tensor, Tensor]:
        """Features (B, C, h, w) -> unit vectors (B, A, h, w), and their cosines (B, K, M, h, w) to the proxies."""
        unit = F.normalize(self.embed(feature), dim=1)
        return unit, torch.einsum("kma,bahw->bkmhw", F.normalize(self.proxies, dim=2), unit)
