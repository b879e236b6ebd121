"""Pascal VOC's layout and CVAT's "Segmentation mask 1.1", which follows it, as miniatures."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.dataset_input import find_classes
from udaseg.data.folders import sort_out
from udaseg.data.images import inspect
from udaseg.data.layouts import LAYOUTS
from udaseg.data.taxonomies import VOC_CLASSES
from udaseg.errors import DatasetError

SIZE = (6, 8)
ORDERS = (
    "# label:color_rgb:parts:actions\nbackground:0,0,0::\nroad:128,0,0::\nsky:0,128,0::\n",
    "# label:color_rgb:parts:actions\nsky:10,20,30::\nroad:128,0,0:a,b:\nbackground:0,0,0::\n",
)
GIVEN = Classes(names=("sky", "road"), palette=((70, 130, 180), (128, 64, 128)))


def put(path: Path, image: Image.Image | str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if isinstance(image, str):
        path.write_text(image)
    else:
        image.save(path)


def make_voc(root: Path) -> np.ndarray:
    """Two images with labels, one of no list, one of the test list; the label of all, with ids and 255."""
    ids = np.resize(np.array([*range(21), 255], np.uint8), SIZE)
    label = Image.fromarray(ids)
    palette = [*VOC_CLASSES.palette, *[(0, 0, 0)] * 234, (224, 224, 192)]
    label.putpalette(np.array(palette, np.uint8).tobytes())
    for name in ("2007_000032", "2007_000033", "2008_000001", "2008_000002"):
        put(root / f"JPEGImages/{name}.jpg", Image.new("RGB", SIZE[::-1]))
    for name in ("2007_000032", "2007_000033"):
        put(root / f"SegmentationClass/{name}.png", label)
        put(root / f"SegmentationObject/{name}.png", label)
    lists = {
        "train": "2007_000032",
        "val": "2007_000033",
        "trainval": "2007_000032\n2007_000033",
        "test": "2008_000002",
    }
    for name, text in lists.items():
        put(root / f"ImageSets/Segmentation/{name}.txt", f"{text}\n")
    put(root / "ImageSets/Main/train.txt", "2008_000001\n")
    return ids


def make_cvat(root: Path, labelmap: str, colours: np.ndarray, subset: str = "default") -> None:
    """An export of two images, one of them in a folder with a blank in its name."""
    for name in ("a", "b c/d"):
        put(root / f"JPEGImages/{name}.png", Image.new("RGB", SIZE[::-1]))
        put(root / f"SegmentationClass/{name}.png", Image.fromarray(colours))
    put(root / "labelmap.txt", labelmap)
    put(root / f"ImageSets/Segmentation/{subset}.txt", 'a\n"b c/d"\n')


def test_voc(tmp_path: Path) -> None:
    ids = make_voc(tmp_path)
    pairs = list(LAYOUTS["voc"].pairs(str(tmp_path)))
    assert sort_out(pairs) == (pairs, [])
    assert [(p.image_id, p.split, p.label_uri is not None) for p in pairs] == [
        ("2008_000002", "test", False), ("2007_000032", "train", True), ("2007_000033", "val", True)
    ]  # fmt: skip
    facts = inspect(str(pairs[1].image_uri), pairs[1].label_uri, VOC_CLASSES, VOC_CLASSES.lookup())
    assert facts.class_pixels is not None and facts.class_pixels.tolist() == np.bincount(ids.ravel())[:21].tolist()


@pytest.mark.parametrize(("missing", "other"), [("val", "train"), ("train", "val")])
def test_what_trainval_alone_lists_is_the_split_that_has_no_list(tmp_path: Path, missing: str, other: str) -> None:
    make_voc(tmp_path)
    (tmp_path / f"ImageSets/Segmentation/{missing}.txt").unlink()
    of = {pair.split: pair.image_id for pair in LAYOUTS["voc"].pairs(str(tmp_path))}
    assert of == {"train": "2007_000032", "val": "2007_000033", "test": "2008_000002"}
    (tmp_path / f"ImageSets/Segmentation/{other}.txt").unlink()
    pairs = list(LAYOUTS["voc"].pairs(str(tmp_path)))
    assert [pair.split for pair in pairs] == ["test", "trainval", "trainval"]


def test_lists_that_name_the_same_images_are_refused(tmp_path: Path) -> None:
    """Beside train.txt a longer one is in use, which holds it: none would be left of what both name."""
    make_voc(tmp_path)
    lists = tmp_path / "ImageSets/Segmentation"
    put(lists / "train_aug.txt", "2007_000032\n2008_000001\n")
    message = f"{lists}/train.txt and {lists}/train_aug.txt: both name '2007_000032'; remove one of the lists"
    with pytest.raises(DatasetError, match=message):
        list(LAYOUTS["voc"].pairs(str(tmp_path)))


@pytest.mark.parametrize("name", ["trainaug", "train_aug"])
def test_voc_with_the_labels_of_sbd(tmp_path: Path, name: str) -> None:
    """As mmsegmentation's converter and the archive of SegmentationClassAug leave it: VOC's own labels come first."""
    make_voc(tmp_path)
    put(tmp_path / "SegmentationClassAug/2008_000001.png", Image.new("L", SIZE[::-1], 3))
    for own in ("2007_000032", "2007_000033"):
        put(tmp_path / f"SegmentationClassAug/{own}.png", Image.new("L", SIZE[::-1], 4))
    put(tmp_path / f"ImageSets/Segmentation/{name}.txt", "2007_000032\n2008_000001\n")
    put(tmp_path / "ImageSets/Segmentation/aug.txt", "2008_000001\n")
    pairs = list(LAYOUTS["voc"].pairs(str(tmp_path)))
    assert sort_out(pairs) == (pairs, [])
    assert {p.image_id: (p.split, p.label_uri and p.label_uri.split("/")[-2]) for p in pairs} == {
        "2007_000032": ("train", "SegmentationClass"),
        "2008_000001": ("train", "SegmentationClassAug"),
        "2007_000033": ("val", "SegmentationClass"),
        "2008_000002": ("test", None),
    }


@pytest.mark.parametrize(
    ("folder", "kinds"), [("JPEGImages", (".jpg", ".png")), ("SegmentationClass", (".PNG", ".png"))]
)
def test_two_files_of_one_id_are_refused(tmp_path: Path, folder: str, kinds: tuple[str, str]) -> None:
    make_voc(tmp_path)
    first, second = (tmp_path / folder / f"2007_000033{kind}" for kind in kinds)
    for path in (first, second):
        put(path, Image.new("L", SIZE[::-1]))
    with pytest.raises(DatasetError, match=f"{first} and {second}: the id '2007_000033' is not unique"):
        list(LAYOUTS["voc"].pairs(str(tmp_path)))


def test_voc_s_colours() -> None:
    colour_of = dict(zip(VOC_CLASSES.names, VOC_CLASSES.palette, strict=True))
    known = {"background": (0, 0, 0), "aeroplane": (128, 0, 0), "bird": (128, 128, 0), "person": (192, 128, 128)}
    known |= {"cat": (64, 0, 0), "pottedplant": (0, 64, 0), "tvmonitor": (0, 64, 128)}
    assert {name: colour_of[name] for name in known} == known and len(set(VOC_CLASSES.palette)) == 21


@pytest.mark.parametrize("order", [0, 1])
def test_in_cvat_names_decide(tmp_path: Path, order: int) -> None:
    """Two exports of the same, whose label maps differ in order and colours, are the same dataset."""
    colour_of = {"background": (0, 0, 0), "road": (128, 0, 0), "sky": [(0, 128, 0), (10, 20, 30)][order]}
    names = np.resize(np.array(["background", "road", "sky", "sky", "road"], object), SIZE)
    colours = np.array([[colour_of[name] for name in row] for row in names], np.uint8)
    make_cvat(tmp_path, ORDERS[order], colours)
    pairs = list(LAYOUTS["cvat"].pairs(str(tmp_path)))
    assert sort_out(pairs) == (pairs, []) and {pair.split for pair in pairs} == {"train"}
    assert [pair.image_id for pair in pairs] == ["a", "b c/d"]
    (tmp_path / "classes.json").write_text(replace(GIVEN, ids_in_red=True).to_json())  # as of another dataset
    own = find_classes(None, None, "cvat", str(tmp_path), None, reduce_zero_label=False)
    assert own.names == GIVEN.names  # those of the root's classes.json
    facts = inspect(str(pairs[1].image_uri), pairs[1].label_uri, own, own.lookup())
    assert facts.class_pixels is not None
    assert facts.class_pixels.tolist() == [int((names == name).sum()) for name in GIVEN.names]
    (tmp_path / "classes.json").unlink()
    theirs = find_classes(None, None, "cvat", str(tmp_path), None, reduce_zero_label=False)
    assert theirs.names == (("background", "road", "sky"), ("sky", "road", "background"))[order]
    facts = inspect(str(pairs[0].image_uri), pairs[0].label_uri, theirs, theirs.lookup())
    assert facts.class_pixels is not None
    assert facts.class_pixels.tolist() == [int((names == name).sum()) for name in theirs.names]
    mapping = {"names": ["x"], "palette": [[0, 0, 0]], "map": {"background": None, "road": "x", "sky": None}}
    (tmp_path / "m.json").write_text(json.dumps(mapping))
    mapped = find_classes(None, str(tmp_path / "m.json"), "cvat", str(tmp_path), None, reduce_zero_label=False)
    facts = inspect(str(pairs[0].image_uri), pairs[0].label_uri, mapped, mapped.lookup())
    assert facts.class_pixels is not None and facts.class_pixels.tolist() == [int((names == "road").sum())]


@pytest.mark.parametrize(
    ("subset", "split"),
    [
        ("Train", "train"),
        ("Validation", "val"),
        ("val", "val"),
        ("Test", "test"),
        ("default", "train"),
        ("Mine", "Mine"),
    ],
)
def test_cvat_s_subsets_are_splits(tmp_path: Path, subset: str, split: str) -> None:
    make_cvat(tmp_path, ORDERS[0], np.zeros((*SIZE, 3), np.uint8), subset=subset)
    assert {pair.split for pair in LAYOUTS["cvat"].pairs(str(tmp_path))} == {split}


def test_cvat_s_lists_may_write_accents_otherwise_than_the_disk(tmp_path: Path) -> None:
    make_cvat(tmp_path, ORDERS[0], np.zeros((*SIZE, 3), np.uint8))
    for folder in ("JPEGImages", "SegmentationClass"):
        (tmp_path / folder / "a.png").rename(tmp_path / folder / "e\u0301.png")
    put(tmp_path / "ImageSets/Segmentation/default.txt", "\u00e9\n")
    (pair,) = LAYOUTS["cvat"].pairs(str(tmp_path))
    assert pair.image_id == "\u00e9" and str(pair.label_uri).endswith("SegmentationClass/e\u0301.png")


@pytest.mark.parametrize(
    ("labelmap", "reason"),
    [
        ("road:1,2,3::\ncar:0,0,0::\n", "labelmap.txt: has 'car', which the class list lacks"),
        ("road:1,2,3::\nsky:1,2,3::\n", "labelmap.txt: two classes have one colour"),
        ("road 1 2 3\n", "labelmap.txt: line 1, 'road 1 2 3', is not name:r,g,b:parts:actions"),
        ("road:1,2,3::\nroad:2,2,3::\n", "labelmap.txt: line 2, .*another class"),
    ],
)
def test_refuses_a_label_map(tmp_path: Path, labelmap: str, reason: str) -> None:
    make_cvat(tmp_path, labelmap, np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "classes.json").write_text(GIVEN.to_json())
    with pytest.raises(DatasetError, match=reason):
        find_classes(None, None, "cvat", str(tmp_path), None, reduce_zero_label=False)


def test_refuses_what_is_not_there(tmp_path: Path) -> None:
    make_cvat(tmp_path, ORDERS[0], np.zeros((*SIZE, 3), np.uint8))
    (tmp_path / "labelmap.txt").rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"labelmap\.txt: no such file"):
        find_classes(None, None, "cvat", str(tmp_path), None, reduce_zero_label=False)
    (tmp_path / "JPEGImages/a.png").unlink()
    with pytest.raises(DatasetError, match=r"default\.txt: 'a' is not in .*JPEGImages"):
        list(LAYOUTS["cvat"].pairs(str(tmp_path)))
    (tmp_path / "JPEGImages").rename(tmp_path / "gone2")
    with pytest.raises(DatasetError, match="no folder JPEGImages; export from CVAT with 'Save images'"):
        list(LAYOUTS["cvat"].pairs(str(tmp_path)))
