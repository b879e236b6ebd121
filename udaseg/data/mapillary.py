"""How Mapillary Vistas lies on disk, and its classes, as the download names them."""

from __future__ import annotations

from collections.abc import Iterator

from udaseg.data.classes import MAX_CLASSES_BYTES, Classes
from udaseg.data.folders import Pair, files, folders, has_folder, match
from udaseg.data.storage import exists, join, read_bytes
from udaseg.data.strict_json import parse_json
from udaseg.errors import DatasetError

_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
_CONFIGS = {"v2.0/labels": "config_v2.0.json", "v1.2/labels": "config_v1.2.json", "labels": "config.json"}
"""Where the labels of a version lie, below a split -> what names their classes."""


def pairs(root: str) -> Iterator[Pair]:
    """training/images/*.jpg, training/v2.0/labels/*.png; in version 1.2 of the download training/labels/*.png.

    Likewise validation, which is val, and testing, test, which has no labels. (The README of the download.)
    """
    found = [folder for folder in folders(root) if folder in _SPLITS]
    if not found:
        raise DatasetError(f"{root}: no folder training, validation or testing in this folder")
    version = _version(root)
    for folder in found:
        place = None if version is None or folder == "testing" else join(root, folder, version)
        labels = files(place, [".png"]) if place is not None and has_folder(place) else []
        yield from match(files(join(root, folder, "images"), [".jpg"]), labels, _SPLITS[folder])


def _version(root: str) -> str | None:
    """The newest labels that all labelled splits have, as ids differ between versions; None where nothing is labelled.

    Raises DatasetError where no version is that of all.
    """
    of = {split: [v for v in _CONFIGS if has_folder(join(root, split, v))] for split in _SPLITS}
    of = {split: versions for split, versions in of.items() if versions and split != "testing"}
    common = [v for v in _CONFIGS if all(v in versions for versions in of.values())]
    if not common:
        places = " and ".join(f"{split}/{versions[0]}" for split, versions in of.items())
        raise DatasetError(f"{root}: {places} are of two versions, whose ids differ; unpack one version of both")
    return common[0] if of else None


def classes(root: str, given: Classes | None) -> Classes:
    """The "labels" of config_v2.0.json, config_v1.2.json or config.json, in their order, which is that of the ids.

    It is the file of the labels' version. Labels that are not to be evaluated are ignored. A class list that is given
    is of these ids.
    """
    if given is not None:
        return given
    version = _version(root)
    names = list(_CONFIGS.values()) if version is None else [_CONFIGS[version]]
    there = [name for name in names if exists(join(root, name))]
    if not there and version is not None:
        raise DatasetError(f"{root}: no {names[0]}, which names the classes of {version}")
    if not there:
        raise DatasetError(f"{root}: no config_v2.0.json, config_v1.2.json or config.json, which name the classes")
    uri = join(root, there[0])
    value = parse_json(read_bytes(uri, limit=MAX_CLASSES_BYTES), uri)
    try:
        raw = [(label["readable"], tuple(label["color"]), bool(label["evaluate"])) for label in value["labels"]]
        kept = [k for k, (_, _, evaluate) in enumerate(raw) if evaluate]
        return Classes(
            names=tuple(raw[k][0] for k in kept),
            palette=tuple(raw[k][1] for k in kept),
            raw_to_train={k: kept.index(k) if k in kept else 255 for k in (*range(len(raw)), 255)},
        )
    except (KeyError, TypeError, DatasetError) as error:
        raise DatasetError(f"{uri}: its labels are not those of Mapillary Vistas: {error}") from None
