"""Names in the folders of other tools: each image has its own."""

from __future__ import annotations

import pytest

from udaseg.data.classes import Classes
from udaseg.data.export import ExportFormat, names, require_unique_names
from udaseg.errors import DatasetError


def rows(*ids: str, split: str = "train") -> list[dict[str, str]]:
    return [{"image_id": image_id, "split": split, "image_uri": f"/{image_id}.png"} for image_id in ids]


@pytest.mark.parametrize(
    ("first", "second"),
    [("x", "fleet/x"), ("x", "x_leftImg8bit"), ("fleet/x_leftImg8bit", "x"), ("a/x", "a/x_leftImg8bit")],
)
def test_two_images_of_one_name_are_refused(first: str, second: str) -> None:
    images = [*rows(*map(str, range(100))), *rows(first), *rows("y", "a/y"), *rows(second)]
    with pytest.raises(DatasetError, match=f"images '{first}' and '{second}' would both be .* in layout cityscapes"):
        require_unique_names("cityscapes", images, images)
    require_unique_names("coco_stuff", images, images)


@pytest.mark.parametrize("layout", ["cityscapes", "coco_stuff"])
def test_images_of_their_own_names_pass_unread_a_second_time(layout: ExportFormat) -> None:
    again = (pytest.fail("read twice") for _ in "x")
    images = [*rows("x", "other/x", "fleet/y"), *rows("x", "fleet/z", split="val")]
    require_unique_names(layout, images, again)


def test_labels_of_some_of_cityscapes_classes_have_their_label_ids() -> None:
    classes = Classes(names=("car", "road"), palette=((0, 0, 0),) * 2)
    lookup = names("cityscapes", "a/b", "val", ".jpg", classes).labels["gtFine/val/a/b_gtFine_labelIds.png"]
    assert lookup is not None and lookup[[0, 1, 255]].tolist() == [26, 7, 0]
