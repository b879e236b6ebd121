"""Masks of classes and what is pasted through them."""

from __future__ import annotations

import numpy as np
import torch

from udaseg.components.mixing import class_mask, paste, rare_mask, soft_paste
from udaseg.types import IGNORE


def _labels(batch: int, classes: int, *, ignored: bool) -> torch.Tensor:
    label = torch.from_numpy(np.random.default_rng(0).integers(0, classes, (batch, 16, 16)))
    if ignored:
        label[:, :4] = IGNORE
    return label


def test_half_of_the_classes_rounded_up_are_pasted_whole() -> None:
    for classes in (1, 2, 5, 6):
        label = _labels(8, classes, ignored=False)
        mask = class_mask(label, torch.arange(8), seed=0)
        for sample, chosen in zip(label, mask, strict=True):
            pasted, left = set(sample[chosen].tolist()), set(sample[~chosen].tolist())
            assert len(pasted) == (classes + 1) // 2 and not pasted & left


def test_ignored_pixels_are_a_class_or_are_not() -> None:
    label = _labels(32, 3, ignored=True)
    counted = class_mask(label, torch.arange(32), seed=0)
    drawn = [bool(mask[sample == IGNORE].all()) for sample, mask in zip(label, counted, strict=True)]
    assert any(drawn) and not all(drawn)
    for sample, mask in zip(label, counted, strict=True):
        assert len(sample[mask].unique()) == 2, "4 classes with 255"
    left_out = class_mask(label, torch.arange(32), seed=0, include_ignore=False)
    assert not left_out[label == IGNORE].any()
    for sample, mask in zip(label, left_out, strict=True):
        assert len(sample[mask].unique()) == 2, "3 classes without 255, rounded up"


def test_a_label_of_nothing_but_ignored_pixels() -> None:
    label = torch.full((1, 4, 4), IGNORE)
    assert class_mask(label, torch.tensor([3]), seed=0).all()
    assert not class_mask(label, torch.tensor([3]), seed=0, include_ignore=False).any()


def test_the_draw_belongs_to_the_sample_not_to_its_place_in_the_batch() -> None:
    label, index = _labels(6, 9, ignored=False), torch.tensor([4, 8, 15, 16, 23, 42])
    mask = class_mask(label, index, seed=7)
    order = torch.tensor([3, 0, 5])
    assert torch.equal(class_mask(label[order], index[order], seed=7), mask[order])
    assert not torch.equal(class_mask(label, index, seed=8), mask)
    same_label = class_mask(label[:1].expand(6, -1, -1), index, seed=7)
    assert any(not torch.equal(same_label[0], other) for other in same_label[1:])


def test_paste_takes_maps_and_images() -> None:
    mask = torch.tensor([[[True, False]]])
    assert paste(mask, torch.ones(1, 1, 2), torch.zeros(1, 1, 2)).tolist() == [[[1, 0]]]
    image = paste(mask, torch.ones(1, 3, 1, 2), torch.zeros(1, 3, 1, 2))
    assert image[0].tolist() == [[[1, 0]]] * 3


def test_half_of_the_classes_rounded_down() -> None:
    for classes in (1, 2, 5, 6):
        label = _labels(8, classes, ignored=False)
        mask = class_mask(label, torch.arange(8), seed=0, round_up=False)
        assert {len(set(sample[m].tolist())) for sample, m in zip(label, mask, strict=True)} == {classes // 2}


def test_one_rare_class_that_the_image_has_is_drawn_whole() -> None:
    label = _labels(64, 5, ignored=True)
    label[0] = 0
    mask = rare_mask(label, torch.arange(64), classes=(2, 4, 7), seed=0)
    assert not mask[0].any()
    drawn = [set(sample[m].tolist()) for sample, m in zip(label[1:], mask[1:], strict=True)]
    assert {frozenset(classes) for classes in drawn} == {frozenset({2}), frozenset({4})}
    for sample, m in zip(label[1:], mask[1:], strict=True):
        assert torch.equal(m, sample == sample[m][0])
    again = rare_mask(label[5:7], torch.arange(5, 7), classes=(2, 4, 7), seed=0)
    assert torch.equal(again, mask[5:7])


def test_soft_paste_blends_inside_the_mask_alone() -> None:
    over, under = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask = torch.rand(2, 4, 4) < 0.5
    mixed = soft_paste(mask, over, under, blend=0.75)
    for n, i, j in np.ndindex(2, 4, 4):
        expected = 0.75 * over[n, :, i, j] + 0.25 * under[n, :, i, j] if mask[n, i, j] else under[n, :, i, j]
        assert torch.allclose(mixed[n, :, i, j], expected)


def test_classes_are_drawn_from_those_of_all_samples_of_a_pool() -> None:
    """Samples 0 and 1 share no class, so that one may be pasted whole and the other not at all."""
    label = _labels(4, 2, ignored=False)
    label[1::2] += 2
    index = torch.arange(4)
    own = class_mask(label, index, seed=0)
    for sample, chosen in zip(label, own, strict=True):
        assert len(set(sample[chosen].tolist())) == 1
    pasted = []
    for seed in range(60):
        mask = class_mask(label, index, seed=seed, pool_size=2)
        for i in range(4):
            drawn = set(label[i][mask[i]].tolist())
            assert not drawn & set(label[i][~mask[i]].tolist()), "a class is pasted whole"
            pasted.append(len(drawn))
    assert set(pasted) == {0, 1, 2}, "two of the four classes of the pool, for each sample anew"
    alone = class_mask(label[2:], index[2:], seed=7, pool_size=2)
    assert torch.equal(alone, class_mask(label, index, seed=7, pool_size=2)[2:]), "pools do not mix"
