"""Losses of a discriminator and of the network that deceives it, and what they are shown.

A verdict is a map of a discriminator's logits; the label of the source is 0 and that of the target 1. A discriminator
minimises the loss of its verdicts with the domain that they are of, the network that of the target's verdicts with
"source".
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor

from udaseg.types import Domain


def binary_cross_entropy(verdict: Tensor, domain: Domain, weight: Tensor | None = None) -> Tensor:
    """Mean binary cross-entropy of a verdict with one label everywhere.

    Source: ADVENT (1811.12833), eq. 5 and 6; with weights CLAN (1809.09478), eq. 4.

    Args:
        verdict: (B, 1, h, w) logits.
        domain: the label.
        weight: (B, 1, h, w) factors, >= 0; they do not enter the denominator.
    """
    loss = F.softplus(verdict if domain == "source" else -verdict)
    return (loss if weight is None else loss * weight).mean()


def least_squares(verdict: Tensor, domain: Domain) -> Tensor:
    """Mean squared difference of a verdict from one label everywhere, as in LS-GAN (1611.04076) and ProDA's warm-up.

    Args:
        verdict: (B, 1, h, w), any real numbers.
        domain: the label.
    """
    return (verdict - (0.0 if domain == "source" else 1.0)).square().mean()


def self_information(logits: Tensor) -> Tensor:
    """Each class's part of a pixel's entropy, -p log p / log K; the sum over classes lies in [0, 1].

    Source: ADVENT (1811.12833), section 3; checked against `prob_2_entropy` and, by its sum over classes and mean over
    pixels, against `entropy_loss` of valeoai/ADVENT.

    Args:
        logits: (B, K, H, W), K >= 2.

    Returns:
        (B, K, H, W).
    """
    log_probability = logits.log_softmax(1)
    return -log_probability.exp() * log_probability / math.log(logits.shape[1])


def disagreement(first: Tensor, second: Tensor) -> Tensor:
    """1 - the cosine of two classifiers' probabilities, per pixel in [0, 1].

    Source: CLAN (1809.09478), the discrepancy M of eq. 4; checked against `weightmap` of RoyalVane/CLAN.

    Args:
        first, second: (B, K, H, W) logits.

    Returns:
        (B, 1, H, W).
    """
    return (1 - F.cosine_similarity(first.softmax(1), second.softmax(1), dim=1)[:, None]).clamp(0, 1)


def weight_discrepancy(first: Tensor, second: Tensor) -> Tensor:
    """1 + the cosine of two classifiers' weights, in [0, 2]: 0 where they are opposite.

    Source: CLAN (1809.09478), eq. 3, whose 1 the authors' code adds.

    Args:
        first, second: (N,) all weights and biases of each.
    """
    return 1 + F.cosine_similarity(first, second, dim=0)
