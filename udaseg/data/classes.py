"""The classes of a dataset, as `classes.json` names them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

import numpy as np

from udaseg.data.storage import exists, join, read_bytes
from udaseg.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Classes:
    """The classes of a dataset, in the order of their train ids."""

    names: tuple[str, ...]
    palette: tuple[tuple[int, int, int], ...]
    ignore: int = 255
    raw_to_train: Mapping[int, int] = field(default_factory=dict)
    """Raw label id -> train id; empty where labels hold train ids already."""

    def __post_init__(self) -> None:
        if not 1 <= len(self.names) <= 254:
            raise DatasetError(f"classes: {len(self.names)} names; an 8-bit label map holds 1 to 254 classes")
        if len(set(self.names)) != len(self.names):
            raise DatasetError("classes: names must be distinct")
        if len(self.palette) != len(self.names):
            raise DatasetError(f"classes: {len(self.palette)} palette colours for {len(self.names)} names")
        if bad := [c for c in self.palette if len(c) != 3 or not all(0 <= v <= 255 for v in c)]:
            raise DatasetError(f"classes: palette colour {bad[0]} is not three numbers of 0 to 255")
        if self.ignore != 255:
            raise DatasetError(
                f"classes: ignore is {self.ignore}; train ids ignore with 255: map other ids to it by raw_to_train"
            )
        allowed = {*range(len(self.names)), 255}
        if bad_ids := sorted(set(self.raw_to_train.values()) - allowed):
            raise DatasetError(f"classes: raw_to_train maps to {bad_ids}, outside 0..{len(self.names) - 1} and 255")
        if bad_ids := sorted(raw for raw in self.raw_to_train if not 0 <= raw <= 65535):
            raise DatasetError(f"classes: raw_to_train maps {bad_ids}; a 16-bit label map holds ids of 0 to 65535")

    def __len__(self) -> int:
        return len(self.names)

    def lookup(self) -> np.ndarray:
        """(65536,) int16: raw id -> train id, -1 where a raw id is not known."""
        table = np.full(65536, -1, np.int16)
        if self.raw_to_train:
            for raw, train in self.raw_to_train.items():
                table[raw] = train
        else:
            table[: len(self.names)] = np.arange(len(self.names))
            table[self.ignore] = self.ignore
        return table

    def to_json(self) -> str:
        return json.dumps(asdict(self) | {"raw_to_train": {str(k): v for k, v in self.raw_to_train.items()}}, indent=1)

    @classmethod
    def from_json(cls, text: str, origin: str = "classes.json") -> Classes:
        """Parse `to_json`'s text. Raises DatasetError, naming `origin`, where a field is missing or wrong."""
        try:
            raw = json.loads(text)
            names = tuple(str(name) for name in raw["names"])
            palette = tuple((int(r), int(g), int(b)) for r, g, b in raw["palette"])
            mapping = {int(k): int(v) for k, v in raw.get("raw_to_train", {}).items()}
            return cls(names=names, palette=palette, ignore=int(raw.get("ignore", 255)), raw_to_train=mapping)
        except DatasetError as error:
            raise DatasetError(f"{origin}: {error}") from None
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise DatasetError(
                f'{origin}: not a class list ({error!r}); it needs {{"names": [...], "palette": [[r, g, b], ...]}}, '
                'and may have "ignore" and "raw_to_train": {"raw id": train id}'
            ) from None


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
            f"{uri}: its classes are {', '.join(found.names)}; {of} has {', '.join(wanted.names)}. Both need the same, "
            "in the same order: prepare datasets with the same names, and map raw ids with raw_to_train"
        )


def read_classes(directory: str) -> Classes:
    """The classes of a dataset directory. Raises DatasetError where it has none."""
    uri = join(directory, "classes.json")
    if not exists(uri):
        raise DatasetError(f"{directory}: no classes.json, so not a dataset; make one with `udaseg prepare`")
    return Classes.from_json(read_bytes(uri).decode(), uri)
