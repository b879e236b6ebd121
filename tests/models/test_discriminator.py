"""Discriminators: their layers, and that they teach another network without learning themselves."""

from __future__ import annotations

import torch
from draws import normal
from torch import nn

from udaseg.models.discriminator import Discriminator


def test_the_layers_are_those_of_the_papers() -> None:
    def layers(network: Discriminator) -> list[tuple[int, int, int, int, int]]:
        found = [m for m in network if isinstance(m, nn.Conv2d)]
        return [(m.in_channels, m.out_channels, m.kernel_size[0], m.stride[0], m.padding[0]) for m in found]

    advent, proda = Discriminator(19), Discriminator(19, form="proda")
    widths = [(19, 64), (64, 128), (128, 256), (256, 512)]
    assert layers(advent) == [(a, b, 4, 2, 1) for a, b in [*widths, (512, 1)]]
    assert layers(proda) == [*((a, b, 3, 2, 1) for a, b in widths), (512, 1, 1, 1, 0)]
    assert [m.negative_slope for m in advent if isinstance(m, nn.LeakyReLU)] == [0.2] * 4
    assert [type(m) for m in proda if not isinstance(m, nn.Conv2d)] == [nn.ReLU] * 3 + [nn.LeakyReLU]
    image = torch.zeros(2, 19, 64, 96)
    assert advent(image).shape == (2, 1, 2, 3) and proda(image).shape == (2, 1, 4, 6)


def test_what_judges_does_not_learn() -> None:
    network, seen = Discriminator(3, 2), normal(1, 3, 64, 64, dtype=torch.float32).requires_grad_()
    verdict = network.judge(seen)
    assert torch.equal(verdict, network(seen))
    verdict.sum().backward()
    assert seen.grad is not None and seen.grad.any()
    assert all(p.grad is None and p.requires_grad for p in network.parameters())
