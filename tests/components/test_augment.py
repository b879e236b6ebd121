from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from udaseg.components.augment import balanced_crop, random_resized_crop, strong, weak
from udaseg.components.rand_augment import rand_augment
from udaseg.rng import keyed, uniforms
from udaseg.types import IGNORE, Batch


def _batch(size: int = 8, height: int = 32, width: int = 48) -> Batch:
    """Images, labels and weights that all say the same, each in its own way."""
    label = torch.from_numpy(np.random.default_rng(0).integers(0, 19, (size, height // 8, width // 8)))
    label = label.repeat_interleave(8, 1).repeat_interleave(8, 2)
    shade = (label + 1).float() / 20
    return Batch(
        image=shade[:, None].repeat(1, 3, 1, 1), index=torch.arange(10, 10 + size), label=label, weight=shade.clone()
    )


def _pick(batch: Batch, order: torch.Tensor) -> Batch:
    assert batch.label is not None and batch.weight is not None
    return Batch(
        image=batch.image[order], index=batch.index[order], label=batch.label[order], weight=batch.weight[order]
    )


def _equal(a: Batch, b: Batch) -> bool:
    assert a.label is not None and a.weight is not None and b.label is not None and b.weight is not None
    return (
        torch.equal(a.image, b.image)
        and torch.equal(a.index, b.index)
        and torch.equal(a.label, b.label)
        and torch.equal(a.weight, b.weight)
    )


def test_flip_moves_image_label_and_weight_together() -> None:
    batch = _batch()
    out = weak(batch, seed=0, purpose="source")
    assert batch.label is not None and out.label is not None and out.weight is not None
    flips = [torch.equal(b, a.flip(-1)) for a, b in zip(batch.image, out.image, strict=True)]
    assert 0 < sum(flips) < len(flips)
    assert all(torch.equal(b, a.flip(-1) if f else a) for a, b, f in zip(batch.label, out.label, flips, strict=True))
    assert torch.equal(out.weight, (out.label + 1).float() / 20)
    assert torch.equal(out.image[:, 0], out.weight)


def test_flip_probability_zero_and_one() -> None:
    batch = _batch()
    assert _equal(weak(batch, seed=0, purpose="x", flip=0.0), batch)
    assert torch.equal(weak(batch, seed=0, purpose="x", flip=1.0).image, batch.image.flip(-1))


def test_rotation_moves_image_label_and_weight_together() -> None:
    batch = _batch(6)
    out = weak(batch, seed=0, purpose="source", flip=0.0, rotation=30.0)
    assert out.label is not None and out.weight is not None and batch.label is not None
    assert not torch.equal(out.label, batch.label)
    inside = out.label != IGNORE
    torch.testing.assert_close(out.weight[inside], (out.label[inside] + 1).float() / 20)
    assert not out.weight[~inside].any(), "what turns in from outside weighs nothing"
    agree = (out.image[:, 0] - out.weight).abs() < 1e-4  # images are bilinear, so they differ at borders
    assert agree[inside].float().mean() > 0.6
    assert inside[:, 12:20, 20:28].all() and not inside[:, 0, 0].all()


def test_rotation_turns_by_the_angle_around_the_centre() -> None:
    """A square turned by 90 degrees is a permutation of its pixels, to compare with `rot90`."""
    label = torch.arange(49).view(1, 7, 7)
    quarter = [abs(abs(2 * uniforms(s, np.array([0]), "weak.x", 2)[0, 1] - 1) - 0.5) < 1e-3 for s in range(2000)]
    seed = quarter.index(True)
    batch = Batch(image=(label / 49.0)[:, None].repeat(1, 3, 1, 1), index=torch.tensor([0]), label=label)
    out = weak(batch, seed=seed, purpose="x", flip=0.0, rotation=180.0)
    assert out.label is not None
    turned = [torch.rot90(label, times, (1, 2)) for times in (1, 3)]
    assert any(torch.equal(out.label, t) for t in turned)
    assert any(torch.allclose(out.image[:, 0], t / 49.0, atol=0.05) for t in turned)


def test_labels_are_never_interpolated() -> None:
    label = torch.zeros(16, 32, 32, dtype=torch.int64)
    label[:, :, 16:] = 18
    batch = Batch(image=torch.rand(16, 3, 32, 32), index=torch.arange(16), label=label)
    out = weak(batch, seed=1, purpose="x", rotation=45.0)
    assert out.label is not None
    assert out.label.dtype == torch.int64
    assert set(out.label.unique().tolist()) == {0, 18, IGNORE}
    assert out.weight is None


def test_ignored_pixels_stay_ignored() -> None:
    batch = Batch(image=torch.rand(4, 3, 16, 16), index=torch.arange(4), label=torch.full((4, 16, 16), IGNORE))
    out = weak(batch, seed=1, purpose="x", rotation=45.0)
    assert out.label is not None and (out.label == IGNORE).all()


@pytest.mark.parametrize("rotation", [0.0, 20.0])
def test_weak_view_of_a_sample_does_not_depend_on_its_company(rotation: float) -> None:
    batch = _batch()
    whole = weak(batch, seed=3, purpose="target", rotation=rotation)
    order = torch.tensor([5, 2, 7])
    assert _equal(weak(_pick(batch, order), seed=3, purpose="target", rotation=rotation), _pick(whole, order))
    for i in range(8):
        one = torch.tensor([i])
        assert _equal(weak(_pick(batch, one), seed=3, purpose="target", rotation=rotation), _pick(whole, one))


def test_streams_and_seeds_draw_differently() -> None:
    batch = _batch(16)
    views = [weak(batch, seed=s, purpose=p).image for s, p in [(0, "source"), (0, "target"), (1, "source")]]
    assert not torch.equal(views[0], views[1]) and not torch.equal(views[0], views[2])


def test_the_batch_itself_is_left_as_it_was() -> None:
    batch, kept = _batch(), _batch()
    weak(batch, seed=0, purpose="x", rotation=20.0)
    strong(batch.image, batch.index, seed=0, purpose="x", jitter_probability=1.0, blur_probability=1.0)
    assert _equal(batch, kept)


# --- the photometric view -------------------------------------------------------------------------------------------


def _images(size: int = 8) -> tuple[torch.Tensor, torch.Tensor]:
    image = torch.from_numpy(np.random.default_rng(0).random((size, 3, 24, 32), dtype=np.float32))
    image[0, :, :12], image[0, :, 12:], image[1] = 0, 1, 0.5  # black, white and grey have no hue
    return image, torch.arange(100, 100 + size)


@pytest.mark.parametrize("jitter", [0.25, 0.5])
def test_strong_view_stays_in_range(jitter: float) -> None:
    image, index = _images(16)
    out = strong(image, index, seed=0, purpose="x", jitter=jitter, jitter_probability=1.0, blur_probability=0.5)
    assert torch.isfinite(out).all() and out.min() >= 0 and out.max() <= 1
    assert not torch.equal(out, image)


def test_strong_view_is_a_function_of_the_key() -> None:
    image, index = _images()
    once = strong(image, index, seed=5, purpose="mixed")
    assert torch.equal(strong(image, index, seed=5, purpose="mixed"), once)
    assert not torch.equal(strong(image, index, seed=6, purpose="mixed"), once)
    assert not torch.equal(strong(image, index, seed=5, purpose="other"), once)


def test_strong_view_of_a_sample_does_not_depend_on_its_company() -> None:
    image, index = _images()
    whole = strong(image, index, seed=5, purpose="mixed")
    for order in (torch.tensor([6, 1, 3]), torch.arange(7, -1, -1), torch.tensor([4])):
        assert torch.equal(strong(image[order], index[order], seed=5, purpose="mixed"), whole[order])


def test_shares_of_jittered_and_blurred_images() -> None:
    image, index = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200)
    for jitter, blur in [(0.8, 0.0), (0.0, 0.5)]:
        out = strong(image, index, seed=0, purpose="x", jitter_probability=jitter, blur_probability=blur)
        changed = float((out != image).flatten(1).any(1).float().mean())
        assert changed == pytest.approx(jitter + blur, abs=0.1)
    off = strong(image, index, seed=0, purpose="x", jitter_probability=0.0, blur_probability=0.0)
    assert torch.equal(off, image)
    assert torch.equal(strong(image, index, seed=0, purpose="x", jitter=0.0, blur_probability=0.0), image)


def test_grey_images_and_the_strength_of_their_hue() -> None:
    image, index = torch.rand(200, 3, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(200)
    plain = {"seed": 0, "purpose": "x", "blur_probability": 0.0}
    out = strong(image, index, **plain, jitter=0.0, grey_probability=0.2)
    grey = (out == out[:, :1]).flatten(1).all(1)
    assert float(grey.float().mean()) == pytest.approx(0.2, abs=0.08) and torch.equal(out[~grey], image[~grey])
    own, same, none = (strong(image, index, **plain, jitter=0.5, hue=hue) for hue in (None, 0.5, 0.0))
    assert torch.equal(own, same) and not torch.equal(own, none)
    few = image * 0.2 + 0.4  # colours that no change but the hue's takes out of their order
    kept = strong(few, index, **plain, jitter=0.2, hue=0.0)
    assert torch.equal(kept.argsort(1), few.argsort(1)), "the hue stays"
    assert not torch.equal(strong(few, index, **plain, jitter=0.2).argsort(1), few.argsort(1))


def test_blur_smooths_and_keeps_the_mean() -> None:
    image, index = _images()
    out = strong(image, index, seed=0, purpose="x", jitter=0.0, blur_probability=1.0)
    assert (out[2:].var((2, 3)) < image[2:].var((2, 3))).all()
    torch.testing.assert_close(out.mean((2, 3)), image.mean((2, 3)), rtol=0.05, atol=0.02)
    torch.testing.assert_close(out[1], image[1])


def _halves() -> Batch:
    """Images whose pixels say where they are, class 0 on the left and class 1 on the right."""
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(40.0), indexing="ij")
    label = (column >= 20).long().expand(30, -1, -1)
    image = torch.stack([row, column, row]).expand(30, -1, -1, -1)
    return Batch(image=image, index=torch.arange(30), label=label, weight=column.expand(30, -1, -1))


def test_a_balanced_crop_shows_two_classes_of_which_none_fills_it() -> None:
    batch = _halves()
    out = balanced_crop(batch, batch.labels, size=(8, 12), max_class_share=0.75, seed=1)
    assert out.image.shape == (30, 3, 8, 12) and out.label is not None and out.weight is not None
    share = (out.label == 0).float().mean((1, 2))
    share = torch.maximum(share, 1 - share)
    assert (share < 0.75).float().mean() > 0.8, "ten draws, a sixth of which are good, mostly find one"
    rows, columns = out.image[:, 0], out.image[:, 1]
    assert torch.equal(out.label, (columns >= 20).long()) and torch.equal(out.weight, columns)
    assert (rows.diff(dim=1) == 1).all() and (columns.diff(dim=2) == 1).all()
    assert len({(int(r[0, 0]), int(c[0, 0])) for r, c in zip(rows, columns, strict=True)}) > 10
    alone = replace(batch, image=batch.image[7:8], index=batch.index[7:8], label=batch.labels[7:8], weight=None)
    single = balanced_crop(alone, alone.labels, size=(8, 12), max_class_share=0.75, seed=1)
    assert torch.equal(single.image[0], out.image[7])


def test_a_balanced_crop_is_the_one_of_ten_with_the_largest_product_of_its_classes() -> None:
    label = torch.randint(0, 4, (12, 5, 5), generator=torch.Generator().manual_seed(0))
    label = label.repeat_interleave(4, 1).repeat_interleave(4, 2)
    label[:, :6, :6] = IGNORE
    row, column = torch.meshgrid(torch.arange(20.0), torch.arange(20.0), indexing="ij")
    image = torch.stack([row, column, row]).expand(12, -1, -1, -1)
    out = balanced_crop(Batch(image=image, index=torch.arange(12)), label, size=(7, 9), max_class_share=0.6, seed=3)
    for i in range(12):
        draws, best, most = keyed(3, i, "balanced_crop"), (0, 0), -1.0
        for _ in range(10):
            top, left = int(draws.integers(14)), int(draws.integers(12))
            crop = label[i, top : top + 7, left : left + 9]
            pixels = [int((crop == c).sum()) for c in range(4)]
            good = sum(n > 1 for n in pixels) > 1 and max(pixels) < 0.6 * sum(pixels)
            score = sum(math.log(n) for n in pixels if n > 1) if good else 0.0
            if score > most + 1e-6:
                best, most = (top, left), score
        assert (int(out.image[i, 0, 0, 0]), int(out.image[i, 1, 0, 0])) == best


def test_a_crop_of_one_class_is_taken_where_there_is_no_other_and_none_that_is_too_large() -> None:
    batch = _halves()
    one = torch.zeros_like(batch.labels)
    assert balanced_crop(batch, one, size=(20, 40), max_class_share=0.75, seed=1).image.equal(batch.image)
    with pytest.raises(ValueError, match=r"\(21, 40\) do not fit into images of \(20, 40\)"):
        balanced_crop(batch, one, size=(21, 40), max_class_share=0.75, seed=1)


def test_a_resized_crop_is_a_linear_map_of_image_and_label_within_its_range_of_areas() -> None:
    """The image's colours are its columns and rows, and so is its label."""
    rows, columns = torch.meshgrid(torch.arange(40.0), torch.arange(60.0), indexing="ij")
    image = torch.stack([columns, rows, rows]).expand(50, -1, -1, -1)
    label = columns.long().expand(50, -1, -1)
    options = {"size": (20, 30), "scale": (0.2, 0.8), "seed": 3, "purpose": "test"}
    view, ids = random_resized_crop(image, label, torch.arange(50), **options)  # type: ignore[arg-type]
    assert view.shape == (50, 3, 20, 30) and ids.shape == (50, 20, 30)
    assert (ids - view[:, 0]).abs().max() <= 0.5 + 1e-4
    inner = view[..., 2:-2, 2:-2]  # beyond the image's outermost pixels colours do not go on
    steps = inner[:, 0].diff(dim=2), inner[:, 1].diff(dim=1)
    for step in steps:
        assert (step - step.mean((1, 2), keepdim=True)).abs().max() < 1e-3
    across, down = (step.mean((1, 2)) for step in steps)
    area, ratio = across * 30 * down * 20 / 2400, across * 30 / (down * 20)
    assert area.min() > 0.19 and area.max() < 0.81 and area.max() - area.min() > 0.4
    assert ratio.min() > 0.74 and ratio.max() < 1.34
    part = random_resized_crop(image[:2], label[:2], torch.tensor([7, 9]), **options)  # type: ignore[arg-type]
    assert torch.equal(part[0], view[[7, 9]]) and torch.equal(part[1], ids[[7, 9]])


def _turned(image: torch.Tensor, index: torch.Tensor) -> None:
    weak(Batch(image=image, index=index, label=image[:, 0].long()), seed=3, purpose="test", rotation=10)


def _cropped(image: torch.Tensor, index: torch.Tensor) -> None:
    random_resized_crop(image, image[:, 0].long(), index, size=(8, 8), scale=(0.2, 0.8), seed=3, purpose="test")


def _carried(image: torch.Tensor, index: torch.Tensor) -> None:
    rand_augment(image, index, seed=3, purpose="test").carry(image[:, :1], 0)


@pytest.mark.parametrize("sample", [_turned, _cropped, _carried])
def test_places_are_products_in_full_precision(sample: Callable[[torch.Tensor, torch.Tensor], None]) -> None:
    """Where a run's other products are in TF32, whose eleven bits are half a pixel of an image of 1024."""
    seen = []

    class Products(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            if "mm" in func.name() or "affine_grid" in func.name():
                seen.append(torch.get_float32_matmul_precision())
            return func(*args, **(kwargs or {}))

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    try:
        with Products():
            sample(torch.rand(2, 3, 16, 16), torch.arange(2))
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
    assert seen and set(seen) == {"highest"}


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (3, 3), (3, 50), (4, 4)])
def test_images_of_a_few_pixels_are_blurred_too(size: tuple[int, int]) -> None:
    image = torch.rand(2, 3, *size, generator=torch.Generator().manual_seed(0))
    view = strong(image, torch.arange(2), seed=0, purpose="test", jitter=0, blur_probability=1)
    assert view.shape == image.shape and view.isfinite().all() and view.max() <= 1
    flat = torch.full((2, 3, *size), 0.25)
    blurred = strong(flat, torch.arange(2), seed=0, purpose="test", jitter=0, blur_probability=1)
    torch.testing.assert_close(blurred, flat)
