"""Indexed label maps, whose pixels are places in a palette: whether these places are the classes' ids."""

from __future__ import annotations

import numpy as np
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.taxonomies import voc_palette
from udaseg.errors import DatasetError

_VOC = np.array(voc_palette(256))
_VOID = {(0, 0, 0), (255, 255, 255)}
"""What pixels of no class mostly have."""


def require_ids(image: Image.Image, classes: Classes) -> None:
    """Raise DatasetError where the palette of an indexed label shows that its indices are not the classes' ids.

    A program that makes a mask of colours, or a map of greys, indexed gives them places in an order of its own. Other
    palettes only paint ids, and say nothing: those of one colour, too short ones, Pascal VOC's, any that has other
    colours than the classes'.

    Args:
        image: decoded, of mode "P".
        classes: whose labels hold ids.
    """
    palette = np.array(image.getpalette() or [], int).reshape(-1, 3)
    used = np.flatnonzero(image.histogram())
    if used[-1] >= len(palette):
        return
    colours = palette[used]
    several = len(palette) == 1 or len(np.unique(palette, axis=0)) > 1
    if several and len(np.unique(colours, axis=0)) == len(used):
        _require_class_places(palette, used, classes)
        _require_grey_places(palette, used, classes)


def _require_class_places(palette: np.ndarray, used: np.ndarray, classes: Classes) -> None:
    train_of = {tuple(colour): train for train, colour in enumerate(classes.palette)}
    shown = {i: tuple(palette[i].tolist()) for i in used.tolist()}
    coloured = {i: colour for i, colour in shown.items() if colour in train_of or colour not in _VOID}
    by_voc = all(colour == tuple(_VOC[i]) for i, colour in shown.items())
    if by_voc or any(colour not in train_of for colour in coloured.values()):
        return
    lookup = classes.lookup()
    for index, colour in coloured.items():
        train = train_of[colour]
        own_places = palette[np.flatnonzero(lookup[: len(palette)] == train)]
        # A colour may be there twice: Cityscapes' license plates have that of its cars. A mapping may leave a class no
        # id, and what has its colour is then another one's by intention.
        elsewhere = (lookup == train).any() and not (own_places == colour).all(1).any()
        if lookup[index] != train and elsewhere and colour != (index,) * 3:
            found = int(lookup[index])
            name = repr(classes.names[found]) if 0 <= found < len(classes) else "of no class"
            raise DatasetError(
                f"the label's palette holds the classes' colours in another order: index {index} has the colour of "
                f"{classes.names[train]!r}, and as an id it is {name}; give --label-colors palette, or save the labels "
                "without a palette if their indices are ids"
            )


def _require_grey_places(palette: np.ndarray, used: np.ndarray, classes: Classes) -> None:
    values = palette[:, 0]
    are_ids = (classes.lookup()[values] >= 0) | (values == 0)  # 0 fills palettes up
    is_mask = {*values[used].tolist()} <= {0, 255}  # of two ids, painted black and white
    if (palette == values[:, None]).all() and are_ids.all() and not is_mask and (values[used] != used).any():
        index = int(used[values[used] != used][0])
        raise DatasetError(
            f"the label's palette holds ids as greys in another order: index {index} is the grey {values[index]}; give "
            "--label-colors grey, or save the labels without a palette if their indices are ids"
        )
