"""Prediction of whole images and in sliding windows."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from udaseg.errors import ConfigError
from udaseg.models.inference import predict, resized


class Pointwise(nn.Module):
    """A network whose logits at a pixel depend on that pixel alone: windows must not change what it says."""

    num_classes = 3

    def forward(self, image: Tensor, domain: str = "target", detail: str = "") -> Any:
        return SimpleNamespace(logits=torch.stack([image[:, 0], image[:, 1] * 2, image[:, 2] * 3], 1))


class Mean(nn.Module):
    """A network whose logits are the mean of what it sees: each window says something else."""

    num_classes = 1

    def forward(self, image: Tensor, domain: str = "target", detail: str = "") -> Any:
        return SimpleNamespace(logits=image.mean((1, 2, 3), keepdim=True).expand(-1, 1, *image.shape[2:]))


@pytest.mark.parametrize("window", [None, (8, 8), (5, 16), (64, 64)])
def test_windows_do_not_change_a_pointwise_network(window: tuple[int, int] | None) -> None:
    image = torch.rand(2, 3, 20, 31)
    got = predict(Pointwise(), image, short_side=20, window=window)  # type: ignore[arg-type]
    expected = Pointwise()(image).logits.softmax(1)
    assert torch.allclose(got, expected, atol=1e-6)


def test_overlapping_windows_are_averaged() -> None:
    from udaseg.models.inference import _slide

    image = torch.rand(1, 3, 4, 6)
    got = _slide(Mean(), image, (4, 4), 0.5, "target", "mean")  # type: ignore[arg-type]
    left, right = image[..., :4].mean(), image[..., 2:].mean()
    expected = torch.tensor([left, left, (left + right) / 2, (left + right) / 2, right, right])
    assert torch.allclose(got[0, 0], expected.expand(4, -1), atol=1e-6)


def test_probabilities_come_at_the_native_size() -> None:
    got = predict(Pointwise(), torch.rand(1, 3, 40, 61), short_side=16)  # type: ignore[arg-type]
    assert got.shape == (1, 3, 40, 61)
    assert torch.allclose(got.sum(1), torch.ones(1, 40, 61), atol=1e-5)


def test_tapered_windows_cross_over_smoothly() -> None:
    from udaseg.models.inference import _slide

    image = torch.rand(1, 3, 4, 6)
    got = _slide(Mean(), image, (4, 4), 0.5, "target", "taper")[0, 0, 0]
    left, right = image[..., :4].mean(), image[..., 2:].mean()
    # weights of columns 0..3 of a window of 4 are 1, 2, 2, 1: the overlap takes 2:1 and 1:2
    expected = torch.stack([left, left, (2 * left + right) / 3, (left + 2 * right) / 3, right, right])
    assert torch.allclose(got, expected, atol=1e-6)


@pytest.mark.parametrize("blend", ["mean", "taper"])
def test_blending_does_not_change_a_pointwise_network(blend: Any) -> None:
    image = torch.rand(2, 3, 20, 31)
    got = predict(Pointwise(), image, short_side=20, window=(8, 8), blend=blend)
    assert torch.allclose(got, Pointwise()(image).logits.softmax(1), atol=1e-6)


class Position(nn.Module):
    """A network that says "class 0" more surely the farther to the right a pixel is, whatever it shows."""

    num_classes = 2

    def forward(self, image: Tensor, domain: str = "target", detail: str = "") -> Any:
        ramp = torch.linspace(-2, 2, image.shape[-1]).expand(len(image), 1, *image.shape[-2:])
        return SimpleNamespace(logits=torch.cat([ramp, -ramp], 1))


def test_a_mirrored_view_is_mirrored_back() -> None:
    image = torch.rand(1, 3, 8, 12)
    once = predict(Position(), image, short_side=8)
    both = predict(Position(), image, short_side=8, flip=True)
    assert torch.allclose(both, (once + once.flip(-1)) / 2, atol=1e-6)
    pointwise = predict(Pointwise(), image, short_side=8, flip=True)
    assert torch.allclose(pointwise, Pointwise()(image).logits.softmax(1), atol=1e-6)


def test_scales_average_the_probabilities_of_each() -> None:
    image = torch.rand(1, 3, 16, 24)
    each = [predict(Pointwise(), image, short_side=side) for side in (8, 16, 32)]
    got = predict(Pointwise(), image, short_side=16, scales=(0.5, 1.0, 2.0))
    assert torch.allclose(got, torch.stack(each).mean(0), atol=1e-6)


def test_batches_hold_images_of_one_size_and_all_of_them() -> None:
    from udaseg.models.inference import by_size

    sizes = [(4, 6), (4, 6), (5, 5), (4, 6), (5, 5), (4, 6), (7, 2)]
    batches = list(by_size(((n, np.full((*size, 3), n, np.uint8)) for n, size in enumerate(sizes)), 2))
    assert [keys for keys, _ in batches] == [[0, 1], [2, 4], [3, 5], [6]]
    for keys, images in batches:
        assert images.shape == (len(keys), *sizes[keys[0]], 3) and (images[:, 0, 0, 0] == keys).all()


class Seen(Pointwise):
    """Keeps the sizes that it sees."""

    feature_stride, align_corners = 32, False

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[tuple[int, ...]] = []

    def forward(self, image: Tensor, domain: str = "target", detail: str = "") -> Any:
        self.sizes.append(tuple(image.shape[2:]))
        return super().forward(image)


@pytest.mark.parametrize(
    ("size", "short_side", "seen"),
    [
        ((227, 320), 240, (256, 352)),
        ((240, 320), 240, (256, 352)),
        ((256, 128), 128, (256, 128)),
        ((300, 200), 150, (256, 160)),
        ((80, 100), 80, (80, 100)),  # so few cells that a side would change by much
    ],
)
def test_a_network_sees_whole_cells(size: tuple[int, int], short_side: int, seen: tuple[int, int]) -> None:
    network, image = Seen(), torch.rand(1, 3, *size)
    got = predict(network, image, short_side=short_side)  # type: ignore[arg-type]
    assert network.sizes == [seen] and got.shape[2:] == size


def test_windows_and_aligned_corners_see_any_size() -> None:
    network, image = Seen(), torch.rand(1, 3, 227, 320)
    predict(network, image, short_side=240, window=(240, 338))  # type: ignore[arg-type]
    network.align_corners = True
    predict(network, image, short_side=240)  # type: ignore[arg-type]
    assert set(network.sizes) == {(240, 338)}


@pytest.mark.parametrize(
    ("views", "reason"),
    [
        ({"overlap": 1.0}, r"overlap is 1.0; it must lie in \[0, 1\)"),
        ({"overlap": -1.0}, "overlap is -1.0"),
        ({"window": 64}, "window is 64; give height and width"),
        ({"window": (0, 64)}, r"window is \(0, 64\)"),
        ({"scales": ()}, r"scales is \(\); give numbers above 0"),
        ({"scales": (1.0, 0.0)}, "scales is"),
        ({"blend": "sharp"}, "blend is 'sharp'; choose from mean, taper"),
        ({"domain": "both"}, "domain is 'both'; choose from source, target"),
    ],
)
def test_views_outside_their_range_are_refused_by_name(views: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        predict(Pointwise(), torch.rand(1, 3, 8, 8), short_side=8, **views)  # type: ignore[arg-type]


def test_bicubic_images_stay_in_range() -> None:
    image = torch.zeros(1, 3, 8, 8)
    image[..., 4:] = 1
    out = resized(image, 16, "bicubic")
    assert out.min() == 0 and out.max() == 1


@pytest.mark.parametrize(("size", "expected"), [((128, 200), (128, 192)), ((127, 199), (127, 199))])
def test_images_of_four_cells_or_more_are_resized_to_whole_cells(
    size: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert resized(torch.zeros(1, 3, *size), size[0], "antialias", 32).shape[-2:] == expected
