"""Prediction of whole images and in sliding windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from udaseg.inference import predict
from udaseg.windows import window_starts


class Pointwise(nn.Module):
    """A network whose logits at a pixel depend on that pixel alone: windows must not change what it says."""

    num_classes = 3

    def forward(self, image: Tensor, domain: str = "target") -> Any:
        return SimpleNamespace(logits=torch.stack([image[:, 0], image[:, 1] * 2, image[:, 2] * 3], 1))


class Mean(nn.Module):
    """A network whose logits are the mean of what it sees: each window says something else."""

    num_classes = 1

    def forward(self, image: Tensor, domain: str = "target") -> Any:
        return SimpleNamespace(logits=image.mean((1, 2, 3), keepdim=True).expand(-1, 1, *image.shape[2:]))


@pytest.mark.parametrize(
    ("length", "window", "overlap"), [(10, 4, 0.5), (11, 4, 0.0), (7, 7, 0.5), (5, 9, 0.5), (100, 3, 0.9)]
)
def test_windows_cover_the_axis_and_end_with_it(length: int, window: int, overlap: float) -> None:
    starts = window_starts(length, window, overlap)
    covered = np.zeros(length, int)
    for start in starts:
        assert start >= 0 and (start + window <= length or starts == [0])
        covered[start : start + window] += 1
    assert covered.min() >= 1 and starts == sorted(set(starts))


@pytest.mark.parametrize("window", [None, (8, 8), (5, 16), (64, 64)])
def test_windows_do_not_change_a_pointwise_network(window: tuple[int, int] | None) -> None:
    image = torch.rand(2, 3, 20, 31)
    got = predict(Pointwise(), image, short_side=20, window=window)  # type: ignore[arg-type]
    expected = Pointwise()(image).logits.softmax(1)
    assert torch.allclose(got, expected, atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    from udaseg.inference import _slide

    image = torch.rand(1, 3, 4, 6)
    got = _slide(Mean(), image, (4, 4), 0.5, "target")  # type: ignore[arg-type]
    left, right = image[..., :4].mean(), image[..., 2:].mean()
    expected = torch.tensor([left, left, (left + right) / 2, (left + right) / 2, right, right])
    assert torch.allclose(got[0, 0], expected.expand(4, -1), atol=1e-6)


def test_probabilities_come_at_the_native_size() -> None:
    got = predict(Pointwise(), torch.rand(1, 3, 40, 61), short_side=16)  # type: ignore[arg-type]
    assert got.shape == (1, 3, 40, 61)
    assert torch.allclose(got.sum(1), torch.ones(1, 40, 61), atol=1e-5)
