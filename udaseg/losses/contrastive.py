"""Contrastive losses between pixels and what is known of their classes: prototypes, distributions, banks of means."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from udaseg.distributed import joined_mean, mean_over_ranks
from udaseg.types import IGNORE


def cell_label_counts(label: Tensor, size: tuple[int, int], num_classes: int) -> Tensor:
    """How many pixels of each label lie in each feature cell, cells as in a nearest upsampling of the features.

    Args:
        label: (B, H, W) int64 train ids, 255 = ignore.
        size: (h, w) of the feature map.
        num_classes: K.

    Returns:
        (B, K, h, w) float counts.
    """
    (h, w), (batch, height, width) = size, label.shape
    device = label.device
    row = F.interpolate(torch.arange(h, device=device, dtype=torch.float32)[None, None], size=height)[0, 0].long()
    col = F.interpolate(torch.arange(w, device=device, dtype=torch.float32)[None, None], size=width)[0, 0].long()
    cell = (row[:, None] * w + col).expand(batch, -1, -1)
    image = torch.arange(batch, device=device)[:, None, None]
    slot = (image * (num_classes + 1) + label.clamp_max(num_classes)) * (h * w) + cell
    ones = torch.ones((), device=device).expand(slot.numel())
    counts = torch.zeros(batch * (num_classes + 1) * h * w, device=device).index_add_(0, slot.flatten(), ones)
    return counts.view(batch, num_classes + 1, h, w)[:, :num_classes]


def masked_average_pool(feature: Tensor, label: Tensor, num_classes: int) -> tuple[Tensor, Tensor]:
    """Class prototypes of each image: the mean feature of the cells with that label.

    Args:
        feature: (B, A, h, w); gradient flows through it.
        label: (B, h, w) int64 train ids, 255 = ignore.
        num_classes: K.

    Returns:
        prototypes (B, K, A), zero for absent classes, and present (B, K) bool.
    """
    one_hot = F.one_hot(label.clamp_max(num_classes), num_classes + 1)[..., :num_classes].to(feature.dtype)
    count = one_hot.sum((1, 2))
    total = torch.einsum("bhwk,bahw->bka", one_hot, feature)
    return total / count.clamp_min(1).unsqueeze(-1), count > 0


def downscale_label(label: Tensor, size: tuple[int, int]) -> Tensor:
    """(B, H, W) int64 labels at (h, w), nearest."""
    return F.interpolate(label[:, None].float(), size=size, mode="nearest")[:, 0].long()


def labelled_cells(feature: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
    """(N, A) cells of a (B, A, h, w) map, and their (N,) labels of (B, H, W) ones, nearest."""
    small = downscale_label(label, (feature.shape[2], feature.shape[3]))
    return feature.movedim(1, -1).flatten(0, 2), small.flatten()


def pixel_prototype_contrast(
    feature: Tensor,
    prototypes: Tensor,
    present: Tensor,
    label: Tensor,
    class_weight: Tensor,
    *,
    temperature: float = 0.1,
) -> Tensor:
    """Cosine cross-entropy that pulls each pixel to the prototype of its class and from those of the others.

    Per image b, with s_k(p) = cos(prototypes[k], feature[p]) and s_k = -1 for absent classes:
    sum_p v_p * -log softmax_k(s_k(p) / temperature)[label_p] / sum_p v_p with v_p = class_weight[label_p], summed over
    the pixels of the full-resolution label under nearest upsampling of s. As all pixels of a cell share s, the sum runs
    over the cells with the label counts as factors: the same value and gradient for (H W) / (h w) times less work.

    Source: "Bi-directional contrastive learning for domain adaptive semantic segmentation" (ECCV 2022), the forward
    term with target features and source prototypes, the backward term with the roles exchanged; checked against
    `Trainer.metric_loss` of cvlab-yonsei/DASS. With no weighted pixel in an image, its loss is 0 (there: NaN).

    Args:
        feature: (B, A, h, w) anchors.
        prototypes: (B, K, A) keys; gradient flows into them unless detached.
        present: (B, K) bool, the classes that have a prototype.
        label: (B, H, W) int64 train ids of the anchors, 255 = ignore.
        class_weight: (B, K) >= 0.
        temperature: > 0.

    Returns:
        Scalar, the mean over images.
    """
    counts = cell_label_counts(label, (feature.shape[2], feature.shape[3]), prototypes.shape[1])
    cosine = torch.einsum("bka,bahw->bkhw", F.normalize(prototypes, dim=2), F.normalize(feature, dim=1))
    cosine = cosine.masked_fill(~present[..., None, None], -1.0)
    weight = counts * class_weight[..., None, None]
    loss = -(weight * (cosine / temperature).log_softmax(1)).sum((1, 2, 3))
    return (loss / weight.sum((1, 2, 3)).clamp_min(1e-12)).mean()


def bidirectional_contrast(
    source_feature: Tensor,
    source_label: Tensor,
    target_feature: Tensor,
    target_label: Tensor,
    *,
    num_classes: int,
    temperature: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """BCL's two terms for pairs of a source and a target image, as released.

    Args:
        source_feature, target_feature: (B, A, h, w), of any size each; pair i is (source i, target i).
        source_label, target_label: (B, H, W) int64 train ids, 255 = ignore.
        num_classes: K.
        temperature: > 0; the released code multiplies cosines by 10.

    Returns:
        forward (target pixels, source prototypes) and backward (source pixels, target prototypes) scalars. Both count
        only classes that both images hold at feature resolution.
    """
    source_small = downscale_label(source_label, (source_feature.shape[2], source_feature.shape[3]))
    target_small = downscale_label(target_label, (target_feature.shape[2], target_feature.shape[3]))
    source_prototypes, in_source = masked_average_pool(source_feature, source_small, num_classes)
    target_prototypes, in_target = masked_average_pool(target_feature, target_small, num_classes)
    shared = (in_source & in_target).to(source_feature.dtype)
    forward = pixel_prototype_contrast(
        target_feature, source_prototypes, in_source, target_label, shared, temperature=temperature
    )
    backward = pixel_prototype_contrast(
        source_feature, target_prototypes, in_target, source_label, shared, temperature=temperature
    )
    return forward, backward


def prototype_contrast(feature: Tensor, label: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    """Cross-entropy of pixels whose logits are f . p_c / temperature, with one prototype p_c for each class.

    Source: SPCL (2111.12358), with unit features; ProCA (2207.06654), with unit features and unit prototypes; ProtoCL
    of SePiCo (2204.08808). Checked against `PixelCLLoss` of BinhuiXie/SPCL, which adds up source and target,
    `PrototypeContrastiveLoss` of jiangzhengkai/ProCA and `proto_contrastive` of BIT-DA/SePiCo.

    Args:
        feature: (N, A) pixels; neither they nor the prototypes are brought to unit length here.
        label: (N,) int64 train ids, 255 = ignore.
        prototypes: (K, A).
        temperature: > 0.

    Returns:
        Scalar, the mean over labelled pixels of all ranks; 0 where there is none.
    """
    return _cross_entropy(feature @ prototypes.T / temperature, label)


def distribution_contrast(
    feature: Tensor,
    label: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    temperature: float = 100.0,
    normalise: bool = True,
) -> Tensor:
    """Contrast of pixels with Gaussian classes: the upper bound of InfoNCE with infinitely many samples of each class.

    With q the pixel and m, v the rows of `mean` and `variance`, the logit of class c is
    (q . m_c + q^2 . v_c / (2 t)) / t, and the loss the mean over labelled pixels of all ranks of
    cross-entropy(logits, y) + q^2 . v_y / (2 t^2).

    Source: SDCA (2105.05013); checked against `PixelContrastiveLoss` of BIT-DA/SDCA. DistCL of SePiCo (2204.08808);
    checked against `dist_contrastive` of BIT-DA/SePiCo. At the authors' temperature of 100 the logits span +-0.01, so
    the value stays near ln K and gradients are a hundredth of those at 1.

    Args:
        feature: (N, A) pixels.
        label: (N,) int64 train ids, 255 = ignore.
        mean, variance: (K, A), variance >= 0.
        temperature: > 0.
        normalise: bring q, m and v to unit length first, as SDCA does. SePiCo takes them as they are, its features
            being unit vectors already.

    Returns:
        Scalar, 0 where no pixel is labelled.
    """
    if normalise:
        feature, mean, variance = (F.normalize(x, dim=1) for x in (feature, mean, variance))
    spread = feature.square() @ variance.T
    logits = (feature @ mean.T + spread / (2 * temperature)) / temperature
    labelled, y = _labelled(label)
    own = _mean(spread.gather(1, y[:, None])[:, 0] * labelled, labelled)
    return _cross_entropy(logits, label) + own / (2 * temperature**2)


def bank_contrast(feature: Tensor, label: Tensor, bank: Tensor, filled: Tensor, *, temperature: float) -> Tensor:
    """Contrast of pixels with all that a bank holds of their class, against the mean similarity to each other class.

    With s_cj = f . bank[c, j] / temperature, a pixel of class y loses, as the mean over the entries j of its class,
    -log(e^{s_yj} / (e^{s_yj} + sum over c != y of e^{mean_j s_cj})).

    Source: BankCL of SePiCo (2204.08808); checked against `bank_contrastive` of BIT-DA/SePiCo.

    Args:
        feature: (N, A) pixels, unit vectors.
        label: (N,) int64 train ids, 255 = ignore.
        bank: (K, L, A).
        filled: (K,) int64, how many entries each class has, from its first on; at least 1.
        temperature: > 0.

    Returns:
        Scalar, the mean over labelled pixels of all ranks; 0 where there is none.
    """
    labelled, y = _labelled(label)
    held = torch.arange(bank.shape[1], device=bank.device) < filled[:, None]
    means = (bank * held[..., None]).sum(1) / filled[:, None]  # the mean similarity is that to the mean
    others = (feature @ means.T / temperature).scatter(1, y[:, None], -math.inf).logsumexp(1)
    own = feature.new_zeros(len(feature), bank.shape[1])
    for c, entries in enumerate(bank):
        mine = label == c
        if feature.device.type == "cpu":
            rows = mine.nonzero()[:, 0]
            own.index_add_(0, rows, feature[rows] @ entries.T)
        else:  # which would be waited for
            own = torch.where(mine[:, None], feature @ entries.T, own)
    loss = (F.softplus(others[:, None] - own / temperature) * held[y]).sum(1) / filled[y]
    return _mean(loss * labelled, labelled)


def positive_negative_equal_contrast(
    anchor: Tensor, anchor_label: Tensor, key: Tensor, key_label: Tensor, *, temperature: float
) -> Tensor:
    """Contrast in which the positives of a pixel weigh as much as its negatives, however many there are of each.

    With P the mean of e^{a . k / temperature} over an image's keys of the anchor's class, and N over those of others,
    an anchor loses -log(P / (P + N)).

    Source: our reconstruction of PNE (2207.01417), of which it is known that positives and negatives count equally.

    Args:
        anchor: (B, N, A), unit vectors.
        anchor_label: (B, N) int64 train ids, 255 = no anchor.
        key: (B, M, A), unit vectors; anchors are compared with those of their own image.
        key_label: (B, M) int64 train ids, 255 = no key.
        temperature: > 0.

    Returns:
        Scalar, the mean over the anchors of all ranks that have keys of both kinds; 0 where there is none.
    """
    similarity = torch.einsum("bna,bma->bnm", anchor, key) / temperature
    same, there = anchor_label[:, :, None] == key_label[:, None], (key_label != IGNORE)[:, None]

    def log_mean(chosen: Tensor) -> tuple[Tensor, Tensor]:
        count = chosen.sum(2).to(similarity.dtype)
        lowest = torch.finfo(count.dtype).min
        return similarity.masked_fill(~chosen, lowest).logsumexp(2) - count.clamp_min(1).log(), count > 0

    (positive, has_positive), (negative, has_negative) = log_mean(same & there), log_mean(~same & there)
    counts = (anchor_label != IGNORE) & has_positive & has_negative
    total = F.softplus(negative - positive).where(counts, 0.0).sum()
    return total / mean_over_ranks(counts.sum().to(total.dtype)).clamp_min(1e-12)


def mean_feature_regulariser(feature: Tensor, label: Tensor, prototypes: Tensor, *, temperature: float) -> Tensor:
    """sum_c log softmax_c(f . p_c / temperature) / (K ln K), with f the mean of all labelled pixels of all ranks.

    It is -1 where the mean pixel is as near to every class, and lower elsewhere. Source: SePiCo (2204.08808); checked
    against `proto_reg` of BIT-DA/SePiCo, whose sign this is.

    Args:
        feature: (N, A) pixels, unit vectors.
        label: (N,) int64 train ids, 255 = ignore: such pixels do not count.
        prototypes: (K, A), K >= 2.
        temperature: > 0.

    Returns:
        Scalar, 0 where no pixel is labelled.
    """
    labelled = (label != IGNORE).to(feature.dtype)
    count, classes = mean_over_ranks(labelled.sum()), len(prototypes)
    mean = joined_mean(labelled @ feature / count.clamp_min(1e-12))
    logs = (prototypes @ mean / temperature).log_softmax(0)
    return logs.sum() / (classes * math.log(classes)) * (count > 0)


def _labelled(label: Tensor) -> tuple[Tensor, Tensor]:
    """Which of (N,) pixels have a label, and a label for all of them, 0 for those without.

    A loss runs over all pixels and counts these: to pick them out the host would have to wait for the device.
    """
    labelled = label != IGNORE
    return labelled, label.where(labelled, 0)


def _cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    return _mean(F.cross_entropy(logits, label, ignore_index=IGNORE, reduction="none"), label != IGNORE)


def _mean(loss: Tensor, labelled: Tensor) -> Tensor:
    """A rank's sum of its pixels' losses, 0 for those without a label, over the labelled pixels of all ranks."""
    return loss.sum() / mean_over_ranks(labelled.sum().to(loss.dtype)).clamp_min(1e-12)
