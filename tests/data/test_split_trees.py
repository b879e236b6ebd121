"""Trees ordered by split, or by kind first and by split below, as one's own folders and converters have them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data.folders import Pair, sort_out
from udaseg.data.images import read_image
from udaseg.data.layouts import LAYOUTS
from udaseg.data.split_trees import has_splits
from udaseg.errors import DatasetError


def put(*paths: Path) -> None:
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4)).save(path)


def read(root: Path) -> list[Pair]:
    pairs = list(LAYOUTS["folders"].pairs(str(root)))
    assert sort_out(pairs) == (pairs, [])
    return pairs


def refused(root: Path, match: str) -> None:
    with pytest.raises(DatasetError, match=match):
        list(LAYOUTS["folders"].pairs(str(root)))


@pytest.mark.parametrize(
    ("images", "labels", "names"),
    [
        ("images", "labels", ("train", "val", "test")),
        ("images", "masks", ("train", "val", "test")),
        ("img_dir", "ann_dir", ("train", "val", "test")),
        ("images", "annotations", ("training", "validation", "testing")),
    ],
)
def test_kinds_first(tmp_path: Path, images: str, labels: str, names: tuple[str, ...]) -> None:
    for name in names:
        put(tmp_path / images / name / "drive1/a.jpg")
        if name not in ("test", "testing"):
            put(tmp_path / labels / name / "drive1/a.png")
    (tmp_path / "classes.json").write_text("{}")
    (tmp_path / images / ".cache").mkdir()
    (tmp_path / labels / "train.cache").write_text("")
    assert {(p.image_id, p.split, p.image_uri, p.label_uri) for p in read(tmp_path)} == {
        (
            f"{split}/drive1/a",
            split,
            f"{tmp_path}/{images}/{name}/drive1/a.jpg",
            None if split == "test" else f"{tmp_path}/{labels}/{name}/drive1/a.png",
        )
        for split, name in zip(("train", "val", "test"), names, strict=True)
    }
    assert has_splits(str(tmp_path))


def test_ids_that_are_unique_have_no_split(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / "images/val/b.jpg")
    assert [(p.image_id, p.split, p.label_uri) for p in read(tmp_path)] == [("a", "train", None), ("b", "val", None)]


def test_training_and_validation_are_train_and_val_in_folders_of_splits_too(tmp_path: Path) -> None:
    put(tmp_path / "training/images/a.jpg", tmp_path / "validation/images/b.jpg", tmp_path / "night/images/c.jpg")
    assert {p.image_id: p.split for p in read(tmp_path)} == {"a": "train", "b": "val", "c": "night"}
    put(tmp_path / "train/images/d.jpg")
    refused(tmp_path, r"/train and \S*/training are one split; put what these hold into one folder")


def test_an_image_that_is_bmp_by_another_name_is_read(tmp_path: Path) -> None:
    """As mmsegmentation's converter of iSAID writes them."""
    pixels, stream = np.random.default_rng(0).integers(0, 256, (4, 6, 3), np.uint8), io.BytesIO()
    Image.fromarray(pixels).save(stream, "BMP")
    (tmp_path / "img_dir/train").mkdir(parents=True)
    (tmp_path / "img_dir/train/a.png").write_bytes(stream.getvalue())
    (pair,) = read(tmp_path)
    assert np.array_equal(read_image(str(pair.image_uri)), pixels)


@pytest.mark.parametrize("other", ["drive1", "fewshot", "train2017"])
def test_other_folders_are_no_splits(tmp_path: Path, other: str) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / f"images/{other}/b.jpg")
    refused(tmp_path, rf"no folder <split>/images in this folder, and images/ holds '{other}' and not folders train,")
    assert not has_splits(str(tmp_path))


def test_images_beside_folders_of_splits_are_told(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / "images/b.JPG")
    refused(tmp_path, r"no folder <split>/images in this folder, and images/ holds 'b\.JPG'")
    (tmp_path / "images/b.JPG").rename(tmp_path / "images/b.txt")
    assert [p.image_id for p in read(tmp_path)] == ["a"]


def test_both_forms_are_refused(tmp_path: Path) -> None:
    put(tmp_path / "images/val/a.jpg", tmp_path / "train/images/a.jpg")
    refused(tmp_path, r"train/images and \S*/images/val are of two forms, .*; leave one of them in this root")
    assert has_splits(str(tmp_path))  # so that it is told there too
    (tmp_path / "images/val").rename(tmp_path / "images/drive1")
    assert [(p.image_id, p.split) for p in read(tmp_path)] == [("a", "train")]


@pytest.mark.parametrize(
    ("paths", "message"),
    [
        (("img_dir/train/a.jpg",), r"/images and \S*/img_dir hold folders of splits; leave one of them"),
        (("labels/train/a.png", "masks/train/a.png"), r"/labels and \S*/masks hold folders of splits; leave one"),
        (("images/training/b.jpg",), r"images/train and \S*/images/training are one split"),
        (("labels/a.png",), r"/labels: holds labels, but none in a folder of a split of \S*/images; move them"),
        (("masks/trained/a.png",), r"/masks: holds labels, but none in a folder of a split of \S*/images; move them"),
        (("masks/val/a.png",), r"/masks: holds labels, but none in a folder of a split of \S*/images; move them"),
    ],
)
def test_what_could_be_read_in_two_ways_is_refused(tmp_path: Path, paths: tuple[str, ...], message: str) -> None:
    put(tmp_path / "images/train/a.jpg", *(tmp_path / path for path in paths))
    refused(tmp_path, message)


def test_a_folder_of_labels_without_one_is_none(tmp_path: Path) -> None:
    put(tmp_path / "images/train/a.jpg", tmp_path / "masks/train/a.png", tmp_path / "masks/test/z.png")
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/instances.json").write_text("{}")
    assert [p.label_uri for p in read(tmp_path)] == [f"{tmp_path}/masks/train/a.png"]


@pytest.mark.parametrize(
    ("images", "labels"), [("train/images", "train/labels"), ("images/train", "annotations/train")]
)
def test_labels_in_train_ids_beside_others_are_refused(tmp_path: Path, images: str, labels: str) -> None:
    put(tmp_path / images / "d/a.jpg", tmp_path / labels / "d/a.png", tmp_path / labels / "d/a_labelTrainIds.png")
    refused(tmp_path, r"d/a\.png and \S*/d/a_labelTrainIds\.png are two labels of one image; move those of one kind")
    (tmp_path / labels / "d/a.png").unlink()
    (tmp_path / images / "d/a.jpg").rename(tmp_path / images / "d/a_labelTrainIds.jpg")
    assert [p.label_uri for p in read(tmp_path)] == [f"{tmp_path}/{labels}/d/a_labelTrainIds.png"]
