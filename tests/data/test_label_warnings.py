"""What is warned of, by name and share, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from udaseg.data.classes import Classes
from udaseg.data.label_warnings import label_warnings
from udaseg.data.manifest import MANIFEST

PAIR = Classes(names=("bg", "fg"), palette=((0, 0, 0), (255, 0, 0)))


def manifest(*labels: list[int] | None, split: str = "train") -> pa.Table:
    """Rows of images of 10 pixels, whose labels have so many of each class; None = unlabelled."""
    rows = [
        {
            "image_id": f"{split}{n}", "image_uri": "a", "label_uri": None if pixels is None else "b", "height": 2,
            "width": 5, "class_pixels": pixels, "dataset": "d", "split": split,
        }
        for n, pixels in enumerate(labels)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=MANIFEST)


def test_nothing_is_said_of_good_labels_or_of_none() -> None:
    assert label_warnings(manifest([5, 0], [0, 5]), PAIR, [0, 1, 255]) == []  # half is ignored, not more
    assert label_warnings(manifest(None, None), PAIR, []) == []


def test_a_class_that_never_occurs_is_named() -> None:
    (found,) = label_warnings(manifest([10, 0], [9, 0], None), PAIR, [0])
    assert found == "1 of 2 classes never occur, 0.00 % of the pixels of 2 labels: 'fg'"
    many = Classes(names=("a", "b", "c"), palette=((0, 0, 0),) * 3)
    (found,) = label_warnings(manifest([0, 6, 0]), many, [1])
    assert found.startswith("2 of 3 classes never occur, ") and found.endswith(": 'a', 'c'")


def test_a_split_that_is_mostly_ignored_is_named_with_its_share() -> None:
    both = pa.concat_tables([manifest([5, 5], [2, 2]), manifest([2, 2], [2, 3], split="val")])
    assert label_warnings(both, PAIR) == ["split 'val': 55.00 % of the pixels of its labels are ignored"]


def test_images_without_a_labelled_pixel_are_named() -> None:
    labels = manifest([5, 5], *[[0, 0]] * 4, *[[5, 5]] * 5)
    (found,) = label_warnings(labels, PAIR)
    assert found == (
        "split 'train': 4 of 10 images (40.00 %) have not one labelled pixel: 'train1', 'train2', 'train3' and 1 more"
    )
    found = label_warnings(manifest([0, 0]), PAIR)
    assert found[1:] == ["split 'train': 100.00 % of the pixels of its labels are ignored"]


@pytest.mark.parametrize("raw_to_train", [{}, {0: 0, 1: 1, 255: 255}])
def test_a_mask_of_0_and_255_is_told_the_line_that_mends_it(raw_to_train: dict[int, int]) -> None:
    mask = np.repeat([0, 255], [7, 3])
    classes = Classes(names=PAIR.names, palette=PAIR.palette, raw_to_train=raw_to_train)
    first, *_ = label_warnings(manifest([7, 0]), classes, np.unique(mask).tolist())
    line = '"raw_to_train": {"0": 0, "255": 1}'
    assert first.startswith("0 and 255 are the only values") and f"{line} into the class list: 0 is then 'bg'" in first
    mended = Classes.from_json('{"names": ["bg", "fg"], "palette": [[0, 0, 0], [255, 0, 0]], ' + line + "}")
    pixels = np.bincount(mended.lookup()[mask], minlength=2).tolist()
    assert pixels == [7, 3] and label_warnings(manifest(pixels), mended, [0, 255]) == []
    single = Classes(names=("fg",), palette=((0, 0, 0),))
    assert "name two in the class list" in label_warnings(manifest([7]), single, [0, 255])[0]
