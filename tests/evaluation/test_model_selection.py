"""Scores that rank networks without labels, each against a loop."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from udaseg.evaluation.model_selection import (
    SCORES,
    agreement,
    image_sums,
    mean_entropy,
    mutual_information,
    neighbourhood_density,
    scores,
    spearman,
)


def predictions(seed: int, count: int = 30, classes: int = 4, sharp: float = 2.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (sharp * torch.randn(count, classes, generator=generator, dtype=torch.float64)).softmax(1)


def entropy_of(p: list[float]) -> float:
    return -sum(x * math.log(x) for x in p if x > 0)


def test_scores_against_loops() -> None:
    p, q = predictions(0), predictions(1)
    rows, others = p.tolist(), q.tolist()
    conditional = sum(map(entropy_of, rows)) / len(rows)
    marginal = [sum(row[k] for row in rows) / len(rows) for k in range(4)]
    same = [row.index(max(row)) == other.index(max(other)) for row, other in zip(rows, others, strict=True)]
    assert float(mean_entropy(p)) == pytest.approx(conditional)
    assert float(mutual_information(p)) == pytest.approx(entropy_of(marginal) - conditional)
    assert float(agreement(p, q)) == pytest.approx(sum(same) / len(same))

    density = 0.0
    for i, row in enumerate(rows):
        weights = []
        for j, other in enumerate(rows):
            if i != j:
                cosine = sum(a * b for a, b in zip(row, other, strict=True)) / (math.hypot(*row) * math.hypot(*other))
                weights.append(math.exp(cosine / 0.05))
        density += entropy_of([w / sum(weights) for w in weights]) / len(rows)
    assert float(neighbourhood_density(p)) == pytest.approx(density)


def test_scores_know_good_from_bad() -> None:
    """Two tight clusters against predictions all over the place, and against everything in one class."""
    clusters = torch.eye(4, dtype=torch.float64)[[0, 1] * 20]
    vague = predictions(2, count=40, sharp=0.1)
    collapsed = torch.eye(4, dtype=torch.float64)[[0] * 40]
    assert float(mean_entropy(clusters)) == 0 < float(mean_entropy(vague))
    assert float(mutual_information(clusters)) == pytest.approx(math.log(2))
    assert float(mutual_information(vague)) < 0.1 and float(mutual_information(collapsed)) == 0  # fools entropy
    assert float(neighbourhood_density(clusters)) == pytest.approx(math.log(19), abs=1e-3)
    spread = torch.eye(40, dtype=torch.float64)[:40]
    assert float(neighbourhood_density(spread)) == pytest.approx(math.log(39))  # all neighbours are equally far


def test_sums_of_images_add_up() -> None:
    shape = (4, 5, 6)
    images = [predictions(i).T.reshape(shape) for i in range(3)]
    views = [predictions(10 + i).T.reshape(shape) for i in range(3)]
    pixels = np.arange(0, 30, 2)
    found = scores(sum(image_sums(p, v, pixels) for p, v in zip(images, views, strict=True)))  # type: ignore[arg-type]
    flat, other = (torch.cat([x.flatten(1).T for x in several]) for several in (images, views))
    assert list(found) == list(SCORES)
    assert found["entropy"] == pytest.approx(float(mean_entropy(flat)))
    assert found["information"] == pytest.approx(float(mutual_information(flat)))
    assert found["agreement"] == pytest.approx(float(agreement(flat, other)))
    densities = [float(neighbourhood_density(p.flatten(1).T[pixels])) for p in images]
    assert found["snd"] == pytest.approx(sum(densities) / 3)


def test_spearman() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 30, 400]) == pytest.approx(1)
    assert spearman([1, 2, 3, 4], [4, 3, 2, -9]) == pytest.approx(-1)
    nan = float("nan")
    assert spearman([1, 2, 3, nan, 5], [0.1, 0.2, 0.3, 0.0, nan]) == pytest.approx(1), "what is no number has no rank"
    assert math.isnan(spearman([1, nan], [1, 2]))
    assert spearman([3, 1, 4, 1, 5], [2, 7, 1, 8, 2]) == pytest.approx(
        np.corrcoef([2, 0.5, 3, 0.5, 4], [1.5, 3, 0, 4, 1.5])[0, 1]
    )
    assert math.isnan(spearman([1, 1, 1], [1, 2, 3])) and math.isnan(spearman([1], [2]))
    with pytest.raises(ValueError, match="pairs"):
        spearman([1, 2], [1])
