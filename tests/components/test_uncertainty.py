"""The entropy of a teacher's mean over noisy passes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn

from udaseg.components.uncertainty import entropy_threshold, noisy_entropy
from udaseg.models.teacher import EMATeacher
from udaseg.types import Batch, SegOutput


class Sees(nn.Module):
    """Its logits are its images, which it keeps."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor, domain: str, detail: str = "") -> SegOutput:
        self.seen.append(image)
        return SegOutput(logits=image, embedding=image, aux={"coarse_logits": 30 * image})


def entropies(images: Tensor, index: Tensor, **options: float) -> tuple[Tensor, list[Tensor]]:
    teacher = EMATeacher(Sees(), momentum=0.9)  # type: ignore[arg-type]
    batch = Batch(image=images, index=index)
    found = noisy_entropy(teacher, batch, passes=4, seed=5, **options)  # type: ignore[arg-type]
    return found, teacher.network.seen  # type: ignore[return-value]


def test_it_is_that_of_the_mean_probability() -> None:
    images, index = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)), torch.tensor([3, 8])
    found, seen = entropies(images, index, noise=0.05)
    mean = torch.stack([(30 * image).softmax(1) for image in seen]).mean(0)
    torch.testing.assert_close(found, -(mean * mean.log()).sum(1))
    single = [-(p * p.log()).sum(1) for p in ((30 * image).softmax(1) for image in seen)]
    assert (found > torch.stack(single).mean(0) - 1e-5).all(), "passes that disagree add to it"


def test_noise_is_normal_cut_off_and_of_the_sample() -> None:
    images, index = torch.zeros(2, 3, 32, 32), torch.tensor([3, 8])
    _, seen = entropies(images, index, noise=0.05)
    drawn = torch.stack(seen)
    assert 0.045 < drawn.std() < 0.05 and drawn.abs().max() == pytest.approx(0.1) and abs(drawn.mean()) < 1e-3
    assert len({float(x[0, 0, 0, 0]) for x in seen}) == 4 and not torch.equal(drawn[:, 0], drawn[:, 1])
    _, other = entropies(images[:1], index[1:], noise=0.05)
    assert torch.equal(torch.stack(other)[:, 0], drawn[:, 1])
    _, none = entropies(images, index, noise=0.0)
    assert all(torch.equal(x, images) for x in none)


def test_the_threshold_rises_to_what_no_entropy_exceeds() -> None:
    found = [entropy_threshold(t, ramp_steps=10, num_classes=4) for t in range(15)]
    assert found[0] == pytest.approx((0.75 + 0.25 * math.exp(-5)) * math.log(4))
    assert found == sorted(found) and found[10:] == [math.log(4)] * 5
