"""The classes of the field's datasets, and mapping those of one to those of another."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from udaseg.data.classes import Classes
from udaseg.data.strict_json import parse_json
from udaseg.errors import DatasetError

# In the order of the train ids: name, colour and the label ids of Cityscapes, SYNTHIA, IDD and CamVid.
# SYNTHIA has no pixel of terrain, truck and train, though ids for them. Ignored: lane marking, road work, parking.
# IDD: what helpers/anue_labels.py of AutoNUE/public-code gives a csTrainId. Terrain is its "non-drivable fallback".
# CamVid: car is every vehicle and traffic sign has the lights too. Ignored: bicyclist, rider and bicycle in one.
_TABLE: tuple[tuple[str, tuple[int, int, int], tuple[int | None, ...]], ...] = (
    ("road", (128, 64, 128), (7, 3, 0, 3)),
    ("sidewalk", (244, 35, 232), (8, 4, 3, 4)),
    ("building", (70, 70, 70), (11, 2, 29, 1)),
    ("wall", (102, 102, 156), (12, 21, 20, None)),
    ("fence", (190, 153, 153), (13, 5, 21, 7)),
    ("pole", (153, 153, 153), (17, 7, 26, 2)),
    ("traffic light", (250, 170, 30), (19, 15, 25, None)),
    ("traffic sign", (220, 220, 0), (20, 9, 24, 6)),
    ("vegetation", (107, 142, 35), (21, 6, 32, 5)),
    ("terrain", (152, 251, 152), (22, 16, 5, None)),
    ("sky", (70, 130, 180), (23, 1, 33, 0)),
    ("person", (220, 20, 60), (24, 10, 6, 9)),
    ("rider", (255, 0, 0), (25, 17, 8, None)),
    ("car", (0, 0, 142), (26, 8, 12, 8)),
    ("truck", (0, 0, 70), (27, 18, 13, None)),
    ("bus", (0, 60, 100), (28, 19, 14, None)),
    ("train", (0, 80, 100), (31, 20, 17, None)),
    ("motorcycle", (0, 0, 230), (32, 12, 9, None)),
    ("bicycle", (119, 11, 32), (33, 11, 10, None)),
)


_CITYSCAPES, _SYNTHIA, _IDD, _CAMVID = range(4)


def _classes(dataset: int, raw_ids: int) -> Classes:
    """Cityscapes' classes for a dataset's label ids, 0 to `raw_ids` - 1; ids without a class, and 255, are ignored."""
    train_ids = {ids[dataset]: train for train, (_, _, ids) in enumerate(_TABLE)}
    return Classes(
        names=tuple(name for name, _, _ in _TABLE),
        palette=tuple(colour for _, colour, _ in _TABLE),
        raw_to_train={raw: train_ids.get(raw, 255) for raw in (*range(raw_ids), 255)},
    )


CITYSCAPES_CLASSES = _classes(_CITYSCAPES, raw_ids=34)
GTA5_CLASSES = _classes(_CITYSCAPES, raw_ids=35)
SYNTHIA_CLASSES = _classes(_SYNTHIA, raw_ids=23)
IDD_CLASSES = _classes(_IDD, raw_ids=40)
CAMVID_CLASSES = _classes(_CAMVID, raw_ids=12)
TRAIN_ID_CLASSES = replace(CITYSCAPES_CLASSES, raw_to_train={})
"""Of labels that hold Cityscapes' train ids."""
URBANSYN_CLASSES = replace(CITYSCAPES_CLASSES, raw_to_train={**{i: i for i in range(len(_TABLE))}, 19: 255, 255: 255})


def voc_palette(colors: int) -> tuple[tuple[int, int, int], ...]:
    """Pascal VOC's colours: each next three bits of an id are the next lower bits of red, green and blue."""
    bits = [[sum((i >> 3 * n + c & 1) << 7 - n for n in range(8)) for c in range(3)] for i in range(colors)]
    return tuple((red, green, blue) for red, green, blue in bits)


_CARLA_ONLY = {
    "0,0,0": None, "110,190,160": None, "170,120,50": None, "55,90,80": None, "250,170,160": None,  # unlabelled, others
    "45,60,150": None, "81,0,81": None, "150,100,100": None, "230,150,140": None,  # water, ground, bridge, rail track
    "180,165,180": None, "180,130,70": None,  # guard rail, rock
    "157,234,50": "road",  # its markings
    "100,40,40": "fence", "145,170,100": "terrain",  # before 0.9.14
}  # fmt: skip
"""Colours of CARLA's CityScapesPalette.h that Cityscapes has not, in all versions since 0.9."""


# From 0.9.14 on, by CARLA's ref_sensors.md: 1 to 19 are Cityscapes' classes in their order, 24 is a road's marking.
_CARLA_TAGS = dict.fromkeys(range(30), 255) | {train + 1: train for train in range(19)} | {24: 0, 255: 255}


CARLA_CLASSES = replace(
    CITYSCAPES_CLASSES,
    raw_to_train=_CARLA_TAGS,
    color_to_train={",".join(map(str, colour)): k for k, colour in enumerate(CITYSCAPES_CLASSES.palette)}
    | {c: 255 if name is None else CITYSCAPES_CLASSES.names.index(name) for c, name in _CARLA_ONLY.items()},
)


_VOC = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip


VOC_CLASSES = Classes(names=_VOC, palette=voc_palette(len(_VOC)))


SYNTHIA_16 = tuple(name for name in CITYSCAPES_CLASSES.names if name not in ("terrain", "truck", "train"))


SYNTHIA_MEANS = {
    "mIoU-16": SYNTHIA_16,
    "mIoU-13": tuple(name for name in SYNTHIA_16 if name not in ("wall", "fence", "pole")),
}
"""The classes that results of training on SYNTHIA are published over, by the name of their mean."""


def remap(classes: Classes, text: str | bytes, origin: str) -> Classes:
    """The classes of a mapping file, read from labels of `classes`.

    The file is JSON: the "names" and "palette" of a class list and "map", which gives each class of the dataset one of
    these names, several, [...], where its pixels may be of any of them, or null to ignore it. Names that none is mapped
    to are classes without a pixel. Raises DatasetError, naming `origin` and the entry, where it does not.
    """
    value = parse_json(text, origin)
    name_of = value.pop("map", None) if isinstance(value, dict) else None
    new = Classes.from_value(value, origin)
    if classes.unions:
        raise DatasetError(f"{origin}: the dataset's classes have unions already; map the classes that it had before")
    if not isinstance(name_of, dict):
        raise DatasetError(
            f'{origin}: it needs "map": {{"class of the dataset": "one of names", several of them or null}}'
        )
    if missing := [name for name in classes.names if name not in name_of]:
        raise DatasetError(f"{origin}: map lacks {_listed(missing)}; give a name, or null to ignore it")
    if unknown := [name for name in name_of if name not in classes.names]:
        raise DatasetError(f"{origin}: map has {_listed(unknown)}, but the dataset's are {_listed(classes.names)}")
    sets = {name: _names(of) for name, of in name_of.items()}
    for name, of in sets.items():
        if wrong := [one for one in of if one not in new.names]:
            raise DatasetError(f"{origin}: map has {name!r}: {wrong[0]!r}, which is not one of names")
        if (name_of[name] is not None and not of) or len(set(of)) < len(of):
            raise DatasetError(
                f"{origin}: map has {name!r}: {name_of[name]!r}; give distinct names, or null to ignore it"
            )
    index: dict[object, int] = {name: i for i, name in enumerate(new.names)}
    ids = {name: tuple(sorted(index[one] for one in of)) for name, of in sets.items()}
    unions = tuple(dict.fromkeys(of for of in ids.values() if len(of) > 1))

    def train_id(of: tuple[int, ...]) -> int:
        return len(new) + unions.index(of) if len(of) > 1 else of[0] if of else 255

    train_ids = {255: 255} | {i: train_id(ids[name]) for i, name in enumerate(classes.names)}
    raw_to_train = classes.raw_to_train or {i: i for i in train_ids}
    color_to_train = {color: train_ids[train] for color, train in classes.color_to_train.items()}
    return replace(
        new,
        raw_to_train={raw: train_ids[train] for raw, train in raw_to_train.items()},
        color_to_train=color_to_train,
        ids_in_red=classes.ids_in_red,
        unions=unions,
    )


def _names(of: object) -> list[object]:
    """The entry of a map as a list."""
    return of if isinstance(of, list) else [] if of is None else [of]


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
