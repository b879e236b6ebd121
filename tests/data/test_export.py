"""Names in the folders of other tools: each image has its own."""

from __future__ import annotations

import pytest

from udaseg.data.classes import Classes
from udaseg.data.export import ExportFormat, names, require_unique_names
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
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
        require_unique_names("cityscapes", images, images, CITYSCAPES_CLASSES)
    require_unique_names("coco_stuff", images, images, CITYSCAPES_CLASSES)


@pytest.mark.parametrize("layout", ["cityscapes", "coco_stuff"])
def test_images_of_their_own_names_pass_unread_a_second_time(layout: ExportFormat) -> None:
    again = (pytest.fail("read twice") for _ in "x")
    images = [*rows("x", "other/x", "fleet/y"), *rows("x", "fleet/z", split="val")]
    require_unique_names(layout, images, again, CITYSCAPES_CLASSES)


def test_labels_of_some_of_cityscapes_classes_have_their_label_ids() -> None:
    classes = Classes(names=("car", "road"), palette=((0, 0, 0),) * 2)
    lookup = names("cityscapes", "a/b", "val", "/b.jpg", classes).labels["gtFine/val/a/b_gtFine_labelIds.png"]
    assert lookup is not None and lookup[[0, 1, 255]].tolist() == [26, 7, 0]


def test_what_servers_score_has_the_images_own_names_and_the_server_s_ids() -> None:
    classes = Classes(names=("car", "road"), palette=((0, 0, 0),) * 2)
    for place, ids in (("a/GOPR1_frame_000001_rgb_anon", [13, 0]), ("berlin/berlin_0_1_leftImg8bit", [26, 7])):
        for image_id in (place, place.removesuffix("_rgb_anon").removesuffix("_leftImg8bit")):  # the latter by layouts
            found = names("submission", image_id, "test", f"/{place}.png", classes)
            assert found.image is None and not found.labels
            ((file, lookup),) = found.predictions.items()
            assert file == f"{place.partition('/')[2]}.png" and lookup[:2].tolist() == ids
    twice = rows("a/x_rgb_anon", "b/x_rgb_anon")
    with pytest.raises(DatasetError, match=r"'a/x_rgb_anon' and 'b/x_rgb_anon' would both be 'x_rgb_anon\.png' in"):
        require_unique_names("submission", twice, twice, classes)


@pytest.mark.parametrize(
    ("image_id", "name", "reason"),
    [("a/b", "road", r"image '/a/b' is none of Cityscapes"), ("x_rgb_anon", "lorry", "'lorry' is no class that")],
)
def test_what_no_server_scores_is_refused(image_id: str, name: str, reason: str) -> None:
    classes = Classes(names=(name,), palette=((0, 0, 0),))
    images = rows("y_rgb_anon", image_id)
    with pytest.raises(DatasetError, match=f"^layout submission: {reason}"):
        require_unique_names("submission", images, images, classes)
