"""Each dataset of the field as a miniature: its folders, file names, label encoding and splits."""

from __future__ import annotations

import io
import json
import re
import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data.classes import Classes, read_classes
from udaseg.data.dataset_input import find_classes
from udaseg.data.folders import sort_out
from udaseg.data.images import decode_label, decode_red, inspect, read_raw_label
from udaseg.data.index import open_index
from udaseg.data.layouts import LAYOUTS
from udaseg.data.manifest import read_manifest
from udaseg.data.plan import Plan, StreamPlan
from udaseg.data.taxonomies import CITYSCAPES_CLASSES, IDD_CLASSES, remap
from udaseg.errors import DatasetError
from udaseg.jobs.prepare import prepare

SIZE = (12, 16)  # height, width


def grey_png(label: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(label.astype(np.uint8)).save(stream, "PNG")
    return stream.getvalue()


def palette_png(label: np.ndarray) -> bytes:
    """As GTA5's: ids are indices of a palette of colours."""
    image = Image.fromarray(label.astype(np.uint8))
    image.putpalette(np.random.default_rng(0).integers(0, 256, 768).tolist())
    stream = io.BytesIO()
    image.save(stream, "PNG")
    return stream.getvalue()


def rgb16_png(label: np.ndarray) -> bytes:
    """As SYNTHIA's: three channels of 16 bits, class, instance and 0. Pillow cannot write it; rows use filter 1."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    pixels = np.stack([label, label * 0 + 700, label * 0], -1).astype(">u2")
    row_bytes = pixels.view(np.uint8).reshape(len(label), -1)
    differences = row_bytes - np.pad(row_bytes, ((0, 0), (6, 0)))[:, :-6]
    data = zlib.compress(np.pad(differences, ((0, 0), (1, 0)), constant_values=1).tobytes())
    header = struct.pack(">IIBBBBB", label.shape[1], label.shape[0], 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put_image(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


@dataclass(frozen=True, kw_only=True)
class Mini:
    """A miniature of a dataset. In patterns, `head` and `rest` are an id's parts at its first /."""

    images: str
    labels: str
    rows: dict[str, str]
    """Image id -> split."""
    unlabelled: tuple[str, ...] = ()
    """Splits without labels."""
    ids: int
    """How many ids its labels may hold; 255 comes on top."""
    raw_ids: list[int | None]
    """Per train id the id in the labels."""
    encode: Callable[[np.ndarray], bytes] = grey_png
    left_alone: tuple[str, ...] = ()
    """Files that no pair may have."""

    def files(self, image_id: str) -> tuple[str, str | None]:
        """Its image and label."""
        split, (head, _, rest) = self.rows[image_id], image_id.partition("/")
        rest = rest.removeprefix("ulm_000000_000019_")  # of rainy_cityscapes, whose ids are of two names
        if self.images.startswith("{head}/"):  # of cross_city, whose folders have capitals
            head, split = head.capitalize(), split.capitalize()
        image, label = (p.format(id=image_id, split=split, head=head, rest=rest) for p in (self.images, self.labels))
        return image, None if self.rows[image_id] in self.unlabelled else label

    def build(self, root: Path) -> dict[str, np.ndarray | None]:
        """Write its files; the labels, which hold all ids, by image id."""
        labels: dict[str, np.ndarray | None] = {}
        for i, image_id in enumerate(self.rows):
            image, label = self.files(image_id)
            put_image(root / image)
            labels[image_id] = None
            if label is not None:
                ids = np.resize(np.array([*range(self.ids), 255]), SIZE[0] * SIZE[1])
                labels[image_id] = np.random.default_rng(i).permutation(ids).reshape(SIZE)
                put(root / label, self.encode(labels[image_id]))
        for path in self.left_alone:
            put(root / path, b"")
        return labels

    def counts(self, label: np.ndarray) -> list[int]:
        """Pixels per train id."""
        return [0 if raw is None else int((label == raw).sum()) for raw in self.raw_ids]

    def train_ids(self, label: np.ndarray) -> np.ndarray:
        """Its pixels' train ids, 255 = ignored."""
        train_ids = np.full(SIZE, 255)
        for train, raw in enumerate(self.raw_ids):
            train_ids[label == raw] = train
        return train_ids


CITY = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
MINIS = {
    "cityscapes": Mini(
        images="leftImg8bit/{split}/{id}_leftImg8bit.png",
        labels="gtFine/{split}/{id}_gtFine_labelIds.png",
        rows={
            "ulm/ulm_000000_000019": "train",
            "lindau/lindau_000000_000019": "val",
            "bonn/bonn_000000_000019": "test",
        },
        unlabelled=("test",),
        ids=34,
        raw_ids=CITY,
        left_alone=(
            "gtFine/train/ulm/ulm_000000_000019_gtFine_color.png",
            "gtFine/train/ulm/ulm_000000_000019_gtFine_instanceIds.png",
            "gtFine/train/ulm/ulm_000000_000019_gtFine_labelTrainIds.png",
        ),
    ),
    "gta5": Mini(
        images="images/{id}.png",
        labels="labels/{id}.png",
        rows={"00001": "train", "00002": "train"},
        ids=35,
        raw_ids=CITY,
        encode=palette_png,
        left_alone=("labels/00001_labelTrainIds.png",),
    ),
    "synthia": Mini(
        images="RGB/{id}.png",
        labels="GT/LABELS/{id}.png",
        rows={"0000000": "train", "0000001": "train"},
        ids=23,
        raw_ids=[3, 4, 2, 21, 5, 7, 15, 9, 6, 16, 1, 10, 17, 8, 18, 19, 20, 12, 11],
        encode=rgb16_png,
        left_alone=("GT/COLOR/0000000.png", "GT/LABELS/0000000_labelTrainIds.png"),
    ),
    "acdc": Mini(
        images="rgb_anon/{head}/{split}/{rest}_rgb_anon.png",
        labels="gt/{head}/{split}/{rest}_gt_labelIds.png",
        rows={
            "fog/GOPR01/GOPR01_frame_000001": "train",
            "fog/GOPR01/GOPR01_frame_000002": "val",
            "fog/GOPR01/GOPR01_frame_000003": "test",
            "night/GOPR01/GOPR01_frame_000001": "train",
        },
        unlabelled=("test",),
        ids=34,
        raw_ids=CITY,
        left_alone=(
            "rgb_anon/fog/train_ref/GOPR01/GOPR01_frame_000001_rgb_ref_anon.png",
            "gt/fog/train_ref/GOPR01/GOPR01_frame_000001_gt_ref_labelIds.png",
            "gt/fog/train/GOPR01/GOPR01_frame_000001_gt_labelColor.png",
            "gt/fog/train/GOPR01/GOPR01_frame_000001_gt_labelTrainIds.png",
            "gt/fog/train/GOPR01/GOPR01_frame_000001_gt_invIds.png",
            "rgb_anon/train/GOPR01_frame_000001_rgb_anon.png",
            "gt/train/GOPR01_frame_000001_gt_labelTrainIds.png",
        ),
    ),
    "dark_zurich": Mini(
        images="rgb_anon/{split}/night/{id}_rgb_anon.png",
        labels="gt/{split}/night/{id}_gt_labelIds.png",
        rows={"GOPR0351/GOPR0351_frame_000001": "train", "GOPR0356/GOPR0356_frame_000321": "val"},
        unlabelled=("train",),
        ids=34,
        raw_ids=CITY,
        left_alone=(
            "rgb_anon/train/day/GOPR0345/GOPR0345_frame_000001_rgb_anon.png",
            "rgb_anon/train/twilight/GOPR0347/GOPR0347_frame_000001_rgb_anon.png",
            "rgb_anon/val_ref/day/GOPR0356_ref/GOPR0356_frame_000321_ref_rgb_anon.png",
            "gt/val/night/GOPR0356/GOPR0356_frame_000321_gt_labelTrainIds.png",
        ),
    ),
    "bdd100k": Mini(
        images="images/10k/{split}/{id}.jpg",
        labels="labels/sem_seg/masks/{split}/{id}.png",
        rows={"0a0a0b1a-7c39d841": "train", "7d2f7975-e0c1c5a7": "val", "ac6d4f42-00000000": "test"},
        unlabelled=("test",),
        ids=19,
        raw_ids=[*range(19)],
        left_alone=("labels/sem_seg/colormaps/train/0a0a0b1a-7c39d841.png", "images/100k/train/0000f77c-6257be58.jpg"),
    ),
    "cross_city": Mini(
        images="{head}/Images/{split}/{rest}.png",
        labels="{head}/Labels/{split}/{rest}_eval.png",
        rows={"rio/pano_00002": "train", "rio/pano_00001": "test", "tokyo/pano_00001": "test"},
        unlabelled=("train",),
        ids=34,
        raw_ids=CITY,
    ),
    "idd": Mini(
        images="leftImg8bit/{split}/{id}_leftImg8bit.png",
        labels="gtFine/{split}/{id}_gtFine_labelids.png",
        rows={"201/000001": "train", "285/000259": "val", "9/000002": "test"},
        unlabelled=("test",),
        ids=40,
        raw_ids=[0, 3, 29, 20, 21, 26, 25, 24, 32, 5, 33, 6, 8, 12, 13, 14, 17, 9, 10],
        left_alone=(
            "gtFine/train/201/000001_gtFine_polygons.json",
            "gtFine/train/201/000001_gtFine_labellevel3Ids.png",
            "gtFine/train/201/000001_gtFine_instanceids.png",
        ),
    ),
    "synscapes": Mini(
        images="img/rgb/{id}.png",
        labels="img/class/{id}.png",
        rows={"1": "train", "25000": "train"},
        ids=34,
        raw_ids=CITY,
        left_alone=("img/instance/1.png", "img/depth/1.exr", "meta/1.json"),
    ),
    "foggy_cityscapes": Mini(
        images="leftImg8bit_foggy/{split}/{id}_leftImg8bit_foggy_beta_0.02.png",
        labels="gtFine/{split}/{id}_gtFine_labelIds.png",
        rows={"ulm/ulm_000000_000019": "train", "lindau/lindau_000000_000019": "val"},
        ids=34,
        raw_ids=CITY,
        left_alone=(
            "leftImg8bit_foggy/train/ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.01.png",
            "leftImg8bit_foggy/train/ulm/ulm_000000_000019_leftImg8bit_foggy_beta_0.005.png",
            "leftImg8bit_foggy/train_extra/nuernberg/nuernberg_000000_000000_leftImg8bit_foggy_beta_0.01.png",
        ),
    ),
    "rainy_cityscapes": Mini(
        images="leftImg8bit_rain/{split}/ulm/ulm_000000_000019_leftImg8bit_rain_{rest}.png",
        labels="gtFine/{split}/ulm/ulm_000000_000019_gtFine_labelIds.png",
        rows={"ulm/ulm_000000_000019_alpha_0.01_beta_0.005_dropsize_0.01_pattern_1": "train"},
        ids=34,
        raw_ids=CITY,
        left_alone=("gtFine/train/ulm/ulm_000001_000019_gtFine_labelIds.png",),
    ),
    "nightcity": Mini(
        images="NightCity-images/images/{split}/{id}.png",
        labels="NightCity-label/label/{split}/{id}_labelIds.png",
        rows={"Chicago_0000": "train", "Chicago_0004": "val"},
        ids=34,
        raw_ids=CITY,
        left_alone=("NightCity-label/color/train/Chicago_0000_color.png",),
    ),
    "nightcity_fine": Mini(
        images="{split}/img/{id}.png",
        labels="{split}/lbl/{id}_trainIds.png",
        rows={"Chicago_0002": "train", "Dubai_0016": "val"},
        ids=19,
        raw_ids=[*range(19)],
    ),
    "urbansyn": Mini(
        images="rgb/rgb_{id}.png",
        labels="ss/ss_{id}.png",
        rows={"0001": "train", "7539": "train"},
        ids=20,
        raw_ids=[*range(19)],
        left_alone=("ss_color/ss_color_0001.png", "depth/depth_0001.exr", "panoptic/panoptic_0001.png"),
    ),
    "muses": Mini(
        images="frame_camera/{split}/{id}_frame_camera.png",
        labels="gt_semantic/{split}/{id}_gt_labelTrainIds.png",
        rows={
            "rain/night/REC0008_frame_079714": "train",
            "fog/day/REC0475_frame_000247": "val",
            "clear/day/REC0241_frame_503673": "test",
        },
        unlabelled=("test",),
        ids=19,
        raw_ids=[*range(19)],
        left_alone=(
            "gt_semantic/train/rain/night/REC0008_frame_079714_gt_labelIds.png",
            "gt_semantic/train/rain/night/REC0008_frame_079714_gt_labelColor.png",
            "gt_panoptic/train/rain/night/REC0008_frame_079714_gt_panoptic.png",
            "reference_frames/train/rain/night/REC0008_frame_079714_frame_camera.png",
        ),
    ),
    "nighttime_driving": Mini(
        images="leftImg8bit/{split}/night/{id}_leftImg8bit.png",
        labels="gtCoarse_daytime_trainvaltest/{split}/night/{id}_gtCoarse_labelTrainIds.png",
        rows={"0_frame_0205": "test"},
        ids=19,
        raw_ids=[*range(19)],
        left_alone=(
            "gtCoarse_daytime_trainvaltest/test/night/0_frame_0205_gtCoarse_color.png",
            "gtCoarse_daytime_trainvaltest/test/night/0_frame_0205_gtCoarse_labelIds.png",
        ),
    ),
    "camvid": Mini(
        images="{split}/{id}.png",
        labels="{split}annot/{id}.png",
        rows={"0001TP_006690": "train", "0016E5_07959": "val", "0001TP_008550": "test"},
        ids=12,
        raw_ids=[3, 4, 1, None, 7, 2, None, 6, 5, None, 0, 9, None, 8, None, None, None, None, None],
    ),
}


def test_every_dataset_has_a_miniature() -> None:
    elsewhere = {"folders", "voc", "cvat", "mapillary", "carla", "loveda", "loveda_rural", "loveda_urban"}
    elsewhere |= {"potsdam", "potsdam_irrg", "vaihingen", "coco_panoptic", "coco_stuff", "railsem19"}
    elsewhere |= {"coco_stuff164k", "ade20k"}
    assert elsewhere | set(MINIS) == set(LAYOUTS)  # elsewhere: test_voc_layouts.py, test_other_layouts.py


@pytest.mark.parametrize("name", MINIS)
def test_layout(tmp_path: Path, name: str) -> None:
    mini, classes = MINIS[name], LAYOUTS[name].classes
    labels = mini.build(tmp_path)
    pairs = list(LAYOUTS[name].pairs(str(tmp_path)))
    assert sort_out(pairs) == (pairs, [])
    found = {pair.image_id: (pair.split, pair.image_uri, pair.label_uri) for pair in pairs}
    files = {i: [file and f"{tmp_path}/{file}" for file in mini.files(i)] for i in mini.rows}
    assert len(pairs) == len(found) and found == {i: (split, *files[i]) for i, split in mini.rows.items()}
    assert classes is not None and classes.names == CITYSCAPES_CLASSES.names
    for pair in pairs:
        facts = inspect(str(pair.image_uri), pair.label_uri, classes, classes.lookup())
        label = labels[pair.image_id]
        assert (facts.height, facts.width) == SIZE
        counts = None if facts.class_pixels is None else facts.class_pixels.tolist()
        assert counts == (None if label is None else mini.counts(label))
        if label is not None:  # ids occur about equally often: numbers do not tell them apart
            read = classes.lookup()[read_raw_label(str(pair.label_uri), classes)]
            assert np.array_equal(read, mini.train_ids(label))


def test_every_layout_is_in_the_help_of_prepare() -> None:
    named = re.split(r"\W+", (prepare.__doc__ or "").partition("layout: ")[2].partition("root: ")[0])
    assert set(LAYOUTS) - set(named) == set()


def check_mini(mini: Mini, name: str, root: Path) -> None:
    """Another form of a layout: what its labels hold is read."""
    labels = mini.build(root)
    pairs = list(LAYOUTS[name].pairs(str(root)))
    assert sort_out(pairs) == (pairs, []) and {pair.image_id for pair in pairs} == set(mini.rows)
    classes = find_classes(None, None, name, str(root), None, reduce_zero_label=False)
    for pair in pairs:
        label = labels[pair.image_id]
        assert (label is None) == (pair.label_uri is None)
        if label is not None:
            read = classes.lookup()[read_raw_label(str(pair.label_uri), classes)]
            assert np.array_equal(read, mini.train_ids(label))


def test_bdd100k_of_before(tmp_path: Path) -> None:
    images, labels = "bdd100k/seg/images/{split}/{id}.jpg", "bdd100k/seg/labels/{split}/{id}_train_id.png"
    left = ("bdd100k/seg/color_labels/train/0a0a0b1a-7c39d841_train_color.png",)
    check_mini(replace(MINIS["bdd100k"], images=images, labels=labels, left_alone=left), "bdd100k", tmp_path)


def test_of_two_trees_of_bdd100k_the_newer_is_read(tmp_path: Path) -> None:
    MINIS["bdd100k"].build(tmp_path)
    put_image(tmp_path / "old/seg/images/train/b.jpg")
    check_mini(MINIS["bdd100k"], "bdd100k", tmp_path)


def test_labels_that_a_converter_made_are_not_enough(tmp_path: Path) -> None:
    MINIS["gta5"].build(tmp_path)
    for path in (tmp_path / "labels").iterdir():
        path.rename(path.with_name(f"{path.stem.removesuffix('_labelTrainIds')}_labelTrainIds.png"))
    with pytest.raises(DatasetError, match=r"labels: all labels end in _labelTrainIds\.png"):
        list(LAYOUTS["gta5"].pairs(str(tmp_path)))


def test_idd_in_the_train_ids_of_cityscapes(tmp_path: Path) -> None:
    labels = "gtFine/{split}/{id}_gtFine_labelcsTrainIds.png"
    mini = replace(MINIS["idd"], labels=labels, ids=19, raw_ids=[*range(19)])
    check_mini(mini, "idd", tmp_path / "train_ids")
    MINIS["idd"].build(tmp_path / "train_ids")  # the label ids beside them come first
    assert find_classes(None, None, "idd", str(tmp_path / "train_ids"), None, reduce_zero_label=False) == IDD_CLASSES
    check_mini(MINIS["idd"], "idd", tmp_path / "ids")


def test_idd_as_it_is_drawn_if_nothing_is_said(tmp_path: Path) -> None:
    replace(MINIS["idd"], labels="gtFine/{split}/{id}_gtFine_labellevel3Ids.png").build(tmp_path)
    with pytest.raises(DatasetError, match=r"gtFine: no label ends in .*; draw them by createLabels\.py --id-type id"):
        list(LAYOUTS["idd"].pairs(str(tmp_path)))


@pytest.mark.parametrize(
    "name", ["cityscapes", "acdc", "dark_zurich", "bdd100k", "idd", "foggy_cityscapes", "rainy_cityscapes", "muses"]
)
def test_archives_that_were_unpacked_into_folders_of_their_own(tmp_path: Path, name: str) -> None:
    mini = MINIS[name]
    apart = replace(mini, images=f"one/{mini.images}", labels=f"two/{mini.labels}", left_alone=())
    check_mini(apart, name, tmp_path)


def test_archives_with_one_folder_each_are_told(tmp_path: Path) -> None:
    put_image(tmp_path / "leftImg8bit_trainvaltest/leftImg8bit/train/ulm/a_leftImg8bit.png")
    put_image(tmp_path / "leftImg8bit_trainextra/leftImg8bit/train_extra/augsburg/a_leftImg8bit.png")
    message = r"leftImg8bit_trainextra/leftImg8bit and .*: put what these hold into one folder, .*/leftImg8bit"
    with pytest.raises(DatasetError, match=message):
        list(LAYOUTS["cityscapes"].pairs(str(tmp_path)))


def test_idd_part_2_has_jpeg(tmp_path: Path) -> None:
    replace(MINIS["idd"], images="leftImg8bit/{split}/{id}_leftImg8bit.jpg").build(tmp_path)
    assert {pair.image_id for pair in LAYOUTS["idd"].pairs(str(tmp_path))} == set(MINIS["idd"].rows)


def test_dummy_labels_of_cityscapes_are_left_out(tmp_path: Path) -> None:
    MINIS["cityscapes"].build(tmp_path)
    test = next(pair for pair in LAYOUTS["cityscapes"].pairs(str(tmp_path)) if pair.split == "test")
    dummy = tmp_path / "gtFine/test" / f"{test.image_id}_gtFine_labelIds.png"
    put(dummy, grey_png(np.random.default_rng(0).integers(0, 4, SIZE)))
    put(dummy.with_name("alone_gtFine_labelIds.png"), dummy.read_bytes())
    pairs = list(LAYOUTS["cityscapes"].pairs(str(tmp_path)))
    assert {pair.split: pair.label_uri is None for pair in pairs} == {"train": False, "val": False, "test": True}
    assert sort_out(pairs) == (pairs, []) and test in pairs


def test_palette_is_that_of_cityscapes() -> None:
    palettes = {layout.classes.palette for name in MINIS if (layout := LAYOUTS[name]).classes}
    assert len(palettes) == 1
    assert dict(zip(CITYSCAPES_CLASSES.names, palettes.pop(), strict=True)) == {
        "road": (128, 64, 128),
        "sidewalk": (244, 35, 232),
        "building": (70, 70, 70),
        "wall": (102, 102, 156),
        "fence": (190, 153, 153),
        "pole": (153, 153, 153),
        "traffic light": (250, 170, 30),
        "traffic sign": (220, 220, 0),
        "vegetation": (107, 142, 35),
        "terrain": (152, 251, 152),
        "sky": (70, 130, 180),
        "person": (220, 20, 60),
        "rider": (255, 0, 0),
        "car": (0, 0, 142),
        "truck": (0, 0, 70),
        "bus": (0, 60, 100),
        "train": (0, 80, 100),
        "motorcycle": (0, 0, 230),
        "bicycle": (119, 11, 32),
    }


@pytest.mark.parametrize(
    ("name", "missing", "message"),
    [
        ("gta5", ["labels"], "labels: no such folder"),
        ("synthia", ["GT"], "GT/LABELS: no such folder"),
        ("acdc", ["rgb_anon/night/train"], "rgb_anon/night: no folder <split> in this folder"),
        ("acdc", ["rgb_anon/night", "rgb_anon/fog"], "rgb_anon: no folder fog, night, rain or snow in this folder"),
        ("cross_city", ["Rio/Images", "Tokyo/Images"], "no folder <city>/Images in this folder"),
        ("dark_zurich", ["rgb_anon/train/night", "rgb_anon/val/night"], "rgb_anon: no folder <split>/night in this"),
        ("idd", ["gtFine/train/201/000001_gtFine_labelids.png"], "gtFine/train: no file in .* _gtFine_labelids.png"),
        ("camvid", ["valannot"], "valannot: no such folder"),
    ],
)
def test_refuses_what_is_not_there(tmp_path: Path, name: str, missing: list[str], message: str) -> None:
    MINIS[name].build(tmp_path)
    for i, path in enumerate(missing):
        (tmp_path / path).rename(tmp_path / f"gone{i}")
    with pytest.raises(DatasetError, match=message):
        list(LAYOUTS[name].pairs(str(tmp_path)))


def test_ids_beyond_a_dataset_are_refused(tmp_path: Path) -> None:
    put_image(tmp_path / "a.png")
    put(tmp_path / "l.png", rgb16_png(np.full(SIZE, 300)))  # 300 = 44 + 256: both bytes count
    classes = LAYOUTS["synthia"].classes
    assert classes is not None
    with pytest.raises(DatasetError, match=r"l.png: label ids outside the class list: 300 \(192 pixels\)"):
        inspect(str(tmp_path / "a.png"), str(tmp_path / "l.png"), classes, classes.lookup())


def test_decodes_the_first_of_three_16_bit_channels() -> None:
    ids = np.random.default_rng(0).integers(0, 65536, (40, 30))
    label = decode_label(rgb16_png(ids))
    assert label.dtype == np.uint16 and np.array_equal(label, ids)
    assert np.array_equal(decode_red(rgb16_png(ids)), ids)
    with pytest.raises(DatasetError, match="cannot be decoded"):
        decode_label(rgb16_png(ids)[:-60])


# -- through `udaseg prepare`


@pytest.mark.usefixtures("ray_session")
def test_gta5_labels_of_another_size(tmp_path: Path) -> None:
    root, out = tmp_path / "gta5", str(tmp_path / "out")
    labels = MINIS["gta5"].build(root)
    put_image(root / "images/15188.png")
    put(root / "labels/15188.png", palette_png(np.full((10, 16), 7)))
    message = "labels/15188.png: label is 16 x 10 pixels (width x height), its image 16 x 12"
    with pytest.raises(DatasetError) as refusal:
        prepare(layout="gta5", root=str(root), out=out)
    assert message in str(refusal.value)
    skipped = prepare(layout="gta5", root=str(root), out=out, on_error="skip")
    assert [problem.image_id for problem in skipped] == ["15188"] and message in skipped[0].text
    rows = read_manifest(out, "train").to_pylist()
    assert {row["image_id"]: row["class_pixels"] for row in rows} == {
        i: MINIS["gta5"].counts(label) for i, label in labels.items() if label is not None
    }


@pytest.mark.usefixtures("ray_session")
def test_synthia_streams(tmp_path: Path) -> None:
    mini, out = MINIS["synthia"], str(tmp_path / "out")
    labels = mini.build(tmp_path / "synthia")
    prepare(layout="synthia", root=str(tmp_path / "synthia"), out=out)
    index = open_index(out)
    for row, label in enumerate(labels.values()):  # sorted by id, as the rows are
        assert label is not None and np.array_equal(index.train_ids(row), mini.train_ids(label))
    stream = StreamPlan(directory=out, labelled=True)
    plan = Plan(seed=0, batch_size=1, steps=1, crop=SIZE, short_side=12, scale=(1, 1), streams={"source": stream})
    seen = plan.load(0)["source_label"]  # the crop is the whole image
    assert any(np.array_equal(seen, index.train_ids(row)) for row in (0, 1))


# -- mapping files

COARSE = {
    "names": ["ground", "thing"],
    "palette": [[1, 2, 3], [4, 5, 6]],
    "map": dict.fromkeys(CITYSCAPES_CLASSES.names, None)
    | {"road": "ground", "sidewalk": "ground", "car": "thing", "person": "thing"},
}


@pytest.mark.usefixtures("ray_session")
@pytest.mark.parametrize("name", ["idd", "bdd100k"])  # one with a table of ids, one whose labels hold train ids
def test_mapping(tmp_path: Path, name: str) -> None:
    labels = MINIS[name].build(tmp_path / name)
    (tmp_path / "coarse.json").write_text(json.dumps(COARSE))
    out = str(tmp_path / "out")
    prepare(layout=name, root=str(tmp_path / name), mapping=str(tmp_path / "coarse.json"), out=out)
    classes = read_classes(out)
    assert classes.names == ("ground", "thing") and classes.palette == ((1, 2, 3), (4, 5, 6))
    for row in read_manifest(out).to_pylist():
        label = labels[row["image_id"]]
        if label is None:
            assert row["class_pixels"] is None
        else:
            counts = MINIS[name].counts(label)
            assert row["class_pixels"] == [counts[0] + counts[1], counts[11] + counts[13]]


def test_mapping_of_a_class_list_of_ones_own() -> None:
    own = Classes(names=("a", "b"), palette=((0, 0, 0), (1, 1, 1)), raw_to_train={5: 0, 6: 1, 7: 255})
    mapping = {"names": ["x", "y"], "palette": [[0, 0, 0], [9, 9, 9]], "map": {"a": "y", "b": None}}
    assert remap(own, json.dumps(mapping), "m.json").raw_to_train == {5: 1, 6: 255, 7: 255}


def change(**entries: object) -> dict[str, object]:
    return COARSE | {"map": COARSE["map"] | entries}  # type: ignore[operator]


MAP = dict(COARSE["map"])  # type: ignore[call-overload]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"names": ["x"], "map": {}}, "m.json: not a class list"),
        ({"names": ["x"], "palette": [[0, 0, 0]]}, 'm.json: it needs "map"'),
        ({**COARSE, "map": ["road"]}, 'm.json: it needs "map"'),
        (
            {**COARSE, "map": {name: MAP[name] for name in MAP if name not in ("sky", "bus")}},
            "m.json: map lacks 'sky', 'bus'; give a name, or null to ignore it",
        ),
        (change(tram="thing"), "m.json: map has 'tram', but the dataset's are 'road', 'sidewalk'"),
        (change(sky="air"), "m.json: map has 'sky': 'air', which is not one of names"),
        (change(sky=["thing", "air"]), "m.json: map has 'sky': 'air', which is not one of names"),
        (change(sky=[["thing"]]), r"m.json: map has 'sky': \['thing'\], which is not one of names"),
        (change(sky=[]), r"m.json: map has 'sky': \[\]; give distinct names, or null to ignore it"),
        (change(sky=["thing", "thing"]), r"m.json: map has 'sky': .*; give distinct names"),
    ],
)
def test_refuses_a_mapping_before_any_work(tmp_path: Path, content: object, message: str) -> None:
    (tmp_path / "m.json").write_text(json.dumps(content))
    for source in ({"layout": "gta5", "root": str(tmp_path / "nowhere")}, {"images": str(tmp_path / "nowhere")}):
        (tmp_path / "classes.json").write_text(CITYSCAPES_CLASSES.to_json())
        with pytest.raises(DatasetError, match=message):
            prepare(
                **source,  # type: ignore[arg-type]
                classes=str(tmp_path / "classes.json"),
                mapping=str(tmp_path / "m.json"),
                out=str(tmp_path / "out"),
            )


@pytest.mark.parametrize("condition", ["fog", "night", "rain", "snow"])
def test_each_condition_of_acdc_is_read(tmp_path: Path, condition: str) -> None:
    put_image(tmp_path / f"rgb_anon/{condition}/train/G/G_1_rgb_anon.png")
    assert [pair.image_id for pair in LAYOUTS["acdc"].pairs(str(tmp_path))] == [f"{condition}/G/G_1"]


def test_rainy_cityscapes_has_the_splits_of_its_folders(tmp_path: Path) -> None:
    put_image(tmp_path / "leftImg8bit_rain/val/ulm/ulm_1_2_leftImg8bit_rain_alpha_1.png")
    put_image(tmp_path / "gtFine/val/ulm/ulm_1_2_gtFine_labelIds.png")
    (pair,) = LAYOUTS["rainy_cityscapes"].pairs(str(tmp_path))
    assert pair.split == "val"
