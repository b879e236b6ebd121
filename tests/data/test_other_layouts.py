"""Layouts with classes of their own, in files or colours, as miniatures: Mapillary, CARLA, LoveDA, ISPRS and COCO."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data import coco
from udaseg.data.classes import Classes
from udaseg.data.dataset_input import find_classes
from udaseg.data.folders import Pair, sort_out
from udaseg.data.images import inspect, read_label, read_raw_label
from udaseg.data.index import open_index
from udaseg.data.layouts import LAYOUTS
from udaseg.data.manifest import read_manifest
from udaseg.data.taxonomies import CARLA_CLASSES, CITYSCAPES_CLASSES, remap
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs.prepare import prepare

SIZE = (6, 8)


def put(path: Path, pixels: np.ndarray | None = None) -> None:
    """An image; black and coloured where nothing is given."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.zeros((*SIZE, 3), np.uint8) if pixels is None else pixels).save(path)


def pairs_of(layout: str, root: Path) -> list[Pair]:
    pairs = list(LAYOUTS[layout].pairs(str(root)))
    assert sort_out(pairs) == (pairs, [])
    return pairs


def classes_of(layout: str, root: Path) -> Classes:
    return find_classes(None, None, layout, str(root), None, reduce_zero_label=False)


def counts(pair: Pair, classes: Classes) -> list[int]:
    facts = inspect(str(pair.image_uri), pair.label_uri, classes, classes.lookup())
    assert facts.class_pixels is not None
    return [int(n) for n in facts.class_pixels]


def train_ids(pair: Pair, classes: Classes) -> np.ndarray:
    """(H, W), 255 = ignored."""
    found: np.ndarray = classes.lookup()[read_raw_label(str(pair.label_uri), classes)]
    return found


def cycle(values: list[int] | list[tuple[int, int, int]]) -> np.ndarray:
    """A label in which all values occur, one after the other."""
    table, places = np.array(values, np.uint8), np.resize(np.arange(len(values)), SIZE)
    label: np.ndarray = table[places]
    return label


MAPILLARY = [
    {"readable": "Bird", "name": "animal--bird", "color": [165, 42, 42], "evaluate": True, "instances": True},
    {"readable": "Ego Vehicle", "name": "void--ego-vehicle", "color": [120, 10, 10], "evaluate": False},
    {"readable": "Road", "name": "construction--flat--road", "color": [128, 64, 128], "evaluate": True},
]


@pytest.mark.parametrize(
    ("config", "below"), [("config.json", ""), ("config_v1.2.json", "v1.2/"), ("config_v2.0.json", "v2.0/")]
)
def test_mapillary(tmp_path: Path, config: str, below: str) -> None:
    (tmp_path / config).write_text(json.dumps({"labels": MAPILLARY, "version": "x"}))
    label = cycle([0, 1, 2, 2])
    for split, name in (("training", "a"), ("validation", "b"), ("testing", "c")):
        put(tmp_path / split / "images" / f"{name}.jpg")
        if split != "testing":
            put(tmp_path / split / f"{below}labels" / f"{name}.png", label)
            put(tmp_path / split / f"{below}instances" / f"{name}.png", label)
        else:
            (tmp_path / split / f"{below}labels").mkdir(parents=True)
    pairs = pairs_of("mapillary", tmp_path)
    assert [(p.image_id, p.split, p.label_uri is None) for p in pairs] == [
        ("c", "test", True), ("a", "train", False), ("b", "val", False)
    ]  # fmt: skip
    classes = classes_of("mapillary", tmp_path)
    assert classes.names == ("Bird", "Road") and classes.palette == ((165, 42, 42), (128, 64, 128))
    assert counts(pairs[1], classes) == [12, 24]


OF_VFM_UDA = [
    (2, 1), (3, 4), (6, 3), (13, 0), (15, 1), (17, 2), (19, 11), (20, 12), (21, 12), (22, 12), (24, 0), (27, 10),
    (29, 9), (30, 8), (41, 0), (45, 5), (47, 5), (48, 6), (50, 7), (52, 18), (54, 15), (55, 13), (57, 17), (58, 16),
    (61, 14),
]  # fmt: skip
"""tue-mps/benchmark-vfm-ss, datasets/mappings.py: id of Vistas 1.2, train id of Cityscapes."""


@pytest.mark.parametrize(
    ("version", "ignored", "ids"), [("1_2", [65], 66), ("2_0", [2, 31, 38, 79, 86, 96, 115, 123], 124)]
)
def test_mapillary_as_cityscapes(tmp_path: Path, version: str, ignored: list[int], ids: int) -> None:
    """The map of each version names what its config evaluates, in the order of the ids."""
    file = Path(__file__).parents[2] / "examples" / f"mapillary_{version}.json"
    mapping = json.loads(file.read_text())
    kept = iter(mapping["map"])
    labels = [
        {"readable": "-" if k in ignored else next(kept), "color": [0, 0, k], "evaluate": k not in ignored}
        for k in range(ids)
    ]
    assert next(kept, None) is None
    (tmp_path / "config.json").write_text(json.dumps({"labels": labels}))
    classes = remap(classes_of("mapillary", tmp_path), file.read_bytes(), str(file))
    assert (classes.names, classes.palette) == (CITYSCAPES_CLASSES.names, CITYSCAPES_CLASSES.palette)
    assert {*range(19)} < set(classes.raw_to_train.values()) and all(classes.raw_to_train[k] == 255 for k in ignored)
    if version == "1_2":
        assert [(raw, train) for raw, train in classes.raw_to_train.items() if train < 255] == OF_VFM_UDA
    else:  # of names that both versions have
        older = json.loads(file.with_name("mapillary_1_2.json").read_text())["map"]
        assert all(older.get(name, train) == train for name, train in mapping["map"].items())


def test_mapillary_refuses_what_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no folder training, validation or testing"):
        list(LAYOUTS["mapillary"].pairs(str(tmp_path)))
    with pytest.raises(DatasetError, match="which name the classes"):
        classes_of("mapillary", tmp_path)
    (tmp_path / "config.json").write_text('{"labels": [{"readable": "Road"}]}')
    with pytest.raises(DatasetError, match=r"config\.json: its labels are not those of Mapillary Vistas"):
        classes_of("mapillary", tmp_path)


def put_vistas(root: Path, *labels: str) -> None:
    """Two splits, each with an image, and label folders below them, which hold one id each."""
    for version, colour in (("config_v2.0.json", 200), ("config_v1.2.json", 100)):
        changed = [label | {"readable": f"{label['readable']} {colour}"} for label in MAPILLARY]
        (root / version).write_text(json.dumps({"labels": changed}))
    for split in ("training", "validation"):
        put(root / split / "images/a.jpg")
    for folder in labels:
        put(root / folder / "labels/a.png", cycle([2]))


@pytest.mark.parametrize(
    ("labels", "version", "names"),
    [
        (("training/v1.2", "validation/v1.2"), "v1.2/", ("Bird 100", "Road 100")),
        (("training/v1.2",), "v1.2/", ("Bird 100", "Road 100")),  # the other split has none
        (("training/v1.2", "training/v2.0", "validation/v1.2"), "v1.2/", ("Bird 100", "Road 100")),
        (("training/v1.2", "training/v2.0", "validation/v1.2", "validation/v2.0"), "v2.0/", ("Bird 200", "Road 200")),
        ((), None, ("Bird 200", "Road 200")),
    ],
)
def test_mapillary_s_classes_are_of_its_labels_version(
    tmp_path: Path, labels: tuple[str, ...], version: str | None, names: tuple[str, ...]
) -> None:
    put_vistas(tmp_path, *labels)
    uris = [pair.label_uri for pair in LAYOUTS["mapillary"].pairs(str(tmp_path)) if pair.label_uri]
    splits = dict.fromkeys(folder.partition("/")[0] for folder in labels)
    assert uris == [f"{tmp_path}/{split}/{version}labels/a.png" for split in splits]
    assert classes_of("mapillary", tmp_path).names == names


def test_mapillary_refuses_labels_of_two_versions(tmp_path: Path) -> None:
    put_vistas(tmp_path, "training/v2.0", "validation/v1.2")
    message = (
        "training/v2.0/labels and validation/v1.2/labels are of two versions, whose ids differ; unpack one version"
    )
    with pytest.raises(DatasetError, match=message):
        list(LAYOUTS["mapillary"].pairs(str(tmp_path)))
    with pytest.raises(DatasetError, match=message):
        classes_of("mapillary", tmp_path)
    (tmp_path / "training/v2.0").rename(tmp_path / "training/v1.2")
    (tmp_path / "config_v1.2.json").unlink()
    with pytest.raises(DatasetError, match=r"no config_v1\.2\.json, which names the classes of v1\.2/labels"):
        classes_of("mapillary", tmp_path)


def test_railsem19_has_its_own_classes(tmp_path: Path) -> None:
    """As many ids as Cityscapes' train ids; 3, 12 and 15 to 18 are other things."""
    put(tmp_path / "jpgs/rs19_val/rs00000.jpg")
    put(tmp_path / "uint8/rs19_val/rs00000.png", cycle([0, 1, 2, 255]))
    with pytest.raises(DatasetError, match=r"rs19-config\.json: no such file, which names the classes"):
        classes_of("railsem19", tmp_path)
    (tmp_path / "rs19-config.json").write_text('{"labels": [{"name": "road"}]}')
    with pytest.raises(DatasetError, match=r"rs19-config\.json: its labels are not those of RailSem19: 'color'"):
        classes_of("railsem19", tmp_path)
    labels = [{"name": n, "color": [i, 0, 9]} for i, n in enumerate(("road", "tram-track", "rail-track"))]
    (tmp_path / "rs19-config.json").write_text(json.dumps({"labels": labels}))
    (pair,), classes = pairs_of("railsem19", tmp_path), classes_of("railsem19", tmp_path)
    assert (pair.image_id, pair.split) == ("rs00000", "train")
    assert classes.names == ("road", "tram-track", "rail-track") and classes.palette[2] == (2, 0, 9)
    assert np.array_equal(train_ids(pair, classes), cycle([0, 1, 2, 255]))


def test_carla_s_colours_are_those_of_cityscapes_and_its_own(tmp_path: Path) -> None:
    road, sky, fence, old_fence, marking, water = (
        (128, 64, 128), (70, 130, 180), (190, 153, 153), (100, 40, 40), (157, 234, 50), (45, 60, 150)
    )  # fmt: skip
    put(tmp_path / "train/images/a.png")
    alpha = np.full((*SIZE, 1), 255, np.uint8)
    put(
        tmp_path / "train/labels/a.png",
        np.concatenate([cycle([road, sky, fence, old_fence, marking, water]), alpha], 2),
    )
    (pair,) = pairs_of("carla", tmp_path)
    found = dict(zip(CARLA_CLASSES.names, counts(pair, classes_of("carla", tmp_path)), strict=True))
    assert {name: n for name, n in found.items() if n} == {"road": 16, "sky": 8, "fence": 16}
    assert CARLA_CLASSES.names == CITYSCAPES_CLASSES.names


def test_loveda(tmp_path: Path) -> None:
    label = cycle([0, 1, 2, 3, 4, 5, 6, 7])
    for split, number in (("Train", "1366"), ("Val", "2522"), ("Test", "4191")):
        for domain in ("Rural", "Urban"):
            put(tmp_path / split / domain / "images_png" / f"{number}.png")
            if split != "Test":
                put(tmp_path / split / domain / "masks_png" / f"{number}.png", label)
    pairs = pairs_of("loveda", tmp_path)
    assert [p.image_id for p in pairs if p.split == "train"] == ["rural/1366", "urban/1366"]
    assert [p.label_uri is None for p in pairs] == [False] * 4 + [True] * 2
    assert {p.image_id for p in pairs_of("loveda_rural", tmp_path)} == {"rural/1366", "rural/2522", "rural/4191"}
    assert {p.image_id for p in pairs_of("loveda_urban", tmp_path)} == {"urban/1366", "urban/2522", "urban/4191"}
    classes = classes_of("loveda", tmp_path)
    assert counts(pairs[0], classes) == [6] * 7
    assert np.array_equal(train_ids(pairs[0], classes), np.where(label == 0, 255, label - 1))
    assert classes.names == ("background", "building", "road", "water", "barren", "forest", "agriculture")
    with pytest.raises(DatasetError, match="no folder Train, Val or Test"):
        list(LAYOUTS["loveda"].pairs(str(tmp_path / "Train")))


ISPRS = [(255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0), (0, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize("layout", ["potsdam", "potsdam_irrg", "vaihingen"])
def test_isprs(tmp_path: Path, layout: str) -> None:
    potsdam = layout.startswith("potsdam")
    image = "2_Ortho_RGB/top_potsdam_{}_RGB.tif" if potsdam else "top/top_mosaic_09cm_area{}.tif"
    if layout == "potsdam_irrg":
        image = "3_Ortho_IRRG/top_potsdam_{}_IRRG.tif"
    labels = ("5_Labels_all/top_potsdam_{}_label.tif", "5_Labels_for_participants/top_potsdam_{}_label.tif")
    if not potsdam:
        complete = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE"
        labels = (f"{complete}/top_mosaic_09cm_area{{}}.tif", "gts_for_participants/top_mosaic_09cm_area{}.tif")
    train, judged = ("6_7", "5_15") if potsdam else ("37", "38")
    for tile in (train, judged):
        put(tmp_path / image.format(tile))
        put(tmp_path / labels[0].format(tile), cycle(ISPRS))
    put(tmp_path / labels[1].format(train), cycle(ISPRS))
    of = {p.image_id: p for p in pairs_of(layout, tmp_path)}
    assert {tile: pair.split for tile, pair in of.items()} == {train: "train", judged: "val"}
    classes = classes_of(layout, tmp_path)
    assert counts(of[judged], classes) == [6, 12, 6, 6, 6, 6]
    assert np.array_equal(train_ids(of[judged], classes), cycle([0, 1, 2, 3, 4, 5, 255, 1]))
    (tmp_path / labels[0].partition("/")[0]).rename(tmp_path / "gone")
    unlabelled = {p.image_id: p.label_uri is None for p in pairs_of(layout, tmp_path)}
    assert unlabelled == {train: False, judged: True}
    (tmp_path / labels[1].partition("/")[0]).rename(tmp_path / "gone2")
    with pytest.raises(DatasetError, match=r"no folder .* in this folder"):
        list(LAYOUTS[layout].pairs(str(tmp_path)))


@pytest.mark.parametrize("form", ["flat", "eroded", "eroded, flat"])
@pytest.mark.parametrize("layout", ["potsdam", "vaihingen"])
def test_isprs_labels_as_their_archives_unpack(tmp_path: Path, layout: str, form: str) -> None:
    """Beside those of the participants, which lack the tiles that judged them."""
    if layout == "potsdam":
        image, name, folder = "2_Ortho_RGB/top_potsdam_{}_RGB.tif", "top_potsdam_{}_label", "5_Labels_all_noBoundary/"
        train, judged, participants = "6_7", "5_15", "5_Labels_for_participants/top_potsdam_{}_label.tif"
    else:
        image, name = "top/top_mosaic_09cm_area{}.tif", "top_mosaic_09cm_area{}"
        folder = "ISPRS_semantic_labeling_Vaihingen_ground_truth_eroded_COMPLETE/"
        train, judged, participants = "37", "38", "gts_for_participants/top_mosaic_09cm_area{}.tif"
    label = ("" if "flat" in form else folder) + name + ("_noBoundary.tif" if "eroded" in form else ".tif")
    for tile in (train, judged):
        put(tmp_path / image.format(tile))
        put(tmp_path / label.format(tile), cycle(ISPRS))
    if "eroded" in form and layout == "vaihingen":
        put(tmp_path / label.format(9), cycle(ISPRS))
    put(tmp_path / participants.format(train), cycle(ISPRS))
    of = {p.image_id: p for p in pairs_of(layout, tmp_path)}
    assert {tile: (p.split, p.label_uri) for tile, p in of.items()} == {
        train: ("train", f"{tmp_path}/{label.format(train)}"), judged: ("val", f"{tmp_path}/{label.format(judged)}")
    }  # fmt: skip
    assert np.array_equal(train_ids(of[judged], classes_of(layout, tmp_path)), cycle([0, 1, 2, 3, 4, 5, 255, 1]))
    if "eroded" in form:  # a whole one comes first, and takes no other tile's away
        put(tmp_path / f"{name}.tif".format(judged), cycle(ISPRS))
        found = {p.image_id: p.label_uri for p in pairs_of(layout, tmp_path)}
        assert found == {train: of[train].label_uri, judged: f"{tmp_path}/{name.format(judged)}.tif"}


@pytest.mark.parametrize("layout", ["potsdam", "potsdam_irrg", "vaihingen", "loveda"])
def test_what_converters_leave(tmp_path: Path, layout: str) -> None:
    """img_dir and ann_dir of mmsegmentation's converters, with ids, of which 0 is ignored."""
    names = {"vaihingen": ("area1_0_0_512_512", "area6_0_0_512_512"), "loveda": ("1366", "2522")}
    train, val = names.get(layout, ("2_10_0_0_512_512", "5_15_0_0_512_512"))
    label = cycle([0, 1, 2, 3, 4, 5, 6, 7] if layout == "loveda" else [0, 1, 2, 3, 4, 5, 6, 6])
    for split, name in (("train", train), ("val", val)):
        put(tmp_path / f"img_dir/{split}/{name}.png")
        put(tmp_path / f"ann_dir/{split}/{name}.png", label)
    if layout == "loveda":
        put(tmp_path / "img_dir/test/4191.png")
    pairs, classes = pairs_of(layout, tmp_path), classes_of(layout, tmp_path)
    found = [(p.image_id, p.split, p.label_uri is None) for p in pairs if p.split != "test"]
    assert found == [(train, "train", False), (val, "val", False)] and len(pairs) == (3 if layout == "loveda" else 2)
    own = LAYOUTS[layout].classes
    assert own is not None and (classes.names, classes.palette) == (own.names, own.palette)
    assert np.array_equal(train_ids(pairs[-1], classes), np.where(label == 0, 255, label - 1))
    (tmp_path / "own.json").write_text(CITYSCAPES_CLASSES.to_json())
    given = find_classes(str(tmp_path / "own.json"), None, layout, str(tmp_path), None, reduce_zero_label=False)
    assert given == CITYSCAPES_CLASSES
    downloaded = {"vaihingen": "top", "loveda": "Val", "potsdam": "2_Ortho_RGB"}.get(layout, "3_Ortho_IRRG")
    (tmp_path / downloaded).mkdir()
    with pytest.raises(DatasetError, match=f"{downloaded} and .*/img_dir are what was downloaded and what a converter"):
        pairs_of(layout, tmp_path)
    (tmp_path / downloaded).rmdir()
    (tmp_path / "img_dir/more").mkdir()
    with pytest.raises(DatasetError, match=r"no folder img_dir/<split> in this folder, and img_dir/ holds 'more'"):
        pairs_of(layout, tmp_path)


@pytest.mark.parametrize("layout", ["loveda_rural", "loveda_urban"])
def test_domains_that_a_converter_put_together_are_not_told_apart(tmp_path: Path, layout: str) -> None:
    put(tmp_path / "img_dir/train/1366.png")
    with pytest.raises(DatasetError, match=r"img_dir: holds the images of both domains.*, or take the layout loveda$"):
        pairs_of(layout, tmp_path)


CATEGORIES = [
    {"id": 1, "name": "person", "isthing": 1, "color": [220, 20, 60], "supercategory": "person"},
    {"id": 200, "name": "rug-merged", "isthing": 0, "color": [250, 141, 255], "supercategory": "floor"},
]
NUMBERS = {7: 1, 300: 1, 70_000: 200}
"""Segment -> category; beyond 255 and 65,535 green and blue count."""


def make_panoptic(root: Path, numbers: dict[int, int] = NUMBERS) -> np.ndarray:
    """Two images; the segment of each pixel, 0 where there is none."""
    label = np.resize(np.array([0, 7, 300, 70_000]), SIZE)
    pixels = np.stack([label & 255, label >> 8 & 255, label >> 16], -1).astype(np.uint8)
    for split, name in (("train2017", "000000000009"), ("val2017", "000000000139")):
        put(root / split / f"{name}.jpg")
        put(root / "annotations" / f"panoptic_{split}" / f"{name}.png", pixels)
        info = [{"id": n, "category_id": c, "area": 1, "iscrowd": 0} for n, c in numbers.items()]
        content = {
            "images": [{"id": int(name), "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": [{"image_id": int(name), "file_name": f"{name}.png", "segments_info": info}],
            "categories": CATEGORIES,
        }
        (root / "annotations" / f"panoptic_{split}.json").write_text(json.dumps(content))
    return label


@pytest.mark.usefixtures("ray_session")
def test_coco_panoptic(tmp_path: Path) -> None:
    label = make_panoptic(tmp_path / "coco")
    out = str(tmp_path / "out")
    assert prepare(layout="coco_panoptic", root=str(tmp_path / "coco"), out=out) == []
    index = open_index(out)
    assert index.classes.names == ("person", "rug-merged") and index.classes.palette[1] == (250, 141, 255)
    assert index.splits == {"train": [0, 1], "val": [1, 2]}
    assert read_manifest(out)["label_uri"][0].as_py().startswith("labels/")
    expected = np.select([label == 0, label == 70_000], [255, 1], 0)
    assert np.array_equal(index.train_ids(0), expected) and np.array_equal(index.train_ids(1), expected)
    before = {path: path.read_bytes() for path in Path(out).rglob("*.png")}
    make_panoptic(tmp_path / "coco", {7: 1, 300: 1})
    with pytest.raises(DatasetError, match=r"000000000009\.png: segment 70000 \(12 pixels\) is not in the annotations"):
        prepare(layout="coco_panoptic", root=str(tmp_path / "coco"), out=out, overwrite=True)
    assert {path: path.read_bytes() for path in Path(out).rglob("*.png")} == before


def test_coco_panoptic_as_detectron2_has_it_and_without_images_of_train(tmp_path: Path) -> None:
    make_panoptic(tmp_path)
    for split in ("train2017", "val2017"):
        (tmp_path / "annotations" / f"panoptic_{split}").rename(tmp_path / f"panoptic_{split}")
    assert [pair.label_uri for pair in pairs_of("coco_panoptic", tmp_path)] == [
        f"{tmp_path}/panoptic_train2017/000000000009.png", f"{tmp_path}/panoptic_val2017/000000000139.png"
    ]  # fmt: skip
    (tmp_path / "train2017").rename(tmp_path / "gone")
    assert [pair.split for pair in pairs_of("coco_panoptic", tmp_path)] == ["val"]
    segments = LAYOUTS["coco_panoptic"].segments
    assert segments is not None and [*segments(str(tmp_path)).of] == [f"{tmp_path}/panoptic_val2017/000000000139.png"]


def test_a_store_that_goes_away_is_no_problem_of_an_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_panoptic(tmp_path)

    def away(uri: str) -> np.ndarray:
        raise UnreachableError(f"{uri}: cannot be reached")

    monkeypatch.setattr(coco, "read_colours", away)
    pairs, segments = pairs_of("coco_panoptic", tmp_path), coco.panoptic_segments(str(tmp_path))
    with pytest.raises(UnreachableError):
        coco.drawn(pairs, segments, str(tmp_path / "labels"), [])


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("[]", r"panoptic_train2017\.json: 'images' is not a list of objects with file_name, id"),
        ('{"images": [], "annotations": [{}]}', "'annotations' is not a list of objects with file_name, image_id"),
        ("no", r"panoptic_train2017\.json: "),
    ],
)
def test_refuses_annotations(tmp_path: Path, content: str, reason: str) -> None:
    (tmp_path / "annotations").mkdir()
    with pytest.raises(DatasetError, match=r"annotations: no file panoptic_<split>\.json"):
        list(LAYOUTS["coco_panoptic"].pairs(str(tmp_path)))
    (tmp_path / "annotations/panoptic_train2017.json").write_text(content)
    with pytest.raises(DatasetError, match=reason):
        list(LAYOUTS["coco_panoptic"].pairs(str(tmp_path)))


def test_coco_stuff(tmp_path: Path) -> None:
    categories = [{"id": 92, "name": "banner"}, {"id": 182, "name": "wood"}, {"id": 183, "name": "other"}]
    (tmp_path / "annotations").mkdir()
    (tmp_path / "annotations/stuff_val2017.json").write_text(json.dumps({"categories": categories}))
    with pytest.raises(DatasetError, match=r"unpack stuff_val2017_pixelmaps\.zip there"):
        pairs_of("coco_stuff", tmp_path)
    put(tmp_path / "images/val2017/000000000139.jpg")
    put(tmp_path / "annotations/stuff_val2017_pixelmaps/000000000139.png", cycle([0, 92, 182, 183]))
    (pair,) = pairs_of("coco_stuff", tmp_path)
    classes = classes_of("coco_stuff", tmp_path)
    assert (pair.image_id, pair.split, classes.names) == ("000000000139", "val", ("banner", "wood"))
    assert counts(pair, classes) == [12, 12] and len(set(classes.palette)) == 2
    assert set(np.unique(read_label(str(pair.label_uri)))) == {0, 92, 182, 183}


@pytest.mark.parametrize("folder", ["annotations", "stuffthingmaps", "stuffthingmaps_trainval2017"])
def test_coco_stuff_164k(tmp_path: Path, folder: str) -> None:
    """Ids are COCO's less one: 0 person, 12 stop sign, 89 toothbrush, 91 banner, 181 wood; 11 and 90 are none."""
    label = cycle([0, 11, 12, 89, 90, 91, 181, 255])
    put(tmp_path / "images/train2017/000000000009.jpg")
    put(tmp_path / "val2017/000000000139.jpg")
    for path in ("train2017/000000000009", "val2017/000000000139", "val2017/000000000139_labelTrainIds"):
        put(tmp_path / folder / f"{path}.png", label)
    pairs, classes = pairs_of("coco_stuff164k", tmp_path), classes_of("coco_stuff164k", tmp_path)
    assert [(p.image_id, p.split) for p in pairs] == [("000000000009", "train"), ("000000000139", "val")]
    assert [p.label_uri for p in pairs] == [
        f"{tmp_path}/{folder}/train2017/000000000009.png", f"{tmp_path}/{folder}/val2017/000000000139.png"
    ]  # fmt: skip
    found = {raw: int(train) for raw, train in zip(label.flat, train_ids(pairs[0], classes).flat, strict=True)}
    assert found == {0: 0, 11: 255, 12: 11, 89: 79, 90: 255, 91: 80, 181: 170, 255: 255}
    named = {raw: classes.names[train] for raw, train in found.items() if train != 255}
    assert named == {0: "person", 12: "stop sign", 89: "toothbrush", 91: "banner", 181: "wood"}
    assert len(classes) == len(set(classes.palette)) == 171 and set(classes.raw_to_train) == {*range(182), 255}
    (tmp_path / "images/train2017").rename(tmp_path / "images/gone")
    assert [p.split for p in pairs_of("coco_stuff164k", tmp_path)] == ["val"]
    other = "annotations" if folder != "annotations" else "stuffthingmaps"
    (tmp_path / other / "val2017").mkdir(parents=True)
    with pytest.raises(DatasetError, match=r"have train2017 or val2017; unpack stuffthingmaps_trainval2017\.zip into"):
        pairs_of("coco_stuff164k", tmp_path)


def test_coco_stuff_164k_without_labels_or_with_those_of_a_converter_alone(tmp_path: Path) -> None:
    put(tmp_path / "images/train2017/a.jpg")
    with pytest.raises(DatasetError, match=r"none of .* has train2017 or val2017; unpack stuffthingmaps_trainval2017"):
        pairs_of("coco_stuff164k", tmp_path)
    put(tmp_path / "annotations/train2017/a_labelTrainIds.png", cycle([0]))
    with pytest.raises(DatasetError, match=r"train2017: all labels end in _labelTrainIds\.png"):
        pairs_of("coco_stuff164k", tmp_path)


def test_ade20k(tmp_path: Path) -> None:
    label = cycle([0, 1, 2, 8, 150])
    for split, name in (("training", "ADE_train_00000001"), ("validation", "ADE_val_00000001")):
        put(tmp_path / f"images/{split}/{name}.jpg")
        put(tmp_path / f"annotations/{split}/{name}.png", label)
    pairs, classes = pairs_of("ade20k", tmp_path), classes_of("ade20k", tmp_path)
    assert [(p.image_id, p.split) for p in pairs] == [("ADE_train_00000001", "train"), ("ADE_val_00000001", "val")]
    assert np.array_equal(train_ids(pairs[0], classes), np.where(label == 0, 255, label - 1))
    assert [classes.names[i] for i in (0, 1, 7, 20, 127, 149)] == ["wall", "building", "bed", "car", "bicycle", "flag"]
    assert [classes.palette[i] for i in (0, 20, 149)] == [(120, 120, 120), (0, 102, 200), (92, 0, 255)]
    assert len(classes) == 150
    (tmp_path / "images").rename(tmp_path / "gone")
    with pytest.raises(DatasetError, match=r"no folder images/<split> in this folder$"):
        pairs_of("ade20k", tmp_path)


def test_panoptic_annotations_that_differ_are_drawn_apart(tmp_path: Path) -> None:
    digests = set()
    for category in (1, 2):
        folder = tmp_path / str(category) / "annotations"
        folder.mkdir(parents=True)
        segment = {"image_id": 1, "file_name": "1.png", "segments_info": [{"id": 7, "category_id": category}]}
        (folder / "panoptic_val2017.json").write_text(json.dumps({"annotations": [segment]}))
        digests.add(coco.panoptic_segments(str(folder.parent)).digest)
    assert len(digests) == 2


def test_categories_beyond_255_are_kept() -> None:
    assert coco._categories(np.array([[7 << 16, 0]], np.int32), {7: 300}).tolist() == [[300, 0]]


def test_labels_below_mapillary_s_testing_are_passed_over(tmp_path: Path) -> None:
    put_vistas(tmp_path, "training/v2.0", "validation/v2.0")
    put(tmp_path / "testing/images/a.jpg")
    put(tmp_path / "testing/labels/a.png", cycle([2]))
    found = [(pair.split, pair.label_uri is None) for pair in LAYOUTS["mapillary"].pairs(str(tmp_path))]
    assert found == [("test", True), ("train", False), ("val", False)]


@pytest.mark.parametrize("before", [True, False])
def test_drawn_labels_go_with_a_failed_prepare_unless_a_dataset_has_them(
    before: bool, tmp_path: Path, ray_session: None
) -> None:
    make_panoptic(tmp_path / "coco")
    words = {"layout": "coco_panoptic", "root": str(tmp_path / "coco"), "out": str(tmp_path / "out"), "overwrite": True}
    if before:
        prepare(**words)
    drawn = {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")}
    assert bool(drawn) == before
    image = next((tmp_path / "coco" / "train2017").glob("*.jpg"))
    image.write_bytes(b"broken")
    with pytest.raises(DatasetError, match="not an image in a known format"):
        prepare(**words)
    assert {path: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")} == drawn
