"""The classes of a dataset, as `classes.json` names them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

import numpy as np

from udaseg.data.storage import exists, join, read_bytes, require_directory, utf8
from udaseg.data.strict_json import parse_json
from udaseg.errors import DatasetError

MAX_CLASSES_BYTES = 1 << 24
"""Larger class lists are not read."""


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a dataset, in the order of their train ids."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    raw_to_train: Mapping[int, int] = field(default_factory=dict)
    """Raw label id -> train id; empty where labels hold train ids already."""
    color_to_train: Mapping[str, int] = field(default_factory=dict)
    """Colour in a label, "r,g,b" -> train id; empty where labels hold ids."""
    ids_in_red: bool = False
    """Labels are colours whose red is the id, whatever green and blue are: CARLA's tags, beside which an instance may
    lie."""
    unions: tuple[tuple[int, ...], ...] = ()
    """Of K classes the train ids K, K + 1, ... are those of pixels that may be of any of these, two or more each: what
    a mapping gives several names."""
    parts: Mapping[str, Classes] = field(default_factory=dict)
    """Of joined datasets: the same classes as the labels of each dataset show them, by its name in the manifest."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 254:
            raise DatasetError(f"classes: {len(self.names)} names; an 8-bit label map holds 1 to 254 classes")
        if twice := [name for name in self.names if self.names.count(name) > 1]:
            raise DatasetError(f"classes: {twice[0]!r} is there twice; names must be distinct")
        if len(self.palette) != len(self.names):
            raise DatasetError(f"classes: {len(self.palette)} palette colours for {len(self.names)} names")
        if bad := [c for c in self.palette if len(c) != 3 or not all(0 <= v <= 255 for v in c)]:
            raise DatasetError(f"classes: palette colour {bad[0]} is not three numbers of 0 to 255")
        if self.ignore != 255:
            raise DatasetError(
                f"classes: ignore is {self.ignore}; train ids ignore with 255: map other ids to it by raw_to_train"
            )
        for union in self.unions:
            if len(set(union)) < 2 or len(set(union)) < len(union) or not set(union) <= {*range(len(self.names))}:
                raise DatasetError(f"classes: union {union} is not of two or more of 0..{len(self.names) - 1}")
        for name, part in self.parts.items():
            if part.names != self.names or part.unions or part.parts or self.unions:
                raise DatasetError(f"classes: part {name!r} has other classes, or pixels of several")
        if len(self.names) + len(self.unions) > 254:
            raise DatasetError(f"classes: {len(self.names)} names and {len(self.unions)} unions; 254 ids are possible")
        allowed = {*range(len(self.names) + len(self.unions)), 255}
        if bad_ids := sorted(set(self.raw_to_train.values()) - allowed):
            raise DatasetError(f"classes: raw_to_train maps to {bad_ids}, outside 0..{len(allowed) - 2} and 255")
        if bad_ids := sorted(raw for raw in self.raw_to_train if not 0 <= raw <= 65535):
            raise DatasetError(f"classes: raw_to_train maps {bad_ids}; a 16-bit label map holds ids of 0 to 65535")
        if bad_ids := sorted(set(self.color_to_train.values()) - allowed):
            raise DatasetError(f"classes: color_to_train maps to {bad_ids}, outside 0..{len(self.names) - 1} and 255")
        if self.ids_in_red and self.color_to_train:
            raise DatasetError("classes: ids_in_red beside color_to_train; labels hold ids or colours of classes")
        if bad_colors := [color for color in self.color_to_train if not _COLOR.fullmatch(color)]:
            raise DatasetError(f'classes: color_to_train maps {bad_colors[0]!r}; a colour is written as "128,64,0"')

    def __len__(self) -> int:
        return len(self.names)

    def of(self, dataset: str) -> Classes:
        """The classes as the labels of a dataset show them: of one that was joined its own, of any other these."""
        return self.parts.get(dataset, self)

    def of_train_ids(self) -> Classes:
        """The same classes, for labels that hold train ids."""
        return Classes(names=self.names, palette=self.palette)

    def lookup(self, *, unions: bool = False) -> np.ndarray:
        """(65536,) int16: raw id -> train id, -1 where a raw id is not known.

        Where labels hold colours (2^24,): red << 16 | green << 8 | blue -> train id.

        Args:
            unions: keep the ids of pixels of several classes, which are ignored otherwise.
        """
        if self.color_to_train:
            table = np.full(1 << 24, -1, np.int16)
            for color, train in self.color_to_train.items():
                table[color_code(color)] = train
            return table if unions else np.where(table >= len(self.names), np.int16(self.ignore), table)
        table = np.full(65536, -1, np.int16)
        table[self.ignore] = self.ignore
        if self.raw_to_train:
            for raw, train in self.raw_to_train.items():
                table[raw] = train
        else:
            table[: len(self.names)] = np.arange(len(self.names))
        return table if unions else np.where(table >= len(self.names), np.int16(self.ignore), table)

    def candidates(self) -> np.ndarray:
        """(U + 1, K) uint8, 1 where a pixel may be of a class: row i for the id K + i, the last for unknown pixels.

        Unknown pixels may be of the classes that labels never show, neither alone nor among several.
        """
        table = np.zeros((len(self.unions) + 1, len(self)), np.uint8)
        for row, union in zip(table, self.unions, strict=False):
            row[list(union)] = 1
        mapping = self.color_to_train or self.raw_to_train
        shown = [t for t in mapping.values() if t < len(self)] if mapping else [*range(len(self))]
        table[-1] = 1 - table[:-1].max(0, initial=0)
        table[-1, shown] = 0
        return table

    def to_json(self) -> str:
        fields = asdict(self) | _shown_as(self)
        fields["parts"] = {name: _shown_as(part) for name, part in self.parts.items()}
        for optional in ("color_to_train", "ids_in_red", "unions", "parts"):
            if not fields[optional]:
                del fields[optional]
        return json.dumps(fields, indent=1)

    @classmethod
    def from_json(cls, text: str | bytes, origin: str = "classes.json") -> Classes:
        """Parse `to_json`'s text. Raises DatasetError, naming `origin` and the field, where one is missing or wrong."""
        return cls.from_value(parse_json(text, origin), origin)

    @classmethod
    def from_value(cls, value: Any, origin: str) -> Classes:
        """As `from_json`, of JSON that is parsed."""
        try:
            return cls(**_fields(value))
        except DatasetError as error:
            raise DatasetError(f"{origin}: {error}") from None


_BYTE = "(?:25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])"
_COLOR = re.compile(f"{_BYTE},{_BYTE},{_BYTE}")


def color_code(color: str) -> int:
    """The place of a colour "r,g,b" in `Classes.lookup()`."""
    red, green, blue = map(int, color.split(","))
    return red << 16 | green << 8 | blue


_FORM = (
    '; a class list is {"names": [...], "palette": [[r, g, b], ...]}, '
    'and may have "raw_to_train": {"raw id": train id}, "color_to_train": {"r,g,b": train id} and "ids_in_red": true'
)
_SHOWN_AS = ("raw_to_train", "color_to_train", "ids_in_red")
"""The fields that say what labels hold."""
_FIELDS = ("names", "palette", "ignore", *_SHOWN_AS, "unions", "parts")


def _shown_as(classes: Classes) -> dict[str, Any]:
    return {
        "raw_to_train": {str(raw): train for raw, train in classes.raw_to_train.items()},
        "color_to_train": dict(classes.color_to_train),
        "ids_in_red": classes.ids_in_red,
    }


def _fields(value: Any) -> dict[str, Any]:
    """The fields of `Classes` in parsed JSON. Raises DatasetError, naming the field, for another type."""
    if not isinstance(value, dict):
        raise DatasetError(f"not a class list but {_shown(value)}{_FORM}")
    if missing := [name for name in ("names", "palette") if name not in value]:
        raise DatasetError(f"not a class list: {missing[0]!r} is missing{_FORM}")
    if unknown := [name for name in value if name not in _FIELDS]:
        raise DatasetError(f"{unknown[0]!r} is no field of a class list{_FORM}")
    names, palette, mapping = value["names"], value["palette"], value.get("raw_to_train", {})
    unions = value.get("unions", [])
    if not isinstance(unions, list) or not all(isinstance(union, list) for union in unions):
        raise DatasetError(f"unions: {_shown(unions)} is not an array of arrays of train ids")
    if not isinstance(names, list):
        hint = f"; write [{_shown(next(iter(names)))}, ...]" if names and isinstance(names, dict | str) else ""
        raise DatasetError(f"names: {_shown(names)} is not an array of names{hint}")
    if wrong := [name for name in names if not isinstance(name, str)]:
        raise DatasetError(f"names: {_shown(wrong[0])} is not text; write it in quotes")
    if wrong := [name for name in names if not name.strip() or name != utf8(name)]:
        raise DatasetError(f"names: {wrong[0]!r} is no name; it is empty or not UTF-8")
    if not isinstance(palette, list):
        raise DatasetError(f"palette: {_shown(palette)} is not an array of colours; write [[r, g, b], ...]")
    for colour in palette:
        if not isinstance(colour, list):
            raise DatasetError(f"palette: {_shown(colour)} is not a colour; write [r, g, b]")
        if any(isinstance(v, float) for v in colour) and all(_is_number(v) and 0 <= v <= 1 for v in colour):
            raise DatasetError(
                f"palette: {_shown(colour)} is not of whole numbers of 0 to 255; multiply colours of 0 to 1 by 255"
            )
        for v in colour:
            _whole(v, "palette")
    if not isinstance(mapping, dict):
        raise DatasetError(f'raw_to_train: {_shown(mapping)} is not an object; write {{"raw id": train id, ...}}')
    colors = value.get("color_to_train", {})
    if not isinstance(colors, dict):
        raise DatasetError(f'color_to_train: {_shown(colors)} is not an object; write {{"r,g,b": train id, ...}}')
    if not isinstance(in_red := value.get("ids_in_red", False), bool):
        raise DatasetError(f"ids_in_red: {_shown(in_red)} is neither true nor false")
    if wrong := [raw for raw in mapping if not re.fullmatch(r"0|-?[1-9][0-9]{0,8}", raw)]:
        raise DatasetError(f'raw_to_train: {_shown(wrong[0])} is not a whole number; ids are written as "7"')
    parts = value.get("parts", {})
    if not isinstance(parts, dict) or not all(isinstance(p, dict) and set(p) <= {*_SHOWN_AS} for p in parts.values()):
        raise DatasetError(f"parts: {_shown(parts)} is not an object of objects with {', '.join(_SHOWN_AS)}")
    return {
        "names": tuple(names),
        "palette": tuple(map(tuple, palette)),
        "ignore": _whole(value.get("ignore", 255), "ignore"),
        "raw_to_train": {int(raw): _whole(train, f"raw_to_train {raw}") for raw, train in mapping.items()},
        "color_to_train": {color: _whole(train, f"color_to_train {color}") for color, train in colors.items()},
        "ids_in_red": in_red,
        "unions": tuple(tuple(_whole(v, "unions") for v in union) for union in unions),
        "parts": {
            name: Classes(**_fields({"names": names, "palette": palette, **part})) for name, part in parts.items()
        },
    }


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _whole(value: Any, name: str) -> int:
    if not _is_number(value) or isinstance(value, float):
        hint = "; without quotes" if isinstance(value, str) and value.isdecimal() else ""
        raise DatasetError(f"{name}: {_shown(value)} is not a whole number{hint}")
    return int(value)


def _shown(value: Any) -> str:
    """JSON of a value, cut short."""
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= 60 else f"{text[:57]}..."


ColorLabels = Literal["palette", "grey", "red"]


def of_color_labels(classes: Classes, form: ColorLabels) -> Classes:
    """The classes of labels that are colours.

    Args:
        classes: of the palette, or the ids.
        form: "palette": labels have the palette's colours, beside those that `color_to_train` has; "grey": all three
            channels hold the id; "red": the first one does, whatever the others hold.

    Raises DatasetError where two classes would have one colour.
    """
    if form == "red":
        return replace(classes, color_to_train={}, ids_in_red=True)
    if form == "grey":
        train = replace(classes, color_to_train={}).lookup(unions=True)[:256].tolist()
        greys = {f"{i},{i},{i}": k for i, k in enumerate(train) if k >= 0}
        return replace(classes, color_to_train=greys, ids_in_red=False)
    colors = [",".join(map(str, color)) for color in classes.palette]
    if twice := [k for k, color in enumerate(colors) if color in colors[:k]]:
        names = classes.names[colors.index(colors[twice[0]])], classes.names[twice[0]]
        raise DatasetError(f"palette: {names[0]!r} and {names[1]!r} have one colour, {colors[twice[0]]}")
    of_color = {color: k for k, color in enumerate(colors)} | dict(classes.color_to_train)
    return replace(classes, color_to_train=of_color, ids_in_red=False)


def of_reduced_labels(classes: Classes) -> Classes:
    """The classes of labels whose 0 is ignored, and whose 1 is the first class. DatasetError where they map ids."""
    if classes.raw_to_train or classes.color_to_train:
        raise DatasetError("--reduce-zero-label: the class list says itself which ids or colours are which class")
    return replace(classes, raw_to_train={0: 255, 255: 255} | {k + 1: k for k in range(len(classes))})


def require_same_classes(wanted: Classes, found: Classes, uri: str, *, of: str) -> None:
    """Raise DatasetError, naming `uri`, where its classes are not those that are wanted, in number, name and order.

    Args:
        wanted: what they should be.
        found: those of `uri`.
        uri: a dataset or model directory.
        of: whose `wanted` is, for the message.
    """
    if found.names != wanted.names:
        raise DatasetError(
            f"{uri}: its classes are {_listed(found)}; {of} has {_listed(wanted)}. Both need the same, "
            "in the same order: prepare datasets with the same names, and map raw ids with raw_to_train"
        )


def require_first_classes(wanted: Classes, found: Classes, count: int, uri: str) -> None:
    """Raise DatasetError, naming `uri`, a model directory, where its classes are not the first `count` of a dataset."""
    if found.names != wanted.names[:count]:
        raise DatasetError(
            f"{uri}: its classes are {_listed(found)}; the dataset's first {count} (method.old_classes) are "
            f"{', '.join(map(repr, wanted.names[:count]))}. A dataset of new classes has the old ones first, in the "
            "same order: prepare it with a --mapping to such names"
        )


def _listed(classes: Classes) -> str:
    return ", ".join(map(repr, classes.names))


def read_classes(directory: str) -> Classes:
    """The classes of a dataset directory. Raises DatasetError where it has none."""
    uri = join(directory, "classes.json")
    if not exists(uri):
        require_directory(directory)
        raise DatasetError(f"{directory}: no classes.json, so not a dataset; make one with `udaseg prepare`")
    return Classes.from_json(read_bytes(uri, limit=MAX_CLASSES_BYTES), uri)
