"""Names that end otherwise: what pairs them, and what is said where nothing pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from udaseg.data.dataset_input import check_given, find_pairs
from udaseg.data.folders import likely_suffixes
from udaseg.errors import DatasetError

STEMS = [f"{city}/{city}_{n:06d}_000019" for city in ("ulm", "bonn") for n in range(20)]


@pytest.mark.parametrize(
    ("image", "labels", "found"),
    [
        ("_leftImg8bit", ("_gtFine_labelIds",), ("_leftImg8bit", "_gtFine_labelIds")),
        ("_rgb", ("_gtFine_color", "_gtFine_labelIds", "_gtFine_instanceIds"), ("_rgb", "_gtFine_labelIds")),
        ("", ("_mask",), ("", "_mask")),
        ("-image", ("",), ("-image", "")),
        (".rgb", (".seg",), (".rgb", ".seg")),
    ],
)  # fmt: skip
def test_the_likely_suffixes(image: str, labels: Sequence[str], found: tuple[str, str]) -> None:
    ids = [stem + image for stem in STEMS], [stem + label for stem in STEMS for label in labels]
    assert likely_suffixes(*ids) == found
    few = [*ids[0][:30], *(f"x/{n}" for n in range(10))]
    assert likely_suffixes(few, ids[1]) == found  # most, not all


@pytest.mark.parametrize("labels", [["p", "q"], [f"other/{n}" for n in range(40)], ["ulm/ulm_000000_000019_mask"]])
def test_no_suffixes_are_better_than_wrong_ones(labels: list[str]) -> None:
    assert likely_suffixes(STEMS, labels) is None


@pytest.mark.parametrize(
    ("images", "labels"), [(["IMG_1"], ["img_1"]), (["a/IMG_1"], ["a/img_1"]), (["_1"], ["_2"]), (["a/a1"], ["a1"])]
)
def test_no_suffix_is_a_whole_name(images: list[str], labels: list[str]) -> None:
    assert likely_suffixes(images, labels) is None


def make(root: Path, image: str, label: str, stems: Sequence[str] = ("a/1", "a/2", "b/1")) -> None:
    for stem in stems:
        for folder, name in (("images", f"{stem}{image}"), ("labels", f"{stem}{label}")):
            (root / folder / name).parent.mkdir(parents=True, exist_ok=True)
            (root / folder / name).touch()


def found(root: Path, image_suffix: str | None = None, label_suffix: str | None = None) -> list[tuple[str, str, str]]:
    pairs, _ = find_pairs(f"{root}/images", f"{root}/labels", None, None, None, image_suffix, label_suffix)
    return [(p.image_id, str(p.image_uri), str(p.label_uri)) for p in pairs]


def test_suffixes_pair_images_and_labels(tmp_path: Path) -> None:
    make(tmp_path, "_rgb.jpg", "_gt_ids.png")
    make(tmp_path, "_depth.png", "_gt_color.png")
    pairs = [(s, f"{tmp_path}/images/{s}_rgb.jpg", f"{tmp_path}/labels/{s}_gt_ids.png") for s in ("a/1", "a/2", "b/1")]
    assert found(tmp_path, "_rgb", "_gt_ids") == found(tmp_path, "_rgb.jpg", "_gt_ids.png") == pairs
    with pytest.raises(DatasetError, match=r"ends in _left\.png or _left\.jpg"):
        found(tmp_path, "_left", "_gt_ids")


def test_where_nothing_pairs_the_likely_suffixes_are_shown(tmp_path: Path) -> None:
    make(tmp_path, "_leftImg8bit.png", "_gtFine_labelIds.png")
    with pytest.raises(DatasetError) as error:
        found(tmp_path)
    assert str(error.value) == (
        f"{tmp_path}/labels: no label has the name of an image of {tmp_path}/images; "
        "they pair with --image-suffix _leftImg8bit --label-suffix _gtFine_labelIds"
    )
    assert len(found(tmp_path, "_leftImg8bit", "_gtFine_labelIds")) == 3
    (tmp_path / "labels").rename(tmp_path / "elsewhere")
    make(tmp_path, "_leftImg8bit.png", ".png", stems=["x"])
    with pytest.raises(DatasetError, match="the first are 'a/1_leftImg8bit' and 'x': name labels as their images"):
        find_pairs(f"{tmp_path}/images", f"{tmp_path}/labels", None, None, None, None, None)


@pytest.mark.parametrize(
    ("images", "labels", "shown"),
    [
        (["day/a", "day/b", "night/c"], ["a", "b", "c"], ("day/a", "a")),
        (["a", "b", "c"], ["x/a", "x/b"], ("a", "x/a")),
        (["a1", "a2"], ["a/a1", "a/a2"], ("a1", "a/a1")),
    ],
)
def test_names_that_pair_without_their_folders(
    tmp_path: Path, images: list[str], labels: list[str], shown: tuple[str, str]
) -> None:
    make(tmp_path, ".jpg", ".txt", images)
    make(tmp_path, ".txt", ".png", labels)
    with pytest.raises(DatasetError) as error:
        found(tmp_path)
    assert str(error.value).endswith(
        "their names pair and are unique, but folders differ, as of image {0!r} and label {1!r}; give each label the "
        "folder of its image, so that this one is {0!r}".format(*shown)
    )


def test_names_that_are_there_twice_do_not_pair_without_their_folders(tmp_path: Path) -> None:
    make(tmp_path, ".jpg", ".txt", ["day/a", "night/a", "day/b"])
    make(tmp_path, ".txt", ".png", ["a", "b"])
    with pytest.raises(DatasetError, match="the first are 'day/a' and 'a': name labels as their images, in the same"):
        found(tmp_path)


@pytest.mark.parametrize("extension", [".tif", ".TIFF", ".bmp"])
def test_labels_of_other_formats(tmp_path: Path, extension: str) -> None:
    make(tmp_path, ".jpg", f"_gt{extension}")
    pairs = [(s, f"{tmp_path}/images/{s}.jpg", f"{tmp_path}/labels/{s}_gt{extension}") for s in ("a/1", "a/2", "b/1")]
    assert found(tmp_path, None, "_gt") == found(tmp_path, None, f"_gt{extension}") == pairs
    with pytest.raises(DatasetError, match=r"they pair with --label-suffix _gt$"):
        found(tmp_path)


def test_labels_whose_names_have_the_image_s_extension(tmp_path: Path) -> None:
    make(tmp_path, ".tif", ".tif.png")
    with pytest.raises(DatasetError, match=r"they pair with --label-suffix \.tif\.png$"):
        found(tmp_path)
    assert len(found(tmp_path, None, ".tif.png")) == 3
    with pytest.raises(DatasetError, match=r"no file in this folder or below ends in \.tif$"):
        found(tmp_path, None, ".tif")


def test_a_suffix_of_nothing_is_refused() -> None:
    with pytest.raises(DatasetError, match="--label-suffix belongs to --labels"):
        check_given("i", None, None, None, None, None, None, "_mask")
    with pytest.raises(DatasetError, match="--image-suffix and --label-suffix belong to --images"):
        check_given(None, None, "gta5", "r", None, None, "_rgb", None)
