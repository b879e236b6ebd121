"""Means and distributions of the features of classes, and what tells classes by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.distributed import sum_over_ranks
from udaseg.models.segmenter import Segmenter
from udaseg.types import Domain, SegOutput


@dataclass(frozen=True)
class PrototypeClassifier:
    """A network whose classifier is the nearest prototype by cosine, on the features that it embeds pixels in."""

    network: Segmenter
    prototypes: Tensor
    """(K, A)."""
    present: Tensor
    """(K,) bool, the classes that have a prototype."""
    temperature: float
    """> 0, of the softmax over classes."""

    @property
    def num_classes(self) -> int:
        return len(self.prototypes)

    @property
    def largest(self) -> tuple[int, int] | None:
        return self.network.largest

    def __call__(self, image: Tensor, domain: Domain) -> SegOutput:
        """The network's output with other logits, (B, K, H, W)."""
        out = self.network(image, domain)
        count = len(image)
        coarse = prototype_logits(
            out.embedding,
            self.prototypes.expand(count, -1, -1),
            self.present.expand(count, -1),
            temperature=self.temperature,
        )
        logits = F.interpolate(coarse, size=image.shape[-2:], mode="bilinear", align_corners=False)
        return SegOutput(logits=logits, embedding=out.embedding)


def prototype_logits(feature: Tensor, prototypes: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """(B, K, h, w) cosines of cells to prototypes over the temperature, -1 over it for classes that are not present.

    Arguments are those of `prototype_transfer`.
    """
    cosine = torch.einsum("bka,bahw->bkhw", F.normalize(prototypes, dim=2), F.normalize(feature, dim=1))
    return cosine.masked_fill(~present[..., None, None], -1.0) / temperature


class ClassGaussians(nn.Module):
    """Mean and diagonal variance of all features of each class ever seen, on all ranks: pooled exactly, no momentum.

    Source: SDCA (2105.05013); checked against `semantic_dist_estimator` of BIT-DA/SDCA, where each rank keeps its own.
    """

    count: Tensor
    mean: Tensor
    variance: Tensor

    def __init__(self, num_classes: int, channels: int) -> None:
        super().__init__()
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.float64))
        self.register_buffer("mean", torch.zeros(num_classes, channels))
        self.register_buffer("variance", torch.zeros(num_classes, channels))

    @torch.no_grad()
    def update(self, feature: Tensor, label: Tensor) -> None:
        """Take in the pixels of all ranks: feature (N, A), label (N,) int64 train ids, 255 = ignore."""
        labelled = label < len(self.count)
        x, y = feature[labelled].to(self.mean.dtype), label[labelled]
        count = sum_over_ranks(torch.bincount(y, minlength=len(self.count)).to(self.count.dtype))
        divisor = count.clamp_min(1).to(x.dtype)[:, None]
        mean = sum_over_ranks(torch.zeros_like(self.mean).index_add_(0, y, x)) / divisor
        variance = sum_over_ranks(torch.zeros_like(self.mean).index_add_(0, y, (x - mean[y]).square())) / divisor
        share = (count / (count + self.count).clamp_min(1)).to(x.dtype)[:, None]
        shift = mean - self.mean
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * shift.square())
        self.mean.add_(share * shift)
        self.count.add_(count)
