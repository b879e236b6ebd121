"""How far the features of things have moved from those of the network that training began with."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.components.drawn import among
from udaseg.distributed import mean_over_ranks
from udaseg.losses.contrastive import cell_label_counts
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import FrozenNetwork
from udaseg.ranges import NonNegative, Share
from udaseg.types import IGNORE, Batch, Loss, SegOutput


@dataclass(frozen=True, kw_only=True)
class FeatureDistance:
    """The settings of DAFormer's feature distance (2111.14887), which a method's `Config` takes over."""

    feature_weight: NonNegative = 0.005
    """Of the feature distance; 0 = off."""
    things: tuple[int, ...] = (6, 7, 11, 12, 13, 14, 15, 16, 17, 18)
    """Train ids of the thing classes."""
    thing_share: Share = 0.75
    """Share of a cell's pixels that its commonest class must have to count."""

    def network_now(self, student: Segmenter) -> FrozenNetwork | None:
        """The network as it is, which the method keeps; None where the distance is off."""
        return FrozenNetwork(student) if self.feature_weight else None

    def distances(self, out: SegOutput, beginning: FrozenNetwork | None, source: Batch) -> tuple[Loss, ...]:
        """The term "feature_distance" of the source's output, or none where it is off."""
        if beginning is None:
            return ()
        feature = out.features[-1]
        distance = thing_distance(feature, beginning, source, things=self.things, min_share=self.thing_share)
        return (Loss("feature_distance", distance, self.feature_weight),)


def thing_distance(
    feature: Tensor, beginning: FrozenNetwork, source: Batch, *, things: Sequence[int], min_share: float
) -> Tensor:
    """Mean distance of the source's last features (B, A, h, w) to those of the network as it was, on cells of things.

    Source: DAFormer (2111.14887). A cell counts if a thing class, one of the train ids `things`, holds at least
    `min_share` of its pixels.
    """
    reference = beginning.levels(source.image, "source")[-1]
    scale, classes = beginning.network.feature_stride, beginning.network.num_classes
    size = (feature.shape[2], feature.shape[3])
    cells = majority_cells(source.labels, size, scale, num_classes=classes, min_share=min_share)
    mask = among(cells, things)
    return feature_distance(feature, reference, mask)


def majority_cells(label: Tensor, size: tuple[int, int], scale: int, *, num_classes: int, min_share: float) -> Tensor:
    """`majority_label` (B, h, w) at the size (h, w) of a feature map, whose last cells may reach beyond the image."""
    bottom, right = (cells * scale - side for cells, side in zip(size, label.shape[-2:], strict=True))
    label = F.pad(label, (0, right, 0, bottom), value=IGNORE)
    return majority_label(label, scale, num_classes=num_classes, min_share=min_share)


def majority_label(label: Tensor, scale: int, *, num_classes: int, min_share: float = 0.75) -> Tensor:
    """Labels at 1/scale of the size: the commonest class of each scale x scale window, 255 where it has too few pixels.

    Ignored pixels count as a class of their own, as in `downscale_label_ratio` of lhoyer/DAFormer.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore; H and W are multiples of `scale`.
        scale: pixels of a window's side.
        num_classes: K.
        min_share: smallest share of the window that the class must have, in [0, 1].

    Returns:
        (B, H / scale, W / scale) int64.
    """
    size = (label.shape[1] // scale, label.shape[2] // scale)
    counts = cell_label_counts(label.clamp_max(num_classes), size, num_classes + 1)
    share, majority = counts.div(scale**2).max(1)
    return majority.masked_fill((majority == num_classes) | (share < min_share), IGNORE)


def feature_distance(feature: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean Euclidean distance of two feature maps over the pixels of a mask, counted on all ranks; 0 where it is empty.

    Source: DAFormer (2111.14887), eq. 3-5; checked against `DACS.masked_feat_dist` of lhoyer/MIC.

    Args:
        feature, reference: (B, A, h, w).
        mask: (B, h, w) bool.

    Returns:
        Scalar.
    """
    distance = torch.linalg.vector_norm(feature - reference, dim=1)
    return (distance * mask).sum() / mean_over_ranks(mask.sum().to(distance.dtype)).clamp_min(1e-12)
