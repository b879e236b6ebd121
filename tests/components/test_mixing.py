"""Masks of classes and what is pasted through them."""

from __future__ import annotations

import numpy as np
import torch

from udaseg.components.mixing import (
    border,
    class_mask,
    context_mask,
    next_of_group,
    paste,
    rare_mask,
    region_mask,
    reliable_mask,
    soft_paste,
    thing_mask,
)
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
    assert not rare_mask(label, torch.arange(64), classes=(), seed=0).any()
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


def test_a_region_is_one_rectangle_of_whole_cells_anywhere_and_of_any_size() -> None:
    image, index = torch.zeros(400, 3, 50, 70), torch.arange(400)
    mask = region_mask(image, index, stride=8, seed=0)
    assert mask.shape == (400, 6, 8)
    for sample in mask.numpy():
        rows, columns = np.flatnonzero(sample.any(1)), np.flatnonzero(sample.any(0))
        assert sample.sum() == len(rows) * len(columns) > 0
        assert len(rows) == np.ptp(rows) + 1 and len(columns) == np.ptp(columns) + 1
    share = mask.float().mean((1, 2))  # sides are floored
    assert 0.3 < float(share.mean()) < 0.5 and float(share.min()) < 0.05 and float(share.max()) > 0.7
    assert float(mask.float().mean(0).min()) > 0.05, "no corner is left out"
    assert torch.equal(region_mask(image[:2], index[5:7], stride=8, seed=0), mask[5:7])
    assert region_mask(image[:1, :, :5, :5], index[:1], stride=8, seed=0).tolist() == [[[True]]]


def test_half_of_the_things_rounded_down_but_one_at_least_are_pasted() -> None:
    label = _labels(60, 6, ignored=True)
    for things, count in (((1, 3, 5), 1), ((1, 2, 3, 4), 2), ((4,), 1), ((7,), 0)):
        mask = thing_mask(label, torch.arange(60), things=things, seed=0, num_classes=19)
        drawn = [set(sample[m].tolist()) for sample, m in zip(label, mask, strict=True)]
        assert {len(classes) for classes in drawn} == {count} and set().union(*drawn) <= set(things)
        assert not count or set().union(*drawn) == set(things)
        for sample, m in zip(label, mask, strict=True):
            assert torch.equal(m, torch.isin(sample, sample[m].unique()))


def test_the_border_of_a_mask_is_what_opencv_dilates_less_what_it_erodes() -> None:
    mask = torch.from_numpy(np.random.default_rng(0).random((2, 9, 11)) < 0.6)
    mask[1] = False
    mask[1, 2:6, 3:] = True
    found = border(mask)
    for n, i, j in np.ndindex(2, 9, 11):
        window = mask[n, max(i - 1, 0) : i + 1, max(j - 1, 0) : j + 1]
        assert found[n, i, j] == (window.any() and not window.all())
    assert found[1].nonzero()[0].tolist() == [2, 3] and not found[1, 3:5, 4:].any()
    assert not border(torch.ones(1, 4, 4, dtype=torch.bool)).any()


def test_companions_are_pasted_with_what_they_come_with_in_the_order_of_their_pairs() -> None:
    label = _labels(80, 6, ignored=False)
    index = torch.arange(80)
    plain = context_mask(label, index, companions=(), seed=0, num_classes=6)
    drawn = [set(sample[m].tolist()) for sample, m in zip(label, plain, strict=True)]
    assert {len(classes) for classes in drawn} == {3}
    paired = context_mask(label, index, companions=((0, 1), (1, 2), (2, 9)), seed=0, num_classes=19)
    assert not paired.equal(plain)
    for sample, m, classes in zip(label, paired, drawn, strict=True):
        wanted = classes | ({1} if 0 in classes else set())
        wanted |= {2} if 1 in wanted else set()
        assert set(sample[m].tolist()) == wanted
    late = context_mask(label, index, companions=((1, 2), (0, 1)), seed=0, num_classes=6)
    missed = [set(sample[m].tolist()) for sample, m in zip(label, late, strict=True)]
    assert any({0, 1} <= classes and 2 not in classes for classes in missed), "a pair is looked at once"


def test_classes_are_drawn_by_how_reliable_their_pixels_are() -> None:
    """Of four classes half: the first draw is in proportion to mean reliability, the second likewise of the rest."""
    samples, mean = 2000, (0.1, 0.2, 0.3, 0.4)
    label = torch.arange(4).repeat(samples, 2, 1)
    label[:, 1, 3] = IGNORE
    reliability = torch.tensor(mean).expand(samples, 2, 4) * torch.tensor([[1.5], [0.5]])
    reliability[:, 0, 3] = mean[3]  # the only pixel of the class that is known
    mask = reliable_mask(label, reliability, torch.arange(samples), share=0.5, seed=0, num_classes=4)
    assert not mask[:, 1, 3].any() and (mask[:, 0].sum(1) == 2).all()
    assert torch.equal(mask[:, 0, :3], mask[:, 1, :3])
    for c, p in enumerate(mean):
        drawn = p + sum(q * p / (1 - q) for d, q in enumerate(mean) if d != c)
        assert abs(float(mask[:, 0, c].float().mean()) - drawn) < 0.04
    part = reliable_mask(label[5:7], reliability[5:7], torch.arange(5, 7), share=0.5, seed=0, num_classes=4)
    assert torch.equal(part, mask[5:7]), "each sample draws by its own key"
    assert not reliable_mask(label, reliability, torch.arange(samples), share=0, seed=0, num_classes=4).any()
    none = reliable_mask(label, 0 * reliability, torch.arange(samples), share=0.5, seed=0, num_classes=5)
    assert (none[:, 0].sum(1) == 2).all(), "present classes come before absent ones, however unreliable"


def test_the_next_of_a_group_is_found_within_it() -> None:
    assert next_of_group(torch.arange(6), 3).tolist() == [1, 2, 0, 4, 5, 3]


def test_a_share_of_whole_classes_is_that_many() -> None:
    """Single precision has 3 / 21 of 21 a little above 3."""
    for classes in range(1, 31):
        label = torch.arange(classes)[None, None]
        for wanted in range(1, classes + 1):
            mask = reliable_mask(
                label, torch.ones(1, 1, classes), torch.tensor([0]), share=wanted / classes, seed=0, num_classes=classes
            )
            assert int(mask.sum()) == wanted
