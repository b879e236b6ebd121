"""Unsupervised model selection: scores of a network's predictions on images of the target, without their labels.

Sums first, which add up over images and ranks; ratios last.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

SCORES: dict[str, Literal["min", "max"]] = {"entropy": "min", "information": "max", "agreement": "max", "snd": "max"}
"""What `scores` returns, and whether the smallest or the largest value is the best."""
_TEMPERATURE = 0.05


def mean_entropy(probability: Tensor) -> Tensor:
    """Mean entropy of predictions in nats, in [0, ln K]; low where a network is certain, rightly or wrongly.

    As a criterion for hyper-parameters of domain adaptation: Morerio et al., 1711.10288.

    Args:
        probability: (N, K), rows sum to 1.
    """
    return torch.special.entr(probability).sum(1).mean()


def mutual_information(probability: Tensor) -> Tensor:
    """Mutual information of input and prediction in nats, in [0, ln K]: H(mean prediction) - mean H(prediction).

    High where each prediction is certain and all together use many classes, so one class everywhere scores 0 (Shi and
    Sha, "Information-theoretical learning of discriminative clusters for unsupervised domain adaptation", 1206.6438).

    Args:
        probability: (N, K), rows sum to 1.
    """
    return torch.special.entr(probability.mean(0)).sum() - mean_entropy(probability)


def agreement(first: Tensor, second: Tensor) -> Tensor:
    """Share of predictions of two views whose most probable class is the same, in [0, 1].

    Args:
        first: (N, K).
        second: (N, K), e.g. of a strongly augmented view.
    """
    return (first.argmax(1) == second.argmax(1)).double().mean()


def neighbourhood_density(features: Tensor) -> Tensor:
    """Soft neighbourhood density in nats, in [0, ln(N - 1)]: high where samples lie in dense clusters.

    Each sample's similarities to all others become a distribution; the score is their mean entropy (Saito et al.,
    2108.10860, eq. 1-3, temperature 0.05). The sample itself is left out, as in the paper; the authors' code gives it
    cosine -1 instead.

    Args:
        features: (N, D); here the class probabilities of N pixels. Made unit vectors within. A single one has no
            neighbours, and density 0.
    """
    if len(features) < 2:
        return features.new_zeros((), dtype=torch.float64)
    unit = F.normalize(features.double(), dim=1)
    similarity = (unit @ unit.T / _TEMPERATURE).fill_diagonal_(-torch.inf)
    return torch.special.entr(similarity.softmax(1)).sum(1).mean()


def image_sums(probability: Tensor, view: Tensor, pixels: np.ndarray) -> Tensor:
    """What one image adds to the sums that `scores` reads.

    Args:
        probability: (K, H, W) of the image.
        view: (K, H, W) of its strongly augmented view.
        pixels: (N,) distinct positions in [0, H * W): the sub-sample that the density of the image is taken of.

    Returns:
        (K + 5,) float64: summed probabilities, entropies and agreements, number of pixels, density, and 1.
    """
    flat, other = probability.flatten(1).T.double(), view.flatten(1).T
    count = len(flat)
    density = neighbourhood_density(flat[torch.from_numpy(pixels).to(flat.device)])
    rest = [
        mean_entropy(flat) * count,
        agreement(flat, other) * count,
        flat.new_tensor(count),
        density,
        flat.new_ones(()),
    ]
    return torch.cat([flat.sum(0), torch.stack(rest)])


def scores(sums: Tensor) -> dict[str, float]:
    """The scores of `SCORES` over all images, from the total of their `image_sums`.

    Pixels count alike, whichever image they are of; the density is the mean of the images'.
    """
    marginal, (entropy, agreed, count, density, images) = sums[:-5], sums[-5:]
    conditional = entropy / count
    return {
        "entropy": float(conditional),
        "information": float(torch.special.entr(marginal / count).sum() - conditional),
        "agreement": float(agreed / count),
        "snd": float(density / images),
    }


def spearman(first: Sequence[float], second: Sequence[float]) -> float:
    """Spearman's rank correlation in [-1, 1] of the pairs without NaN, equal values sharing their mean rank.

    NaN for fewer than two such pairs, or where one side is constant.
    """
    if len(first) != len(second):
        raise ValueError(f"{len(first)} values and {len(second)}; they must be pairs")
    pairs = np.array([first, second], np.float64)
    a, b = map(_ranks, pairs[:, ~np.isnan(pairs).any(0)])
    if len(a) < 2 or np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(np.corrcoef(a, b)[0, 1])


def _ranks(values: np.ndarray) -> np.ndarray:
    """(N,) ranks from 0; equal values have their mean rank."""
    _, group, size = np.unique(values, return_inverse=True, return_counts=True)
    return (np.cumsum(size) - (size + 1) / 2)[group]
