"""What sets the embedded domains apart: a clear day (source) and a wet, hazy autumn day (target).

Their ranges overlap, as those of real domains do, so a network trained on the source is right on a part of every target
class: what self-training starts from.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from udaseg.data.classes import Classes

CLASSES = Classes(
    names=("road", "pavement", "building", "vegetation", "sky", "car", "person", "pole"),
    palette=(
        (128, 64, 128),
        (244, 35, 232),
        (70, 70, 70),
        (107, 142, 35),
        (70, 130, 180),
        (0, 0, 142),
        (220, 20, 60),
        (153, 153, 153),
    ),
)


ROAD, PAVEMENT, BUILDING, VEGETATION, SKY, CAR, PERSON, POLE = range(len(CLASSES))


Range = tuple[float, float]


RGB = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class StreetDomain:
    """What sets a domain apart. A `Range` is uniform, drawn once an image or object; lengths are in metres."""

    horizon: Range  # share of the image's height
    camera_height: Range
    road: Range  # half width
    pavement: Range  # width
    building_height: Range
    greenery: float  # probability that a lot is green instead of built
    trees: float  # mean number in an image, as the three below
    cars: float
    persons: float
    poles: float
    car_scale: Range
    person_depth: Range
    colours: tuple[tuple[RGB, ...], ...]  # per class, the anchors between which objects are coloured
    texture: tuple[tuple[float, float, float], ...]  # per class, amplitude of grain of 1, 3 and 12 pixels
    windows: Range  # brightness of a window against its wall
    shadow: Range  # strength of the buildings' shadow on the ground
    wet: Range  # share of the mirrored scene in the ground
    haze: Range  # extinction, 1 / metre
    haze_colour: RGB
    cast: tuple[Range, Range, Range]  # gain of R, G and B
    gamma: Range
    blur: Range  # sigma, as a share of the image's height
    noise: Range  # standard deviation of the sensor's noise, of 255


_SOURCE = StreetDomain(
    horizon=(0.44, 0.52),
    camera_height=(1.5, 1.9),
    road=(4.0, 5.5),
    pavement=(2.5, 4.0),
    building_height=(8.0, 20.0),
    greenery=0.25,
    trees=2.0,
    cars=3.6,
    persons=3.6,
    poles=3.0,
    car_scale=(0.95, 1.15),
    person_depth=(6.0, 10.5),
    colours=(
        ((90, 90, 96), (112, 110, 112)),
        ((166, 156, 148), (190, 182, 172)),
        ((150, 92, 72), (205, 178, 146), (186, 150, 120), (165, 160, 158)),
        ((48, 104, 40), (100, 146, 58), (72, 128, 52)),
        ((98, 158, 232), (152, 196, 242)),
        ((190, 30, 36), (36, 62, 168), (228, 228, 232), (216, 178, 40), (40, 44, 48)),
        ((210, 60, 60), (60, 90, 190), (236, 200, 70), (70, 60, 60)),
        ((150, 154, 158), (184, 186, 188)),
    ),
    texture=(
        (5, 3, 3),
        (5, 5, 3),
        (4, 5, 4),
        (8, 20, 12),
        (1, 1, 8),
        (2, 3, 4),
        (4, 6, 2),
        (3, 2, 2),
    ),
    windows=(0.35, 0.6),
    shadow=(0.2, 0.5),
    wet=(0.0, 0.05),
    haze=(0.0, 0.004),
    haze_colour=(196, 214, 236),
    cast=((0.98, 1.08), (0.96, 1.04), (0.90, 1.0)),
    gamma=(0.9, 1.1),
    blur=(0.001, 0.003),
    noise=(1.0, 4.0),
)


_TARGET = StreetDomain(
    horizon=(0.36, 0.48),
    camera_height=(1.2, 1.7),
    road=(3.2, 5.0),
    pavement=(2.0, 4.5),
    building_height=(5.0, 15.0),
    greenery=0.45,
    trees=3.2,
    cars=3.2,
    persons=5.0,
    poles=3.4,
    car_scale=(0.85, 1.1),
    person_depth=(5.5, 10.5),
    colours=(
        ((92, 92, 96), (76, 80, 88), (126, 124, 122)),
        ((170, 162, 154), (150, 144, 138), (126, 118, 112)),
        ((150, 96, 78), (190, 170, 146), (130, 132, 134), (176, 142, 116)),
        ((54, 106, 44), (90, 136, 56), (118, 114, 52), (72, 110, 56)),
        ((132, 170, 222), (160, 186, 216), (196, 202, 208)),
        ((160, 40, 44), (50, 66, 130), (214, 214, 216), (120, 124, 126), (36, 38, 42)),
        ((190, 60, 60), (58, 80, 150), (160, 136, 76), (60, 56, 60)),
        ((164, 168, 170), (150, 154, 158), (112, 116, 118)),
    ),
    texture=(
        (5, 6, 10),
        (6, 6, 5),
        (6, 9, 9),
        (10, 18, 14),
        (1, 2, 8),
        (3, 4, 5),
        (5, 6, 3),
        (4, 4, 2),
    ),
    windows=(0.5, 1.4),
    shadow=(0.0, 0.15),
    wet=(0.0, 0.45),
    haze=(0.004, 0.03),
    haze_colour=(186, 190, 192),
    cast=((0.74, 0.98), (0.82, 1.0), (0.84, 1.1)),
    gamma=(0.8, 1.6),
    blur=(0.003, 0.010),
    noise=(5.0, 16.0),
)


DOMAINS: dict[Literal["source", "target"], StreetDomain] = {"source": _SOURCE, "target": _TARGET}
