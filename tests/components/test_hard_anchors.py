"""Which cells are contrasted: as many of each class, half of them hard where there are enough."""

from __future__ import annotations

import torch
from draws import labels
from torch import Tensor

from udaseg.components.hard_anchors import Anchors, hard_anchors
from udaseg.types import IGNORE

CLASSES = 4


def drawn(label: Tensor, predicted: Tensor, **settings: int) -> Anchors:
    options = {"seed": 3, "num_classes": CLASSES, "group_size": 2, "most": 60, "per_class": 10} | settings
    return hard_anchors(label, predicted, torch.arange(len(label)), **options)


def test_each_class_of_each_image_gives_as_many_of_which_half_are_hard() -> None:
    label, predicted = labels(4, 200, classes=CLASSES), labels(4, 200, classes=CLASSES, seed=1, ignored=0)
    label[0][label[0] == 2] = 1
    label[1, :] = torch.where(label[1] == 3, 0, label[1])
    label[1, :10] = 3  # ten, and more than ten are needed
    label[3] = torch.where(label[3] == 0, IGNORE, label[3])
    found = drawn(label, predicted)
    assert found.cell.shape == (2, 2 * CLASSES * 10)
    for g, classes in ((0, {(0, 0), (0, 1), (0, 3), (1, 0), (1, 1), (1, 2)}), (1, None)):
        kept = found.label[g] != IGNORE
        cells = found.cell[g][kept]
        image, place = cells // 200 + 2 * g, cells % 200
        assert torch.equal(label[image, place], found.label[g][kept])
        assert len(cells.unique()) == len(cells)
        pairs = {(int(i), int(c)) for i, c in zip(image % 2, found.label[g][kept], strict=True)}
        assert classes is None or pairs == classes
        each = min(60 // len(pairs), 10)
        for i, c in pairs:
            mine = place[(image % 2 == i) & (found.label[g][kept] == c)]
            wrong = predicted[2 * g + i, mine] != c
            assert len(mine) == each and int(wrong.sum()) == each // 2


def test_where_one_kind_is_scarce_the_other_fills_up() -> None:
    label = torch.zeros(2, 50, dtype=torch.int64)
    predicted = torch.zeros(2, 50, dtype=torch.int64)
    predicted[0, :2], predicted[1, 3:] = 1, 1
    found = drawn(label, predicted, most=20)
    for image, hard in ((0, 2), (1, 7)):
        here = (found.label[0] != IGNORE) & (found.cell[0] // 50 == image)
        assert int(here.sum()) == 10 and int(predicted[image, found.cell[0][here] % 50].sum()) == hard


def test_no_class_has_enough_or_class_0_is_left_out() -> None:
    label = torch.zeros(2, 10, dtype=torch.int64)
    assert (drawn(label, label).label == IGNORE).all()
    assert (drawn(label, label, per_class=3).label == 0).any()
    assert (drawn(label, label, per_class=3, first_class=1).label == IGNORE).all()


def test_the_released_weights_are_those_of_pixels_in_another_order() -> None:
    """Pixels go view by view, weights class by class: the array of the authors' code, laid out by hand."""
    label, predicted = labels(2, 120, classes=CLASSES, ignored=0.5), labels(2, 120, classes=CLASSES, seed=1, ignored=0)
    found = drawn(label, predicted, most=30)
    kept = found.label[0] != IGNORE
    rows = [r for r in range(2 * CLASSES) if kept[10 * r]]  # of each class of each image, in order
    count = int(kept[10 * rows[0] : 10 * rows[0] + 10].sum())
    assert 1 < count < 10 and len(rows) > 2
    by_class = [10 * r + v for r in rows for v in range(count)]
    by_view = [10 * r + v for v in range(count) for r in rows]
    for pixel, weight in zip(by_view, by_class, strict=True):
        assert int(found.swapped[0, pixel]) == weight
