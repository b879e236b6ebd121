"""How datasets taken from above lie on disk: LoveDA, and ISPRS's Potsdam and Vaihingen.

Sources of names, ids and colours: github.com/Junjue-Wang/LoveDA; isprs.org/education/benchmarks/UrbanSemLab. All are
read, too, as the converters loveda.py, potsdam.py and vaihingen.py of open-mmlab/mmsegmentation leave them.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from udaseg.data.classes import Classes, of_color_labels, of_reduced_labels
from udaseg.data.folders import Pair, files, has_folder, match
from udaseg.data.split_trees import converted, is_converted
from udaseg.data.storage import children, join
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


_CONVERTED_ISPRS = of_reduced_labels(replace(_ISPRS, color_to_train={}))


def isprs_classes(root: str, given: Classes | None) -> Classes:
    """ISPRS's own, of colours or, where a converter made ids of them, of ids 1 to 6, 0 being ignored; or those given.

    The layout's classes count as not given.
    """
    own = given is None or given == ISPRS_CLASSES
    return _CONVERTED_ISPRS if own and is_converted(root) else given or ISPRS_CLASSES


_POTSDAM_TRAIN = (
    "2_10", "2_11", "2_12", "3_10", "3_11", "3_12", "4_10", "4_11", "4_12", "5_10", "5_11", "5_12",
    "6_7", "6_8", "6_9", "6_10", "6_11", "6_12", "7_7", "7_8", "7_9", "7_10", "7_11", "7_12",
)  # fmt: skip


_VAIHINGEN_TRAIN = tuple(map(str, (1, 3, 5, 7, 11, 13, 15, 17, 21, 23, 26, 28, 30, 32, 34, 37)))


def loveda(root: str, domains: Sequence[str] = ("Rural", "Urban")) -> Iterator[Pair]:
    """Train/<domain>/images_png/*.png, Train/<domain>/masks_png/*.png, and so on in Val and Test, which has no masks.

    An id begins with its domain, rural or urban. A converter's img_dir and ann_dir have both domains in one folder, so
    that they are read together or not at all.
    """
    if is_converted(root):
        if len(domains) == 1:
            mixed = "holds the images of both domains, as a converter left them; unpack the download"
            raise DatasetError(f"{join(root, 'img_dir')}: {mixed}, or take the layout loveda")
        yield from converted(root, "Train", "Val", "Test")
        return
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
    """2_Ortho_RGB/top_potsdam_<tile>_RGB.tif, and labels top_potsdam_<tile>_label.tif in colours.

    `images` may be 3_Ortho_IRRG too, whose bands are Vaihingen's: infrared, red and green. Labels lie in the root, as
    5_Labels_all.zip unpacks, or in a folder of its name; those of tiles without one in 5_Labels_all_noBoundary, whose
    names end in _label_noBoundary.tif and whose borders between classes are black, which is ignored.
    The 24 tiles that participants were given are train, the 14 that judged them val; where there is but
    5_Labels_for_participants the latter have no labels. A converter's img_dir and ann_dir hold tiles that are cut; of
    which bands they are, their names do not say.
    """
    if is_converted(root):
        yield from converted(root, images)
        return
    tile = "top_potsdam_", "_label.tif"
    labels = _labels(root, "5_Labels_all", "5_Labels_all_noBoundary", "5_Labels_for_participants", tile=tile)
    found = files(join(root, images), [f"_{images.rpartition('_')[2]}.tif"])
    yield from _of_tiles(found, labels, tile[0], _POTSDAM_TRAIN)


def vaihingen(root: str) -> Iterator[Pair]:
    """top/top_mosaic_09cm_area<tile>.tif, and labels of the same names in colours.

    They lie in the root, as ISPRS_semantic_labeling_Vaihingen_ground_truth_COMPLETE.zip unpacks, or in a folder of its
    name, or in that of ..._eroded_COMPLETE.zip, whose names end in _noBoundary.tif and whose borders between classes
    are black, which is ignored; it has a tile 9 more than there are images. The 16 tiles that participants were given
    are train, the 17 that judged them val; where there is but gts_for_participants these have no labels. A converter's
    img_dir and ann_dir hold tiles that are cut.
    """
    if is_converted(root):
        yield from converted(root, "top")
        return
    complete = "ISPRS_semantic_labeling_Vaihingen_ground_truth_{}COMPLETE"
    tile = "top_mosaic_09cm_area", ".tif"
    labels = _labels(root, complete.format(""), complete.format("eroded_"), "gts_for_participants", tile=tile)
    for pair in _of_tiles(files(join(root, "top"), [".tif"]), labels, tile[0], _VAIHINGEN_TRAIN):
        if pair.image_uri is not None or pair.image_id != "9":
            yield pair


def _labels(root: str, whole: str, eroded: str, participants: str, *, tile: tuple[str, str]) -> list[tuple[str, str]]:
    """The labels of tiles, of each in the first of these folders, or of the root in their place, that has it.

    Args:
        root: of the layout, into which the archives of `whole` and `eroded` unpack without a folder.
        whole, eroded, participants: folders.
        tile: what names of labels begin and end with; those of `eroded` have _noBoundary before their extension.
    """
    start, end = tile
    borderless = end.replace(".tif", "_noBoundary.tif")
    names = sorted(i.base_name for i in children(root) if i.is_file and i.base_name.startswith(start))
    of_tile: dict[str, str] = {}
    for folder, ending in ((participants, end), (eroded, borderless), (whole, end)):
        flat = [n for n in names if n.endswith(ending) and n.endswith(borderless) == (ending == borderless)]
        if folder != participants:
            of_tile |= {name.removesuffix(ending): join(root, name) for name in flat}
        if has_folder(join(root, folder)):
            of_tile |= {name.rpartition("/")[2]: uri for name, uri in files(join(root, folder), [ending])}
    if not of_tile:
        raise DatasetError(
            f"{root}: no folder {whole}, {eroded} or {participants} in this folder, and no {start}*{end}"
        )
    return sorted(of_tile.items())


def _of_tiles(
    images: Sequence[tuple[str, str]], labels: Sequence[tuple[str, str]], prefix: str, train: Sequence[str]
) -> Iterator[Pair]:
    """Pairs whose ids are the tiles' numbers."""

    def of_tile(found: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
        return [(name.rpartition("/")[2].removeprefix(prefix), uri) for name, uri in found]

    for pair in match(of_tile(images), of_tile(labels), "train"):
        yield pair._replace(split="train" if pair.image_id in train else "val")
