"""How the field's datasets lie on disk, as the official downloads unpack.

A new dataset is one function and one entry of `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

from udaseg.data import aerial_layouts as aerial
from udaseg.data import coco, mapillary
from udaseg.data import street_layouts as street
from udaseg.data import voc_layouts as voc
from udaseg.data.classes import Classes
from udaseg.data.folders import Pair
from udaseg.data.long_taxonomies import ADE20K_CLASSES, COCO_STUFF_CLASSES
from udaseg.data.split_trees import by_kind, by_split
from udaseg.data.taxonomies import (
    CAMVID_CLASSES,
    CARLA_CLASSES,
    CITYSCAPES_CLASSES,
    GTA5_CLASSES,
    IDD_CLASSES,
    SYNTHIA_CLASSES,
    TRAIN_ID_CLASSES,
    URBANSYN_CLASSES,
    VOC_CLASSES,
)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a dataset lies on disk."""

    pairs: Callable[[str], Iterator[Pair]]
    """Root folder -> its pairs. Raises DatasetError where folders are missing or empty."""
    classes: Classes | None = None
    """None where the user gives them, in ROOT/classes.json or by `--classes`."""
    read_classes: Callable[[str, Classes | None], Classes] | None = None
    """Root folder and the user's classes, where given, or `classes` -> those that a file of the root names."""
    segments: Callable[[str], coco.Segments] | None = None
    """Root folder -> what is in labels that hold numbers of segments, which must be drawn."""


LAYOUTS: dict[str, Layout] = {
    "folders": Layout(pairs=by_split),
    "cityscapes": Layout(pairs=street.cityscapes, classes=CITYSCAPES_CLASSES),
    "gta5": Layout(pairs=street.gta5, classes=GTA5_CLASSES),
    "synthia": Layout(pairs=street.synthia, classes=SYNTHIA_CLASSES),
    "acdc": Layout(pairs=street.acdc, classes=CITYSCAPES_CLASSES),
    "dark_zurich": Layout(pairs=street.dark_zurich, classes=CITYSCAPES_CLASSES),
    "bdd100k": Layout(pairs=street.bdd100k, classes=TRAIN_ID_CLASSES),
    "cross_city": Layout(pairs=street.cross_city, classes=CITYSCAPES_CLASSES),
    "idd": Layout(pairs=street.idd, classes=IDD_CLASSES, read_classes=street.idd_classes),
    "camvid": Layout(pairs=street.camvid, classes=CAMVID_CLASSES),
    "mapillary": Layout(pairs=mapillary.pairs, read_classes=mapillary.classes),
    "synscapes": Layout(pairs=street.synscapes, classes=CITYSCAPES_CLASSES),
    "foggy_cityscapes": Layout(pairs=street.foggy_cityscapes, classes=CITYSCAPES_CLASSES),
    "rainy_cityscapes": Layout(pairs=street.rainy_cityscapes, classes=CITYSCAPES_CLASSES),
    "nightcity": Layout(pairs=street.nightcity, classes=CITYSCAPES_CLASSES),
    "nightcity_fine": Layout(pairs=street.nightcity_fine, classes=TRAIN_ID_CLASSES),
    "urbansyn": Layout(pairs=street.urbansyn, classes=URBANSYN_CLASSES),
    "muses": Layout(pairs=street.muses, classes=TRAIN_ID_CLASSES),
    "nighttime_driving": Layout(pairs=street.nighttime_driving, classes=TRAIN_ID_CLASSES),
    "railsem19": Layout(pairs=street.railsem19, read_classes=street.railsem19_classes),
    "carla": Layout(pairs=by_split, classes=CARLA_CLASSES),  # it has no layout of its own
    "loveda": Layout(pairs=aerial.loveda, classes=aerial.LOVEDA_CLASSES),
    "loveda_rural": Layout(pairs=partial(aerial.loveda, domains=["Rural"]), classes=aerial.LOVEDA_CLASSES),
    "loveda_urban": Layout(pairs=partial(aerial.loveda, domains=["Urban"]), classes=aerial.LOVEDA_CLASSES),
    "potsdam": Layout(pairs=aerial.potsdam, classes=aerial.ISPRS_CLASSES, read_classes=aerial.isprs_classes),
    "potsdam_irrg": Layout(
        pairs=partial(aerial.potsdam, images="3_Ortho_IRRG"),
        classes=aerial.ISPRS_CLASSES,
        read_classes=aerial.isprs_classes,
    ),
    "vaihingen": Layout(pairs=aerial.vaihingen, classes=aerial.ISPRS_CLASSES, read_classes=aerial.isprs_classes),
    "coco_panoptic": Layout(
        pairs=coco.panoptic_pairs, read_classes=coco.panoptic_classes, segments=coco.panoptic_segments
    ),
    "coco_stuff": Layout(pairs=coco.stuff_pairs, read_classes=coco.stuff_classes),
    "coco_stuff164k": Layout(pairs=coco.stuff_164k_pairs, classes=COCO_STUFF_CLASSES),
    "ade20k": Layout(pairs=partial(by_kind, images="images", labels="annotations"), classes=ADE20K_CLASSES),
    "voc": Layout(pairs=voc.voc, classes=VOC_CLASSES),
    "cvat": Layout(pairs=voc.cvat, read_classes=voc.cvat_classes),
}
