"""Means and distributions of the features of classes, and what tells classes by them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from udaseg.distributed import all_samples, sum_over_ranks
from udaseg.losses.contrastive import masked_average_pool
from udaseg.models.segmenter import Segmenter
from udaseg.types import Detail, Domain, SegOutput


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

    @property
    def feature_stride(self) -> int:
        return self.network.feature_stride

    @property
    def align_corners(self) -> bool:
        return self.network.align_corners

    def __call__(self, image: Tensor, domain: Domain, detail: Detail = "everywhere") -> SegOutput:
        """The network's output with other logits, (B, K, H, W)."""
        out = self.network(image, domain, detail=detail)
        count = len(image)
        coarse = prototype_logits(
            out.embedding,
            self.prototypes.expand(count, -1, -1),
            self.present.expand(count, -1),
            temperature=self.temperature,
        )
        return SegOutput(logits=self.network.upsampled(coarse, image), embedding=out.embedding)


def prototype_logits(feature: Tensor, prototypes: Tensor, present: Tensor, *, temperature: float) -> Tensor:
    """(B, K, h, w) cosines of cells to prototypes over the temperature, -1 over it for classes that are not present.

    Arguments are those of `prototype_transfer`.
    """
    cosine = torch.einsum("bka,bahw->bkhw", F.normalize(prototypes, dim=2), F.normalize(feature, dim=1))
    return cosine.masked_fill(~present[..., None, None], -1.0) / temperature


def prototype_distance(feature: Tensor, prototypes: Tensor) -> Tensor:
    """(B, K, h, w) Euclidean distances of (B, A, h, w) features to (K, A) prototypes."""
    cells, prototypes = feature.flatten(2).transpose(1, 2), prototypes.to(feature.dtype)
    exact = "donot_use_mm_for_euclid_dist"
    # in blocks: on a GPU its backward pass holds K times the cells
    parts = [torch.cdist(rows, prototypes, compute_mode=exact) for rows in cells.split(_ROWS, 1)]
    distance = torch.cat(parts, 1)
    return distance.transpose(1, 2).unflatten(2, feature.shape[2:])


def class_means(feature: Tensor, label: Tensor, num_classes: int, *, min_cells: int) -> tuple[Tensor, Tensor]:
    """The mean feature of each image's classes, (B, K, A), and which of them have `min_cells` or more, (B, K) bool.

    Args:
        feature: (B, A, h, w).
        label: (B, h, w) int64 train ids, 255 = ignore.
        num_classes: K.
        min_cells: of a class in an image, >= 1.
    """
    means, _ = masked_average_pool(feature, label, num_classes)
    cells = F.one_hot(label.clamp_max(num_classes), num_classes + 1)[..., :num_classes].sum((1, 2))
    return means, cells >= min_cells


_ROWS = 1024


class MovingPrototypes(nn.Module):
    """Prototypes of classes that follow the mean features of single images, those of all ranks in the samples' order.

    A class's first ones are the plain mean of images; then each image moves it by an exponential average.
    Source: ProDA (2101.10979), its online prototypes; `update_objective_SingleVector` of microsoft/ProDA.

    Args:
        num_classes, channels: K and A.
        momentum: of the average, in [0, 1].
    """

    count: Tensor
    value: Tensor

    def __init__(self, num_classes: int, channels: int, *, momentum: float) -> None:
        super().__init__()
        self.momentum = momentum
        self.register_buffer("count", torch.zeros(num_classes, dtype=torch.int64))
        self.register_buffer("value", torch.zeros(num_classes, channels))

    @torch.no_grad()
    def update(self, means: Tensor, present: Tensor, *, average: bool) -> None:
        """Take in the images of all ranks: (B, K, A) means, and (B, K) bool which classes each has.

        `average` is whether all images so far weigh alike, as while prototypes are made, and not the last ones more.
        """
        own = torch.cat([means.to(self.value.dtype), present[..., None].to(self.value.dtype)], 2)
        for image in all_samples(own):
            mean, has = image[:, :-1], image[:, -1] > 0
            share = 1 / (self.count.double() + 1)
            share = share if average else torch.where(self.count > 0, 1 - self.momentum, 1.0).to(share)
            old, new = ((1 - share)[:, None].to(mean), share[:, None].to(mean))
            moved = old * self.value + new * mean
            self.value.copy_(torch.where(has[:, None], moved, self.value))
            self.count.add_(has)


@torch.no_grad()
def pooled_means(feature: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Each class's pixels on all ranks: their number (K,) float64, and their mean (K, A), zero for absent classes.

    Args:
        feature: (N, A).
        label: (N,) int64 train ids, 255 = ignore.
        num_classes: K.
    """
    count = sum_over_ranks(_sums(torch.ones_like(label, dtype=torch.float64)[:, None], label, num_classes)[:, 0])
    total = sum_over_ranks(_sums(feature, label, num_classes))
    return count, total / count.clamp_min(1).to(feature.dtype)[:, None]


def _sums(value: Tensor, label: Tensor, num_classes: int) -> Tensor:
    """(K, A) sums of the (N, A) values of each class; those without a class go to a row of their own, which is left."""
    sums = value.new_zeros(num_classes + 1, value.shape[1])
    return sums.index_add_(0, label.clamp_max(num_classes), value)[:num_classes]


class ClassPrototypes(nn.Module):
    """A prototype of each class, which moves toward the mean of each step's pixels: p <- m p + (1 - m) mean.

    Source: SPCL (2111.12358).

    Args:
        num_classes, channels: K and A.
        momentum: m in [0, 1).
        decay_absent: whether the mean of a class that a step does not show counts as zero, as in BinhuiXie/SPCL, so
            that its prototype shrinks; otherwise it stays, and a class that is new takes the mean itself.
    """

    prototypes: Tensor
    seen: Tensor

    def __init__(self, num_classes: int, channels: int, *, momentum: float, decay_absent: bool = False) -> None:
        super().__init__()
        self.momentum, self.decay_absent = momentum, decay_absent
        self.register_buffer("prototypes", torch.zeros(num_classes, channels))
        self.register_buffer("seen", torch.zeros(num_classes, dtype=torch.bool))

    @torch.no_grad()
    def update(self, feature: Tensor, label: Tensor) -> None:
        """Take in a step's pixels of all ranks: feature (N, A), label (N,) int64 train ids, 255 = ignore."""
        count, mean = pooled_means(feature.to(self.prototypes.dtype), label, len(self.prototypes))
        shown = count > 0
        moved = self.momentum * self.prototypes + (1 - self.momentum) * mean
        if not self.decay_absent:
            moved = torch.where(self.seen[:, None], moved, mean)
            moved = torch.where(shown[:, None], moved, self.prototypes)
        self.prototypes.copy_(moved)
        self.seen |= shown


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
        x, classes = feature.to(self.mean.dtype), len(self.count)
        count, mean = pooled_means(x, label, classes)
        divisor = count.clamp_min(1).to(x.dtype)[:, None]
        apart = (x - mean[label.clamp_max(classes - 1)]).square()
        variance = sum_over_ranks(_sums(apart, label, classes)) / divisor
        share = (count / (count + self.count).clamp_min(1)).to(x.dtype)[:, None]
        shift = mean - self.mean
        self.variance.copy_((1 - share) * self.variance + share * variance + share * (1 - share) * shift.square())
        self.mean.add_(share * shift)
        self.count.add_(count)
