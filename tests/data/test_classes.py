"""Class lists from outside: what is wrong is named, with what was likely meant; nothing is coerced."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from udaseg.data.classes import Classes, of_color_labels, require_same_classes
from udaseg.data.strict_json import dump_json, parse_json
from udaseg.data.taxonomies import CARLA_CLASSES, CITYSCAPES_CLASSES, SYNTHIA_16, remap
from udaseg.errors import DatasetError

GOOD = {"names": ["road", "sky"], "palette": [[128, 64, 128], [70, 130, 180]], "raw_to_train": {"7": 0, "23": 1}}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"names": {"road": 0, "sky": 1}}, r'names: .* is not an array of names; write \["road", ...\]'),
        ({"names": "ab"}, 'names: "ab" is not an array'),
        ({"names": ["road", 1]}, "names: 1 is not text"),
        ({"names": ["road", None]}, "names: null is not text"),
        ({"names": ["road", "road"]}, "'road' is there twice"),
        ({"names": ["road", " "]}, "' ' is no name"),
        ({"names": ["road", "\ud800"]}, "is no name; it is empty or not UTF-8"),
        ({"names": []}, "0 names"),
        ({"palette": [[0.5, 0.25, 1], [0, 0, 0]]}, r"palette: \[0.5, 0.25, 1\] .* multiply colours of 0 to 1 by 255"),
        ({"palette": [[1.5, 2, 3], [0, 0, 0]]}, "palette: 1.5 is not a whole number"),
        ({"palette": [["1", 2, 3], [0, 0, 0]]}, 'palette: "1" is not a whole number; without quotes'),
        ({"palette": [[1, 2], [0, 0, 0]]}, "not three numbers"),
        ({"palette": [[1, 2, 256], [0, 0, 0]]}, "not three numbers of 0 to 255"),
        ({"palette": {"road": [1, 2, 3]}}, "palette: .* is not an array of colours"),
        ({"palette": ["red", "blue"]}, 'palette: "red" is not a colour'),
        ({"raw_to_train": {"7": 0.9}}, "raw_to_train 7: 0.9 is not a whole number"),
        ({"raw_to_train": {"7": True}}, "raw_to_train 7: true is not a whole number"),
        ({"raw_to_train": {"7.0": 0}}, 'raw_to_train: "7.0" is not a whole number'),
        ({"raw_to_train": {"07": 0}}, 'raw_to_train: "07" is not a whole number'),
        ({"raw_to_train": {"7": 2}}, r"maps to \[2\], outside 0..1 and 255"),
        ({"raw_to_train": [[7, 0]]}, "raw_to_train: .* is not an object"),
        ({"ignore": True}, "ignore: true is not a whole number"),
        ({"parts": ["gta"]}, "parts: .* is not an object of objects"),
        ({"parts": {"gta": {"names": ["sky", "road"]}}}, "parts: .* is not an object of objects"),
        ({"parts": {"gta": {"raw_to_train": {"7": 2}}}}, r"maps to \[2\], outside 0..1 and 255"),
        ({"parts": {"gta": {}}, "unions": [[0, 1]]}, "part 'gta' has other classes, or pixels of several"),
        ({"ignore_index": 255}, "'ignore_index' is no field of a class list"),
    ],
)
def test_a_class_list_is_not_coerced(change: dict[str, object], reason: str) -> None:
    with pytest.raises(DatasetError, match=f"^c.json: .*{reason}"):
        Classes.from_json(json.dumps(GOOD | change), "c.json")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "an empty file"),
        (b"[]", r"not a class list but \[\]"),
        (b"{", "not JSON: "),
        (b'{"names": ["\xe9"]}', r"not a text file in UTF-8 \(byte 13\)"),
        (b"\xef\xbb\xbf{}", "byte order mark"),
        (json.dumps(GOOD).encode("utf-16"), "byte order mark"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"names": NaN}', "NaN is no number"),
        (b'{"names": 1e999}', "1e999 is no number"),
        (b'{"names": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b'{"names": ["a"], "names": ["b"]}', "'names' is there twice"),
        (b'{"names": ["a"], "palette": [[0, 0, 0]], "raw_to_train": {"7": 0, "7": 255}}', "'7' is there twice"),
    ],
    ids=range(12),
)
def test_json_is_read_strictly(content: bytes, reason: str) -> None:
    with pytest.raises(DatasetError, match=f"^c.json: .*{reason}"):
        Classes.from_json(content, "c.json")
    with pytest.raises(DatasetError, match=f"^m.json: .*{reason}"):
        remap(Classes.from_json(json.dumps(GOOD)), content, "m.json")


def test_what_is_written_is_read_again() -> None:
    classes = Classes.from_json(json.dumps(GOOD))
    assert Classes.from_json(classes.to_json()) == classes and classes.raw_to_train == {7: 0, 23: 1}
    joined = Classes.from_json(json.dumps(GOOD | {"parts": {"a": {"raw_to_train": {"1": 0}}, "b": {}}}))
    assert Classes.from_json(joined.to_json()) == joined and joined.of("a").raw_to_train == {1: 0}
    assert not joined.of("b").raw_to_train and joined.of("c") == joined
    written = dump_json({"miou": float("nan"), "iou": (0.5, float("inf"))})
    assert parse_json(written, "") == {"miou": None, "iou": [0.5, None]}


OTHER = {
    "names": ["road", "tree", "grass", "sky", "wall"],
    "palette": [[0, 0, i] for i in range(5)],
    "map": {"street": "road", "green": ["grass", "tree"], "plant": ["tree", "grass"], "air": ["sky"], "thing": None},
}


def test_a_class_may_become_one_of_several() -> None:
    own = Classes(names=("street", "green", "plant", "air", "thing"), palette=((1, 2, 3),) * 5)
    classes = remap(own, json.dumps(OTHER), "m.json")
    assert classes.unions == ((1, 2),) and classes.names == tuple(OTHER["names"])
    assert classes.lookup(unions=True)[[0, 1, 2, 3, 4, 255]].tolist() == [0, 5, 5, 3, 255, 255]
    assert classes.lookup()[[0, 1, 2, 3, 4, 255]].tolist() == [0, 255, 255, 3, 255, 255], "ignored by all but TADA"
    assert classes.lookup(unions=True)[9] == classes.lookup()[9] == -1
    assert classes.candidates().tolist() == [[0, 1, 1, 0, 0], [0, 0, 0, 0, 1]], "wall is what unknown pixels may be"
    assert Classes.from_json(classes.to_json()) == classes
    with pytest.raises(DatasetError, match=r"m\.json: the dataset's classes have unions already"):
        remap(classes, json.dumps(OTHER), "m.json")


def test_labels_of_every_class_leave_nothing_to_unknown_pixels() -> None:
    classes = Classes.from_json(json.dumps(GOOD))
    assert classes.candidates().tolist() == [[0, 0]] and "unions" not in classes.to_json()
    assert Classes(names=("a", "b"), palette=((0, 0, 0),) * 2).candidates().tolist() == [[0, 0]]
    some = Classes.from_json(json.dumps(GOOD | {"raw_to_train": {"7": 0, "23": 255}}))
    assert some.candidates().tolist() == [[0, 1]] and some.candidates().dtype == np.uint8


@pytest.mark.parametrize(
    ("unions", "reason"),
    [
        ([[0]], r"union \(0,\) is not of two or more of 0\.\.1"),
        ([[0, 0]], r"union \(0, 0\) is not of two"),
        ([[0, 2]], r"union \(0, 2\) is not of two"),
        ([0, 1], r"unions: \[0, 1\] is not an array of arrays"),
        ([[0, "1"]], 'unions: "1" is not a whole number'),
        ([[0, 1]] * 253, "2 names and 253 unions; 254 ids are possible"),
    ],
)
def test_unions_that_cannot_be_are_refused(unions: object, reason: str) -> None:
    with pytest.raises(DatasetError, match=f"^c.json: .*{reason}"):
        Classes.from_json(json.dumps(GOOD | {"unions": unions}), "c.json")


def test_the_mapping_to_synthia_s_16_classes() -> None:
    file = Path(__file__).parents[2] / "examples/synthia_16.json"
    classes = remap(CITYSCAPES_CLASSES, file.read_text(), str(file))
    assert classes.names == SYNTHIA_16 and len(SYNTHIA_16) == 16
    for raw, train in CITYSCAPES_CLASSES.raw_to_train.items():
        name = None if train == 255 else CITYSCAPES_CLASSES.names[train]
        assert classes.raw_to_train[raw] == (SYNTHIA_16.index(name) if name in SYNTHIA_16 else 255)
        if name in SYNTHIA_16:
            assert classes.palette[SYNTHIA_16.index(name)] == CITYSCAPES_CLASSES.palette[train]


def test_carla_s_tags_of_both_numberings() -> None:
    names = CITYSCAPES_CLASSES.names
    new = of_color_labels(CARLA_CLASSES, "red")
    assert new.ids_in_red and not new.color_to_train and new.names == names
    assert [new.lookup()[tag] for tag in (0, 1, 7, 11, 12, 13, 14, 19, 20, 24, 29, 30)] == [
        255, 0, 6, 10, 11, 12, 13, 18, 255, 0, 255, -1
    ]  # fmt: skip
    file = Path(__file__).parents[2] / "examples/carla_before_0_9_14.json"
    old = Classes.from_json(file.read_text(), str(file))
    assert old.ids_in_red and (old.names, old.palette) == (names, CITYSCAPES_CLASSES.palette)
    shown = {tag: names[train] for tag, train in old.raw_to_train.items() if train != 255}
    assert shown == {
        1: "building", 2: "fence", 4: "person", 5: "pole", 6: "road", 7: "road", 8: "sidewalk", 9: "vegetation",
        10: "car", 11: "wall", 12: "traffic sign", 13: "sky", 18: "traffic light", 22: "terrain",
    }  # fmt: skip
    assert set(old.raw_to_train) == {*range(23), 255}


@pytest.mark.parametrize(
    ("changed", "reason"),
    [
        ({"ids_in_red": 1}, "ids_in_red: 1 is neither true nor false"),
        ({"ids_in_red": True, "color_to_train": {"1,2,3": 0}}, "ids_in_red beside color_to_train"),
    ],
)
def test_ids_in_red_that_cannot_be_are_refused(changed: dict[str, object], reason: str) -> None:
    with pytest.raises(DatasetError, match=f"^c.json: .*{reason}"):
        Classes.from_json(json.dumps(GOOD | changed), "c.json")


def test_255_is_ignored_where_nothing_else_is_said_of_it() -> None:
    classes = Classes(names=("a", "b"), palette=((0, 0, 0), (1, 1, 1)), raw_to_train={7: 0, 26: 1})
    assert classes.lookup()[[7, 26, 255, 0]].tolist() == [0, 1, 255, -1]
    assert replace(classes, raw_to_train={7: 0, 255: 1}).lookup()[255] == 1


def test_the_same_names_in_another_order_are_other_classes() -> None:
    turned = replace(CITYSCAPES_CLASSES, names=CITYSCAPES_CLASSES.names[::-1])
    require_same_classes(CITYSCAPES_CLASSES, replace(CITYSCAPES_CLASSES, raw_to_train={}), "other", of="the dataset")
    with pytest.raises(DatasetError, match="in the same order"):
        require_same_classes(CITYSCAPES_CLASSES, turned, "other", of="the dataset")
