"""Labels that are colours: of the palette, of three equal channels, of an indexed file; and ids that begin at 1."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from udaseg.data.classes import Classes, ColorLabels, of_color_labels, of_reduced_labels
from udaseg.data.images import inspect
from udaseg.data.index import open_index
from udaseg.data.layouts import LAYOUTS
from udaseg.data.manifest import MANIFEST, write_dataset
from udaseg.data.taxonomies import CITYSCAPES_CLASSES, VOC_CLASSES, remap, voc_palette
from udaseg.errors import DatasetError
from udaseg.jobs.pseudo_label.tasks import read_truth

CLASSES = Classes(names=("road", "sky", "car"), palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)))
IDS = np.random.default_rng(0).integers(0, 3, (5, 7)).astype(np.uint8)


def coloured(ids: np.ndarray, classes: Classes = CLASSES) -> np.ndarray:
    return np.array(classes.palette, np.uint8)[ids]


def put(folder: Path, pixels: np.ndarray | Image.Image) -> tuple[str, str]:
    """An image and its label."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    Image.new("RGB", image.size).save(folder / "image.png")
    image.save(folder / "label.png")
    return str(folder / "image.png"), str(folder / "label.png")


def counts(folder: Path, pixels: np.ndarray | Image.Image, classes: Classes) -> list[int]:
    facts = inspect(*put(folder, pixels), classes, classes.lookup())
    assert facts.class_pixels is not None
    found: list[int] = facts.class_pixels.tolist()
    return found


def indexed() -> Image.Image:
    """The colours as a palette in another order."""
    image = Image.fromarray(2 - IDS)
    image.putpalette(np.array(CLASSES.palette[::-1], np.uint8).tobytes())
    return image


def mapped(name_of: dict[str, object]) -> Classes:
    """The classes, and what each of the labels' is to them."""
    value = {"names": CLASSES.names, "palette": CLASSES.palette, "map": name_of}
    return remap(CLASSES, json.dumps(value), "m.json")


def transparent() -> np.ndarray:
    return np.dstack([coloured(IDS), np.where(IDS == 1, 0, 255).astype(np.uint8)])


@pytest.mark.parametrize("label", [coloured(IDS), indexed(), transparent()], ids=["RGB", "indexed", "RGBA"])
def test_labels_in_the_palette_s_colours(tmp_path: Path, label: np.ndarray | Image.Image) -> None:
    assert (
        counts(tmp_path, label, of_color_labels(CLASSES, "palette")) == np.bincount(IDS.ravel(), minlength=3).tolist()
    )


def test_labels_of_three_equal_channels(tmp_path: Path) -> None:
    raw = np.dstack([IDS * 10 + 7] * 3)
    classes = replace(CLASSES, raw_to_train={7: 2, 17: 255, 27: 0})
    found = counts(tmp_path, raw, of_color_labels(classes, "grey"))
    assert found == [int((IDS == 2).sum()), 0, int((IDS == 0).sum())]
    plain = np.dstack([IDS] * 3)
    plain[0, 0] = 255
    kept = np.bincount(plain[..., 0].ravel(), minlength=3)[:3].tolist()
    assert counts(tmp_path, plain, of_color_labels(CLASSES, "grey")) == kept
    several = mapped({"road": ["road", "sky"], "sky": "sky", "car": "car"})
    assert of_color_labels(several, "grey").color_to_train["0,0,0"] == several.raw_to_train[0] == 3


@pytest.mark.parametrize("alpha", [False, True])
def test_ids_in_red_whatever_green_and_blue_hold(tmp_path: Path, alpha: bool) -> None:
    raw = IDS * 10 + 7
    others = [np.arange(35, dtype=np.uint8).reshape(5, 7), raw[::-1], np.full_like(raw, 9)]
    label = np.dstack([raw, *others[: 2 + alpha]])
    classes = of_color_labels(replace(CLASSES, raw_to_train={7: 0, 17: 1, 27: 2}), "red")
    assert counts(tmp_path, label, classes) == np.bincount(IDS.ravel(), minlength=3).tolist()
    again = Classes.from_json(classes.to_json())
    assert again == classes and counts(tmp_path, label, again) == counts(tmp_path, label, classes)
    label[0, 0, 0] = 99
    with pytest.raises(DatasetError, match=r"label\.png: label ids outside the class list: 99 \(1 pixels\)"):
        counts(tmp_path, label, classes)
    value = {"names": ["all"], "palette": [[1, 2, 3]], "map": {"road": "all", "sky": None, "car": "all"}}
    label[0, 0, 0] = 17
    assert counts(tmp_path, label, remap(classes, json.dumps(value), "m.json")) == [int((label[..., 0] != 17).sum())]


@pytest.mark.parametrize("form", ["palette", "red"])
def test_every_reader_maps_colours(tmp_path: Path, form: ColorLabels) -> None:
    classes = of_color_labels(CLASSES, form)
    pixels = coloured(IDS) if form == "palette" else np.dstack([IDS, IDS[::-1], IDS * 0])
    image, label = put(tmp_path, pixels)
    row = {"image_id": "a", "image_uri": image, "label_uri": label, "height": 5, "width": 7, "dataset": "d"}
    row |= {"class_pixels": np.bincount(IDS.ravel(), minlength=3), "split": "train"}
    write_dataset(str(tmp_path), pa.Table.from_pylist([row], schema=MANIFEST), classes)
    index = open_index(str(tmp_path))
    assert index.classes == classes and np.array_equal(index.train_ids(0), IDS)
    assert np.array_equal(read_truth(row, index.classes), IDS)


def test_a_colour_that_no_class_has_is_named_with_the_nearest(tmp_path: Path) -> None:
    label = coloured(IDS)
    label[0, :3], label[1, 0] = (0, 2, 140), (9, 9, 9)
    classes = of_color_labels(replace(CLASSES, color_to_train={"0,0,0": 255}), "palette")
    with pytest.raises(DatasetError) as error:
        counts(tmp_path, label, classes)
    assert str(error.value).endswith(
        "label.png: label colours outside the class list: 0,2,140 (3 pixels; nearest is 0,0,142, 'car'), "
        "9,9,9 (1 pixels; nearest is 0,0,0, ignored)"
    )
    ignored = replace(classes, color_to_train={**classes.color_to_train, "0,2,140": 255, "9,9,9": 255})
    assert sum(counts(tmp_path, label, ignored)) == 35 - 4
    value = {"names": ["x", "y"], "palette": [[0, 0, 0]] * 2, "map": {"road": "x", "sky": "x", "car": ["x", "y"]}}
    with pytest.raises(DatasetError, match="nearest is 0,0,142, 'x' or 'y'"):
        counts(tmp_path, label, remap(classes, json.dumps(value), "m.json"))


@pytest.mark.parametrize(
    ("label", "hint"),
    [
        (coloured(IDS), "give --label-colors palette, if"),
        (np.dstack([IDS] * 3), "give --label-colors grey: all hold"),
        (np.dstack([IDS, IDS * 0, IDS * 0]), "give --label-colors red: the others are 0"),
    ],
)
def test_today_s_refusal_hints_at_the_option(tmp_path: Path, label: np.ndarray, hint: str) -> None:
    with pytest.raises(DatasetError, match=r"label has 3 channels \(mode RGB\), not one channel of ids; " + hint):
        counts(tmp_path, label, CLASSES)


OTHER_IDS = replace(CLASSES, raw_to_train={0: 255, 7: 0, 11: 1, 26: 2, 255: 255})


def with_palette(ids: np.ndarray, colours: Sequence[Sequence[int]]) -> Image.Image:
    image = Image.fromarray(ids.astype(np.uint8))
    image.putpalette(np.array(colours, np.uint8).tobytes())
    return image


def quantized(pixels: np.ndarray) -> Image.Image:
    return Image.fromarray(pixels).quantize()


VOID = np.where(np.arange(35).reshape(5, 7, 1) < 4, 0, coloured(IDS)).astype(np.uint8)


@pytest.mark.parametrize(
    ("label", "classes"),
    [
        (indexed(), CLASSES),
        (quantized(coloured(IDS)), CLASSES),
        (quantized(VOID), CLASSES),  # its black is no class's
        (quantized(coloured(IDS % 2)), OTHER_IDS),
        (quantized(coloured(IDS)), of_reduced_labels(CLASSES)),
        (with_palette(IDS * 0, [CLASSES.palette[1]]), CLASSES),  # all is sky
    ],
    ids=["reversed", "quantized", "void", "ignored", "reduced", "single"],
)
def test_a_palette_with_the_classes_colours_in_another_order(
    tmp_path: Path, label: Image.Image, classes: Classes
) -> None:
    with pytest.raises(DatasetError, match=r"label\.png: .* in another order: index . has the colour of '") as error:
        counts(tmp_path, label, classes)
    assert "; give --label-colors palette, or save the labels without a palette" in str(error.value)
    mended = of_color_labels(replace(classes, color_to_train={"0,0,0": 255}), "palette")
    shown = np.asarray(label.convert("RGB"))
    assert counts(tmp_path, label, mended) == [int((shown == c).all(-1).sum()) for c in CLASSES.palette]


@pytest.mark.parametrize("ids", [[0, 7, 11], [7, 11, 26], [26]])
def test_ids_as_the_greys_of_a_palette(tmp_path: Path, ids: list[int]) -> None:
    raw = np.resize(np.array(ids, np.uint8), (5, 7))
    label = quantized(np.dstack([raw] * 3))
    with pytest.raises(DatasetError, match=r"ids as greys in another order: .*; give --label-colors grey"):
        counts(tmp_path, label, OTHER_IDS)
    expected = [int((raw == i).sum()) for i in (7, 11, 26)]
    assert counts(tmp_path, label, of_color_labels(OTHER_IDS, "grey")) == expected


GREYS = [[i] * 3 for i in range(256)]
CITY = [CITYSCAPES_CLASSES.palette[t] if t < 19 else (0, 0, 0) for t in CITYSCAPES_CLASSES.lookup()[:35]]
CITY[4], CITY[34] = (20, 20, 20), (0, 0, 142)  # static; license plates, which have the colour of cars


@pytest.mark.parametrize(
    ("ids", "palette", "classes"),
    [
        ([0, 1, 2], [[0, 0, 0]] * 256, CLASSES),
        ([1], [[0, 0, 0]] * 3, replace(CLASSES, palette=((9, 9, 9), (8, 8, 8), (0, 0, 0)))),
        ([0, 1, 2], GREYS, CLASSES),
        ([0, 7, 26], GREYS, OTHER_IDS),
        ([0, 1], [[0, 0, 0], [255, 255, 255]], CLASSES),
        ([0, 1, 2], [[0, 0, 0], [127, 127, 127], [255, 255, 255]], CLASSES),
        ([0, 1], [[i * 14] * 3 for i in range(19)], CITYSCAPES_CLASSES),
        ([0, 1, 2], CLASSES.palette, CLASSES),
        ([1, 2], CLASSES.palette, CLASSES),
        ([0, 1, 2], [(0, 0, 0), *CLASSES.palette], of_reduced_labels(CLASSES)),
        ([7, 11], [*[(0, 0, 0)] * 7, CLASSES.palette[1], CLASSES.palette[0]], OTHER_IDS),  # fewer entries than indices
        ([0, 1, 2], [(1, 2, 3), (70, 130, 180), (128, 64, 128)], CLASSES),  # one colour is not the list's
        ([0, 1, 255], [*voc_palette(255), (224, 224, 192)], VOC_CLASSES),
        ([0, 1], voc_palette(256), replace(CLASSES, raw_to_train={0: 255, 1: 255, 8: 0}, palette=voc_palette(3))),
        ([7, 26, 34], CITY, LAYOUTS["gta5"].classes),
        ([34], CITY, LAYOUTS["gta5"].classes),
        ([1, 4], CITY, LAYOUTS["gta5"].classes),
        ([0, 1, 2], CLASSES.palette, mapped({"road": "road", "sky": None, "car": ["road", "sky"]})),
        ([0, 1, 2], CLASSES.palette, mapped({"road": "car", "sky": "sky", "car": "car"})),
    ],
)  # fmt: skip
def test_palettes_that_only_paint_ids(
    tmp_path: Path, ids: list[int], palette: Sequence[Sequence[int]], classes: Classes
) -> None:
    raw = np.resize(np.array(ids, np.uint8), (5, 7))
    image, label = put(tmp_path, with_palette(raw, palette))
    facts = inspect(image, label, classes, classes.lookup())
    assert facts.raw_ids is not None and facts.raw_ids.tolist() == ids


def test_two_classes_of_one_colour_cannot_be_told_apart() -> None:
    with pytest.raises(DatasetError, match="palette: 'road' and 'car' have one colour, 1,2,3"):
        of_color_labels(replace(CLASSES, palette=((1, 2, 3), (0, 0, 0), (1, 2, 3))), "palette")


def test_a_mapping_is_of_colours_too(tmp_path: Path) -> None:
    mapping = {"names": ["x"], "palette": [[1, 1, 1]], "map": {"road": "x", "sky": None, "car": "x"}}
    classes = remap(of_color_labels(CLASSES, "palette"), json.dumps(mapping), "m.json")
    assert counts(tmp_path, coloured(IDS), classes) == [int((IDS != 1).sum())]


def test_what_is_written_of_colours_is_read_again() -> None:
    classes = of_color_labels(replace(CLASSES, color_to_train={"0,0,0": 255}), "palette")
    assert Classes.from_json(classes.to_json()) == classes and len(classes.color_to_train) == 4
    assert "color_to_train" not in CLASSES.to_json()


@pytest.mark.parametrize(
    ("colors", "reason"),
    [
        ([], "color_to_train: .* is not an object"),
        ({"0,0": 0}, "color_to_train maps '0,0'; a colour is written as"),
        ({"0,0,256": 0}, "'0,0,256'; a colour"),
        ({"0, 0, 0": 0}, "'0, 0, 0'; a colour"),
        ({"00,0,0": 0}, "'00,0,0'; a colour"),
        ({"0,0,0": 3}, r"maps to \[3\], outside 0..2 and 255"),
        ({"0,0,0": "1"}, "color_to_train 0,0,0: .* without quotes"),
    ],
)
def test_colours_of_a_class_list_are_not_coerced(colors: object, reason: str) -> None:
    value = json.loads(CLASSES.to_json()) | {"color_to_train": colors}
    with pytest.raises(DatasetError, match=f"^c.json: .*{reason}"):
        Classes.from_json(json.dumps(value), "c.json")


def test_ids_that_begin_at_1(tmp_path: Path) -> None:
    raw = IDS + 1
    raw[0, :2], raw[4, 4] = 0, 255
    kept = [int((raw == k).sum()) for k in (1, 2, 3)]
    assert counts(tmp_path, raw, of_reduced_labels(CLASSES)) == kept
    with pytest.raises(DatasetError, match="outside the class list: 4"):
        counts(tmp_path, np.where(raw == 255, 4, raw).astype(np.uint8), of_reduced_labels(CLASSES))
    with pytest.raises(DatasetError, match="--reduce-zero-label: the class list says itself"):
        of_reduced_labels(replace(CLASSES, raw_to_train={0: 0}))


def test_a_picture_s_worth_of_colours_is_told_in_a_line(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), dtype=np.uint8)
    with pytest.raises(DatasetError) as error:
        counts(tmp_path, noise, of_color_labels(CLASSES, "palette"))
    assert len(str(error.value)) < 900 and " and 8" in str(error.value)
