"""Images that take another one's colours."""

from __future__ import annotations

import kornia
import numpy as np
import torch

from udaseg.components.colours import recoloured

INDEX = torch.arange(6)


def grey_images(seed: int, low: float, high: float, size: tuple[int, int] = (5, 7)) -> torch.Tensor:
    """Between two greys with a little colour, so that no recoloured pixel leaves [0, 1]."""
    rng = np.random.default_rng(seed)
    grey = rng.uniform(low, high, (len(INDEX), 1, *size))
    return torch.tensor(grey + rng.uniform(0, 0.02, (len(INDEX), 3, *size)), dtype=torch.float32)


def test_an_image_gets_the_moments_of_the_other_one_channel_by_channel() -> None:
    image, like = grey_images(0, 0.2, 0.5), grey_images(1, 0.45, 0.6, (9, 4))
    got = kornia.color.rgb_to_lab(recoloured(image, like, INDEX, seed=0, probability=1.0)).double()
    lab, other = kornia.color.rgb_to_lab(image).double(), kornia.color.rgb_to_lab(like).double()
    for b, c in np.ndindex(len(INDEX), 3):
        x, y = lab[b, c].flatten(), other[b, c].flatten()
        want = [(v - x.mean()) / x.std() * y.std() + y.mean() for v in x]
        assert torch.allclose(got[b, c].flatten(), torch.stack(want), atol=0.05)  # of 100: the way there and back


def test_who_is_recoloured_depends_on_the_sample_alone() -> None:
    image, like = grey_images(0, 0.2, 0.5), grey_images(1, 0.6, 0.7)
    got = recoloured(image, like, INDEX, seed=3, probability=0.5)
    changed = (got != image).flatten(1).any(1)
    assert 0 < int(changed.sum()) < len(INDEX)
    rest = recoloured(image[2:], like[2:], INDEX[2:], seed=3, probability=0.5)
    assert torch.equal(rest, got[2:])
    assert torch.equal(recoloured(image, like, INDEX, seed=3, probability=0.0), image)


def test_an_image_of_one_colour_stays_finite() -> None:
    got = recoloured(torch.full((6, 3, 4, 4), 0.5), grey_images(1, 0.0, 1.0), INDEX, seed=0, probability=1.0)
    assert got.isfinite().all() and got.min() >= 0 and got.max() <= 1
