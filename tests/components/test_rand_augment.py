"""ProDA's strong view: what maps it carries along, and that its samples are their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from fake_gpu import GPU, fake_gpu
from PIL import Image, ImageOps
from toy import SEED

from udaseg.components import rand_augment as module
from udaseg.components.rand_augment import GREY, StrongView, rand_augment

SIZE = (48, 72)


def view_of(image: torch.Tensor, index: torch.Tensor, purpose: str = "target") -> StrongView:
    return rand_augment(image, index, seed=SEED, purpose=purpose)


def test_a_map_moves_as_the_image_does(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without colours; blocks of the image that are three times as large as a cell of the map."""
    monkeypatch.setattr(module, "_POOL", module._GEOMETRY)
    rng = np.random.default_rng(0)
    blocks = torch.from_numpy(rng.integers(0, 5, (12, 1, 4, 6))).float() / 5
    image = blocks.repeat_interleave(12, 2).repeat_interleave(12, 3).expand(-1, 3, -1, -1)
    index = torch.arange(12)
    view = view_of(image, index)
    moved = view.carry(image[:, :1, 2::4, 2::4], -1.0)
    shown = view.image[:, :1, 2::4, 2::4]
    seen = moved >= 0
    assert 0.4 < seen.float().mean() < 0.95, "cut-outs and what turned in from outside show nothing"
    assert ((moved - shown).abs()[seen] < 0.02).float().mean() > 0.75, "but where blocks meet"
    assert ((shown - GREY).abs()[~seen] < 1e-3).float().mean() > 0.8
    still = (view.source == torch.eye(3)[:2]).flatten(1).all(1)
    flipped = (view.source == torch.diag(torch.tensor([-1.0, 1, 1]))[:2]).flatten(1).all(1)
    assert still.any() and flipped.any() and not (still | flipped).all()
    exact = still | flipped
    torch.testing.assert_close(moved[exact][seen[exact]], shown[exact][seen[exact]], rtol=0, atol=1e-5)
    mirrored = torch.where(still[:, None, None, None], image, image.flip(3))[:, :1, 2::4, 2::4]
    torch.testing.assert_close(moved[exact][seen[exact]], mirrored[exact][seen[exact]], rtol=0, atol=1e-5)


def test_the_cut_out_is_a_third_of_the_short_side() -> None:
    view = view_of(torch.ones(40, 3, *SIZE), torch.arange(40))
    cut = torch.isclose(view.image, torch.tensor(GREY)).all(1)
    outside = view.carry(torch.ones(40, 1, *SIZE), 0)[:, 0] == 0
    assert (outside & ~cut).float().mean() < 0.02
    sides = (view.cut[:, 2:] - view.cut[:, :2]) * torch.tensor([SIZE[1], SIZE[0]])
    assert (sides <= 16.001).all() and (sides > 7).all() and (sides > 15.9).all(1).any()


def test_a_sample_s_view_is_its_own() -> None:
    image = torch.rand(3, 3, *SIZE, generator=torch.Generator().manual_seed(0))
    whole, alone = view_of(image, torch.tensor([4, 7, 9])), view_of(image[1:2], torch.tensor([7]))
    assert torch.equal(whole.image[1:2], alone.image) and torch.equal(whole.source[1:2], alone.source)
    assert not torch.equal(view_of(image[1:2], torch.tensor([7]), "other").image, alone.image)
    assert whole.image.min() >= 0 and whole.image.max() <= 1


@pytest.mark.parametrize("name", module._COLOURS)
def test_colours_do_not_wait_for_a_gpu(name: str) -> None:
    with fake_gpu():
        module._COLOURS[name](torch.arange(40, 200, dtype=torch.uint8).expand(3, 8, -1).to(GPU, non_blocking=True), 0.5)


def test_equalize_is_pillow_s() -> None:
    image = (torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(0)) ** 2 * 200 + 20).to(torch.uint8)
    of_pillow = ImageOps.equalize(Image.fromarray(image.permute(1, 2, 0).numpy()))
    assert np.array_equal(module._COLOURS["equalize"](image, 0.5).permute(1, 2, 0).numpy(), np.asarray(of_pillow))


@pytest.mark.parametrize("name", module._COLOURS)
def test_colours_keep_the_place(name: str) -> None:
    """Pillow's operations on 8 bits: each changes a ramp as it says, or not at all."""
    ramp = torch.arange(40, 200, dtype=torch.uint8).expand(3, 8, -1)
    out = module._COLOURS[name](ramp, 0.5)
    assert out.dtype == torch.uint8 and out.shape == ramp.shape
    expected = {
        "identity": ramp, "sharpness": ramp, "color": ramp, "brightness": (0.5 * ramp).to(torch.uint8),
        "posterize": ramp & 0b11111100, "solarize": torch.where(ramp >= 128, 255 - ramp, ramp),
    }.get(name)  # fmt: skip
    if expected is not None:
        assert (out.int() - expected.int()).abs().max() <= 1
    else:
        low, high = {"autocontrast": (0, 255), "equalize": (0, 255), "contrast": (79, 160)}[name]
        assert abs(int(out.min()) - low) <= 2 and abs(int(out.max()) - high) <= 2
