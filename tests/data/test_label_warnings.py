"""What is warned of, by name and share, and what is not."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from udaseg.data.classes import Classes, of_color_labels, of_reduced_labels
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


def test_pixels_of_several_classes_are_not_called_ignored() -> None:
    several = Classes(names=PAIR.names, palette=PAIR.palette, raw_to_train={0: 0, 1: 1, 2: 2}, unions=((0, 1),))
    labels = manifest([4, 0], [4, 0], [4, 4], [0, 0])
    assert label_warnings(labels, several) == [
        "split 'train': 60.00 % of the pixels of its labels are ignored, or of several classes",
        "split 'train': 1 of 4 images (25.00 %) have not one pixel of one class alone: 'train3'",
    ]


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


def test_a_mask_in_three_equal_channels_is_one_too() -> None:
    grey, white = of_color_labels(PAIR, "grey"), 0xFFFFFF
    (first, *_) = label_warnings(manifest([7, 0]), grey, [0, white])
    assert first.startswith("0 and 255 are the only values in the labels, and 255 is ignored; if it is a class, put ")
    mended = Classes(names=PAIR.names, palette=PAIR.palette, raw_to_train={0: 0, 255: 1})
    assert label_warnings(manifest([7, 3]), of_color_labels(mended, "grey"), [0, white]) == []
    colours = Classes(names=PAIR.names, palette=PAIR.palette, color_to_train={"255,255,255": 255})
    for classes, raw_ids in ((grey, [0, 0x010101, white]), (of_color_labels(colours, "palette"), [0, white])):
        assert not any("0 and 255" in text for text in label_warnings(manifest([7, 0]), classes, raw_ids))


@pytest.mark.parametrize("grey", [False, True])
def test_a_mask_whose_0_is_ignored_is_told_to_leave_the_option_out(grey: bool) -> None:
    classes = of_reduced_labels(PAIR)
    classes = of_color_labels(classes, "grey") if grey else classes
    first, *_ = label_warnings(manifest([0, 0]), classes, [0, 0xFFFFFF if grey else 255])
    assert first.startswith(
        "0 and 255 are the only values in the labels, and both are ignored; if they are classes, leave out "
        '--reduce-zero-label, where it is given, and put "raw_to_train": {"0": 0, "255": 1} into the class list: '
    )
