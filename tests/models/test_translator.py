"""The generator: identity at first, images of any size, each on its own."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from udaseg.models.translator import Translator


def moved(seed: int = 0) -> Translator:
    """A generator that has left its beginning."""
    torch.manual_seed(seed)
    network = Translator(4, 2)
    nn.init.normal_(network.last.weight, std=0.2)
    return network


@pytest.mark.parametrize("size", [(32, 48), (37, 50)])
def test_it_begins_as_the_identity_to_a_step_of_8_bits(size: tuple[int, int]) -> None:
    pixels = torch.randint(0, 256, (2, 3, *size), generator=torch.Generator().manual_seed(0))
    pixels[0, :, 0], pixels[1, :, 0] = 0, 255
    out = Translator(4, 1)(pixels / 255)
    assert torch.equal((out * 255).round().long(), pixels)


def test_what_it_has_learnt_stays_an_image_and_depends_on_no_other() -> None:
    network, image = moved(), torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    out = network(image)
    assert out.shape == image.shape and out.min() >= 0 and out.max() <= 1
    assert (out - image).abs().mean() > 0.05, "or nothing is tested"
    torch.testing.assert_close(network(image[:1]), out[:1])
    assert torch.equal(network.train()(image), network.eval()(image))


def test_the_change_is_one_of_the_logit() -> None:
    network, image = moved(), torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
    seen: list[torch.Tensor] = []
    network.last.register_forward_hook(lambda module, inputs, output: seen.append(output))
    odds = image / (1 - image) * network(image).new_tensor(0).add(seen[0]).exp()
    torch.testing.assert_close(network(image), odds / (1 + odds))


def test_all_of_it_learns_once_its_end_has_moved() -> None:
    network = moved()
    network(torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(0)))[:, 0, :9].sum().backward()
    assert all(p.grad is not None and p.grad.any() for p in network.parameters())
