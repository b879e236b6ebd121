"""How datasets taken from above lie on disk: LoveDA, and ISPRS's Potsdam and Vaihingen.

Sources of names, ids and colours: github.com/Junjue-Wang/LoveDA; isprs.org/education/benchmarks/UrbanSemLab.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from udaseg.data.classes import Classes, of_color_labels
from udaseg.data.folders import Pair, files, has_folder, match
from udaseg.data.storage import join
from udaseg.errors import DatasetError

LOVEDA_CLASSES = Classes(
    names=("background", "building", "road", "water", "barren", "forest", "agriculture"),
    palette=((255, 255, 255), (255, 0, 0), (255, 255, 0), (0, 0, 255), (159, 129, 183), (0, 255, 0), (255, 195, 128)),
    raw_to_train={0: 255, 255: 255} | {k + 1: k for k in range(7)},
)


_ISPRS = Classes(
    names=("impervious surface", "building", "low vegetation", "tree", "car", "clutter"),
    palette=((255, 255, 255), (0, 0, 255), (0, 255, 255), (0, 255, 0), (255, 255, 0), (255, 0, 0)),
    color_to_train={"0,0,0": 255},  # the eroded borders of the files called noBoundary
)


ISPRS_CLASSES = of_color_labels(_ISPRS, "palette")


_POTSDAM_TRAIN = (
    "2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12",
    "6_7", "6_8", "6_9", "6_10", "6_11", "6_12", "7_7", "7_8", "7_9", "7_10", "7_11", "7_12",
)  # fmt: skip


_VAIHINGEN_TRAIN = tuple(map(str, (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)))


def loveda(root: str, domains: Sequence[str] = ("Rural", "Urban")) -> Iterator[Pair]:
    """Train/<domain>/images_png/*.png, Train/<domain>/masks_png/*.png, and so on in Val and Test, which has no masks.

    An id begins with its domain, rural or urban.
    """
    found = [folder for folder in ("Train", "Val", "Test") if has_folder(join(root, folder))]
    if not found:
        raise DatasetError(f"{root}: no folder Train, Val or Test in this folder")
    for folder in found:
        for domain in domains:
            masks = join(root, folder, domain, "masks_png")
            labels = files(masks, [".png"]) if has_folder(masks) else []
            for pair in match(files(join(root, folder, domain, "images_png"), [".png"]), labels, folder.lower()):
                yield pair._replace(image_id=f"{domain.lower()}/{pair.image_id}")


def potsdam(root: str, images: str = "2_Ortho_RGB") -> Iterator[Pair]:
    """2_Ortho_RGB/top_potsdam_<tile>_RGB.tif, 5_Labels_all/top_potsdam_<tile>_label.tif in colours.

    `images` may be 3_Ortho_IRRG too, whose bands are Vaihingen's: infrared, red and green.
    The 24 tiles that participants were given are train, the 14 that judged them val; without 5_Labels_all the latter
    have no labels, and the former those of 5_Labels_for_participants.
    """
    folder = _first(root, ("5_Labels_all", "5_Labels_for_participants"))
    found = files(join(root, images), [f"_{images.rpartition('_')[2]}.tif"]), files(folder, ["_label.tif"])
    yield from _of_tiles(*found, "top_potsdam_", _POTSDAM_TRAIN)


def vaihingen(root: str) -> Iterator[Pair]:
    """top/top_mosaic_09cm_area<tile>.tif, and labels of the same names in colours.

    They lie in ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE or in gts_for_participants. The 16 tiles that
    participants were given are train, the 17 that judged them val.
    """
    names = "ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE", "gts_for_participants"
    found = files(join(root, "top"), [".tif"]), files(_first(root, names), [".tif"])
    yield from _of_tiles(*found, "top_mosaic_09cm_area", _VAIHINGEN_TRAIN)


def _first(root: str, names: Sequence[str]) -> str:
    """The first of these folders that is there."""
    there = [join(root, name) for name in names if has_folder(join(root, name))]
    if not there:
        raise DatasetError(f"{root}: no folder {' or '.join(names)} in this folder")
    return there[0]


def _of_tiles(
    images: Sequence[tuple[str, str]], labels: Sequence[tuple[str, str]], prefix: str, train: Sequence[str]
) -> Iterator[Pair]:
    """Pairs whose ids are the tiles' numbers."""
    for pair in match(images, labels, "train"):
        tile = pair.image_id.rpartition("/")[2].removeprefix(prefix)
        yield pair._replace(image_id=tile, split="train" if tile in train else "val")
