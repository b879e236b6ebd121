"""Class distributions against loops, on two ranks too, and the classifier by prototypes."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from draws import labels, normal
from networks import small_network
from torch import Tensor, nn
from two_ranks import TwoRanks

from udaseg.components import prototypes as module
from udaseg.components.prototypes import (
    ClassGaussians,
    ClassPrototypes,
    MovingPrototypes,
    PrototypeClassifier,
    class_means,
    prototype_distance,
    prototype_logits,
)
from udaseg.models.inference import predict


def _features(part: slice) -> tuple[Tensor, Tensor]:
    return normal(90, 4).float()[part], labels(90, classes=3)[part]


def test_gaussians_are_those_of_everything_seen() -> None:
    bank = ClassGaussians(4, 4)
    for part in (slice(0, 10), slice(10, 11), slice(11, 90)):
        bank.update(*_features(part))
    feature, label = (v.numpy() for v in _features(slice(0, 90)))
    for c in range(3):
        mine = feature[label == c]
        assert bank.count[c] == len(mine)
        assert bank.mean[c].tolist() == pytest.approx(mine.mean(0), rel=1e-4, abs=1e-6)
        assert bank.variance[c].tolist() == pytest.approx(mine.var(0), rel=1e-4)
    assert not bank.count[3] and not bank.mean[3].any() and not bank.variance[3].any()


@pytest.mark.parametrize("decay_absent", [False, True])
def test_prototypes_follow_the_means_of_steps(decay_absent: bool) -> None:
    classes = ClassPrototypes(4, 4, momentum=0.1, decay_absent=decay_absent)
    expected = np.zeros((4, 4))
    seen = np.zeros(4, dtype=bool)
    for part in (slice(0, 3), slice(3, 5), slice(5, 90)):
        feature, label = _features(part)
        classes.update(feature, label)
        for c in range(4):
            mine = feature[label == c].double().numpy()
            if decay_absent:
                expected[c] = 0.1 * expected[c] + 0.9 * (mine.mean(0) if len(mine) else 0)
            elif len(mine):
                expected[c] = 0.1 * expected[c] + 0.9 * mine.mean(0) if seen[c] else mine.mean(0)
            seen[c] |= len(mine) > 0
        np.testing.assert_allclose(classes.prototypes.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert classes.seen.tolist() == seen.tolist() == [True, True, True, False]


def _bank(rank: int | None) -> list[np.ndarray]:
    bank = ClassGaussians(4, 4)
    for first, last in ((0, 30), (30, 90)):
        middle = first + (last - first) // 3
        part = {None: slice(first, last), 0: slice(first, middle), 1: slice(middle, last)}[rank]
        bank.update(*_features(part))
    return [v.numpy() for v in (bank.count, bank.mean, bank.variance)]


def test_gaussians_on_two_ranks_equal_one(two_ranks: TwoRanks) -> None:
    one, both = _bank(None), two_ranks.run(_bank)
    for rank in both:
        for mine, theirs in zip(one, rank, strict=True):
            np.testing.assert_allclose(mine, theirs, rtol=1e-5, atol=1e-6)


def test_the_nearest_prototype_classifies() -> None:
    class Colours(nn.Module):
        num_classes, feature_stride, align_corners = 9, 1, False

        def forward(self, image: Tensor, domain: str = "target", detail: str = "") -> Any:
            return SimpleNamespace(embedding=image)

        def upsampled(self, coarse: Tensor, image: Tensor) -> Tensor:
            return coarse

    image = torch.tensor([[1.0, 0, 0], [0, 1, 0], [0, 0.1, 1]]).T.reshape(1, 3, 1, 3)
    prototypes = torch.tensor([[2.0, 0, 0], [0, 3, 0], [0, 0, 0], [0, 0, 1]])
    present = torch.tensor([True, True, False, True])
    classifier = PrototypeClassifier(Colours(), prototypes, present, 0.1)  # type: ignore[arg-type]
    probability = predict(classifier, image, short_side=1)
    assert classifier.num_classes == 4 and probability.argmax(1).tolist() == [[[0, 1, 3]]]
    expected = torch.tensor([10.0, 0, -10, 0]).softmax(0)
    assert torch.allclose(probability[0, :, 0, 0], expected, atol=1e-6)


def test_distances_to_prototypes_are_euclidean() -> None:
    feature, prototypes = normal(2, 5, 3, 4).requires_grad_(), normal(6, 5, seed=1)
    expected = (feature[:, None] - prototypes[None, :, :, None, None]).norm(dim=2)
    found = prototype_distance(feature, prototypes)
    torch.testing.assert_close(found, expected)
    for gradient, wanted in zip(*(torch.autograd.grad(d.sum(), feature) for d in (found, expected)), strict=True):
        torch.testing.assert_close(gradient, wanted)


def test_class_means_are_of_single_images_with_enough_cells() -> None:
    feature = normal(2, 3, 2, 3)
    label = torch.tensor([[[0, 0, 1], [0, 255, 1]], [[2, 2, 2], [2, 2, 0]]])
    means, present = class_means(feature, label, 4, min_cells=2)
    assert present.tolist() == [[True, True, False, False], [False, False, True, False]]
    torch.testing.assert_close(means[0, 1], feature[0, :, :, 2].mean(1))
    torch.testing.assert_close(means[1, 2], feature[1].flatten(1)[:, :5].mean(1))


def test_prototypes_are_a_mean_at_first_and_then_follow_image_by_image() -> None:
    first, second = normal(3, 2, 4), normal(2, 2, 4, seed=1)
    present = torch.tensor([[True, False], [True, False], [True, False]])
    prototypes = MovingPrototypes(2, 4, momentum=0.75).double()
    prototypes.update(first, present, average=True)
    torch.testing.assert_close(prototypes.value[0], first[:, 0].mean(0))
    assert not prototypes.value[1].any() and prototypes.count.tolist() == [3, 0]
    prototypes.update(second, torch.ones(2, 2, dtype=torch.bool), average=False)
    expected = 0.75 * (0.75 * first[:, 0].mean(0) + 0.25 * second[0, 0]) + 0.25 * second[1, 0]
    torch.testing.assert_close(prototypes.value[0], expected)
    torch.testing.assert_close(prototypes.value[1], 0.75 * second[0, 1] + 0.25 * second[1, 1])  # its first is itself


@pytest.mark.parametrize("aligned", [False, True])
def test_prototypes_see_images_at_the_size_and_corners_of_their_network(aligned: bool) -> None:
    network = small_network(align_corners=aligned).eval()
    classes, dim = 5, network.embedding_channels
    classifier = PrototypeClassifier(network, torch.randn(classes, dim), torch.ones(classes, dtype=torch.bool), 0.1)
    sizes: list[torch.Size] = []
    network.register_forward_pre_hook(lambda _, inputs: sizes.append(inputs[0].shape[-2:]))
    image = torch.rand(1, 3, 150, 202, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        for one in (network, classifier):
            predict(one, image, short_side=150)
        cosine = prototype_logits(
            network(image, "target").embedding, classifier.prototypes[None], classifier.present[None], temperature=0.1
        )
        assert torch.equal(classifier(image, "target").logits, network.upsampled(cosine, image))
    assert sizes[0] == sizes[1] == ((150, 202) if aligned else (160, 224))


def test_distances_in_blocks_are_those_of_all_cells_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    feature = torch.randn(2, 5, 6, 7, generator=generator).requires_grad_()
    prototypes = torch.randn(3, 5, generator=generator)
    found = []
    for rows in (1000, 8):
        monkeypatch.setattr(module, "_ROWS", rows)
        distance = prototype_distance(feature, prototypes)
        found += [distance, *torch.autograd.grad(distance.square().sum(), feature)]
    expected = (feature[:, None] - prototypes[None, :, :, None, None]).square().sum(2).sqrt()
    torch.testing.assert_close(found[0], expected)
    assert torch.equal(found[0], found[2]) and torch.equal(found[1], found[3])
