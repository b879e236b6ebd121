"""An embedded pair of domains: procedural street scenes, a clear day (source) and a wet, hazy autumn day (target).

Every scene is a street seen in perspective: lots of buildings and greenery along both kerbs, then cars, people, poles
and trees, painted from far to near, then texture, light, haze and the sensor. The domains share this geometry and these
steps and differ in the numbers of `_Domain` alone. Their ranges overlap, as those of real domains do, so a network
trained on the source is right on a part of every target class: what self-training starts from.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from udaseg.data.schema import Classes, DatasetError
from udaseg.rng import keyed

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

RENDERER = 2
"""Raise it with every change of the pixels, so that `write_pair` never passes off an older pair as the present one."""

_END = 60.0  # depth of the block that closes the street, metres

Range = tuple[float, float]
RGB = tuple[int, int, int]


@dataclass(frozen=True, kw_only=True)
class _Domain:
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


_SOURCE = _Domain(
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

_TARGET = _Domain(
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

_DOMAINS: dict[Literal["source", "target"], _Domain] = {"source": _SOURCE, "target": _TARGET}


class _Scene:
    """A camera on the street and what it has painted so far: colour, train id and depth of every pixel."""

    def __init__(self, domain: _Domain, rng: np.random.Generator, height: int, width: int) -> None:
        self.domain, self.rng = domain, rng
        self.focal = 0.85 * height  # pixels
        self.horizon = height * rng.uniform(*domain.horizon)  # row
        self.centre = width * rng.uniform(0.35, 0.65)  # column of the vanishing point
        self.eye = rng.uniform(*domain.camera_height)
        self.kerb = rng.uniform(*domain.road)  # metres from the street's axis, as the next
        self.wall = self.kerb + rng.uniform(*domain.pavement)
        self.image = Image.new("RGB", (width, height), self.colour(SKY))
        self.label = Image.new("L", (width, height), SKY)
        self.depth = Image.new("F", (width, height), 2 * _END)
        self._draws = [ImageDraw.Draw(layer) for layer in (self.image, self.label, self.depth)]

    def colour(self, class_id: int, gain: float = 1.0) -> RGB:
        """A colour between two of the class's anchors, chosen at random, in a light of its own."""
        anchors = np.asarray(self.domain.colours[class_id], float)
        one, other = anchors[self.rng.integers(len(anchors), size=2)]
        colour = (one + self.rng.random() * (other - one)) * gain * self.rng.uniform(0.92, 1.08)
        return _rgb(colour)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """Column and row of a point `x` right of the camera, `y` above the ground and `z` ahead, in metres."""
        return self.centre + self.focal * x / z, self.horizon + self.focal * (self.eye - y) / z

    def polygon(self, class_id: int | None, colour: RGB, points: Sequence[tuple[float, float, float]]) -> None:
        """Paint a polygon of (x, y, z) points; without a class it changes the colour alone."""
        corners = [self.project(*point) for point in points]
        self._draws[0].polygon(corners, fill=colour)
        if class_id is not None:
            self._draws[1].polygon(corners, fill=class_id)
            self._draws[2].polygon(corners, fill=min(z for _, _, z in points))

    def panel(
        self, class_id: int | None, colour: RGB, x: Range, y: Range, z: float, *, top: Range | None = None
    ) -> None:
        """Paint a rectangle that faces the camera; with `top`, a trapezium whose upper edge spans that."""
        left, right = top or x
        self.polygon(class_id, colour, [(x[0], y[0], z), (x[1], y[0], z), (right, y[1], z), (left, y[1], z)])

    def facade(self, class_id: int, colour: RGB, x: float, height: float, near: float, far: float) -> None:
        """Paint a rectangle along the street, from depth `near` to `far`."""
        self.polygon(class_id, colour, [(x, 0, near), (x, 0, far), (x, height, far), (x, height, near)])

    def disc(self, class_id: int, colour: RGB, x: float, y: float, z: float, radius: float) -> None:
        """Paint a disc that faces the camera."""
        box = [self.project(x - radius, y + radius, z), self.project(x + radius, y - radius, z)]
        fills: tuple[RGB | int | float, ...] = (colour, class_id, z)
        for draw, fill in zip(self._draws, fills, strict=True):
            draw.ellipse(box, fill=fill)


def _rgb(colour: np.ndarray) -> RGB:
    r, g, b = (int(v) for v in np.clip(colour, 0, 255))
    return r, g, b


def _darker(colour: RGB, gain: float) -> RGB:
    return _rgb(np.asarray(colour) * gain)


def _lot(scene: _Scene, side: int, x: float, near: float, far: float) -> None:
    """A building, or a lot of trees, along the street at distance `x` from its axis, from depth `near` to `far`."""
    rng = scene.rng
    if rng.random() < scene.domain.greenery:
        colour = scene.colour(VEGETATION)
        top = rng.uniform(2.0, 6.0)
        scene.facade(VEGETATION, colour, side * x, top, near, far)
        for z in np.linspace(far, near, 4):
            leaves = _darker(colour, rng.uniform(0.8, 1.15))
            scene.disc(VEGETATION, leaves, side * (x + 1), top, z, rng.uniform(1.5, 3.0))
        return
    top = rng.uniform(*scene.domain.building_height)
    colour = scene.colour(BUILDING, 1.0 if side > 0 else 0.85)  # the sun stands on the left
    scene.panel(BUILDING, _darker(colour, 0.75), (side * x, side * (x + 12)), (0, top), near)
    scene.facade(BUILDING, colour, side * x, top, near, far)


def _tree(scene: _Scene, x: float, z: float) -> None:
    rng, colour = scene.rng, scene.colour(VEGETATION)
    top, crown = rng.uniform(3.5, 6.5), rng.uniform(1.0, 1.9)
    scene.panel(VEGETATION, _darker((104, 82, 62), rng.uniform(0.7, 1.0)), (x - 0.2, x + 0.2), (0, top), z)
    for _ in range(5):
        dx, dy = rng.uniform(-crown, crown, size=2) * 0.8
        leaves = _darker(colour, rng.uniform(0.75, 1.15))
        scene.disc(VEGETATION, leaves, x + dx, top + dy, z, crown * rng.uniform(0.6, 1.0))


def _car(scene: _Scene, x: float, z: float) -> None:
    """A car seen from behind or ahead, with the side that the camera sees."""
    rng, colour = scene.rng, scene.colour(CAR)
    scale = rng.uniform(*scene.domain.car_scale)
    half, belt, roof, end = 0.95 * scale, 0.95 * scale, 1.5 * scale, z + 4.2 * scale
    glass, tyre, lamp = (48, 56, 66), (24, 24, 26), (230, 60, 50) if rng.random() < 0.5 else (244, 240, 214)
    scene.polygon(None, (38, 38, 42), [(x - half, 0, z), (x + half, 0, z), (x + half, 0, end), (x - half, 0, end)])
    inner = x - half if x > 0 else x + half  # the visible flank
    flank = [(0.3, z), (0.3, end), (belt, end), (roof, end - 1.2), (roof, z + 1), (belt, z)]
    scene.polygon(CAR, _darker(colour, 0.8), [(inner, height, depth) for height, depth in flank])
    scene.panel(CAR, tyre, (x - half, x - 0.6 * half), (0, 0.4), z)
    scene.panel(CAR, tyre, (x + 0.6 * half, x + half), (0, 0.4), z)
    scene.panel(CAR, glass, (x - half, x + half), (belt, roof), z, top=(x - 0.8 * half, x + 0.8 * half))
    scene.panel(CAR, colour, (x - half, x + half), (0.25, belt), z)
    for s in (-1, 1):
        scene.panel(None, lamp, (x + s * 0.85 * half - 0.15, x + s * 0.85 * half + 0.15), (0.6 * belt, 0.8 * belt), z)


def _person(scene: _Scene, x: float, z: float) -> None:
    rng, tall = scene.rng, scene.rng.uniform(1.6, 1.9)
    half, stride = rng.uniform(0.26, 0.36), rng.uniform(0.05, 0.2)
    legs = _darker((70, 72, 96), rng.uniform(0.5, 1.2))
    for s in (-1, 1):
        foot, hip = x + s * (stride + 0.12), x + s * 0.14
        scene.panel(PERSON, legs, (foot - 0.12, foot + 0.12), (0, 0.5 * tall), z, top=(hip - 0.13, hip + 0.13))
    scene.panel(PERSON, scene.colour(PERSON), (x - half, x + half), (0.45 * tall, 0.84 * tall), z)
    scene.disc(PERSON, _darker((224, 176, 146), rng.uniform(0.5, 1.0)), x, 0.92 * tall, z, 0.17)


def _pole(scene: _Scene, x: float, z: float) -> None:
    """A lamp post, whose arm reaches over the road."""
    rng, colour, top = scene.rng, scene.colour(POLE), scene.rng.uniform(4.0, 7.0)
    half = rng.uniform(0.14, 0.2)
    scene.panel(POLE, colour, (x - half, x + half), (0, top), z)
    scene.panel(POLE, _darker(colour, 0.8), (x, x - np.sign(x) * 1.6), (top - 0.3, top), z)


def _paint(scene: _Scene) -> None:
    """The ground, then everything on it from far to near."""
    rng, domain, kerb, wall = scene.rng, scene.domain, scene.kerb, scene.wall
    near = 1.0  # metres; its row is below the image
    scene.polygon(PAVEMENT, scene.colour(PAVEMENT), [(-40, 0, near), (40, 0, near), (40, 0, _END), (-40, 0, _END)])
    scene.polygon(ROAD, scene.colour(ROAD), [(-kerb, 0, near), (kerb, 0, near), (kerb, 0, _END), (-kerb, 0, _END)])
    for z in np.arange(4.0, 40.0, 5.0):
        scene.polygon(None, (214, 214, 208), [(-0.1, 0, z), (0.1, 0, z), (0.1, 0, z + 2), (-0.1, 0, z + 2)])
    closing = VEGETATION if rng.random() < domain.greenery else BUILDING
    scene.panel(closing, scene.colour(closing), (-40, 40), (0, rng.uniform(3, 14)), _END)

    things: list[tuple[float, Callable[..., None], tuple[float, ...]]] = []
    for side in (-1, 1):
        edge = _END
        while edge > 2.5:
            far, edge = edge, max(edge * rng.uniform(0.55, 0.85), 2.0)
            things.append((far, _lot, (side, wall, edge, far)))  # all that stands between its ends is in front of it
    for _ in range(rng.poisson(domain.trees)):
        things.append((z := rng.uniform(7, 30), _tree, (rng.choice((-1, 1)) * (kerb + 0.7 * (wall - kerb)), z)))
    for _ in range(rng.poisson(domain.cars)):
        things.append((z := rng.uniform(6, 20), _car, (rng.choice((-1, 1)) * (kerb - rng.uniform(1.2, 2.2)), z)))
    for _ in range(rng.poisson(domain.persons)):
        reach = wall - 0.5 if rng.random() < 0.75 else kerb  # three of four keep to the pavement
        x = rng.uniform(kerb + 0.3, reach) if reach > kerb else rng.uniform(0, kerb)
        things.append((z := rng.uniform(*domain.person_depth), _person, (rng.choice((-1, 1)) * x, z)))
    for _ in range(rng.poisson(domain.poles)):
        things.append((z := rng.uniform(5, 11), _pole, (rng.choice((-1, 1)) * (kerb + 0.4), z)))
    for _, paint, place in sorted(things, key=lambda thing: -thing[0]):
        paint(scene, *place)


def _grain(rng: np.random.Generator, height: int, width: int, pixels: int) -> np.ndarray:
    """(H, W) smooth noise of mean 0 and deviation about 1, whose features are `pixels` wide."""
    coarse = rng.standard_normal((-(-height // pixels), -(-width // pixels)), dtype=np.float32)
    if pixels == 1:
        return coarse
    return np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC))


def _light(scene: _Scene) -> np.ndarray:
    """(H, W, 3) float32 image of the painted scene: windows, texture, shadow, wet ground and haze."""
    rng, domain = scene.rng, scene.domain
    image, label = np.asarray(scene.image, np.float32), np.asarray(scene.label)
    painted = np.asarray(scene.depth)
    height, width = label.shape
    row = np.arange(height, dtype=np.float32)[:, None] + 0.5 - scene.horizon
    column = np.arange(width, dtype=np.float32)[None] + 0.5 - scene.centre
    ground, built = label <= PAVEMENT, label == BUILDING
    facade = np.maximum(painted, np.minimum(scene.focal * scene.wall / np.maximum(np.abs(column), 1), _END))
    depth = np.where(ground, scene.focal * scene.eye / np.maximum(row, 1), np.where(built, facade, painted))
    x, y = column * depth / scene.focal, scene.eye - row * depth / scene.focal

    storey, bay = rng.uniform(2.8, 3.6), rng.uniform(2.2, 3.4)
    along = depth + np.abs(x)  # runs along facades as well as along the walls that face the camera
    window = built & (y % storey > 0.35 * storey) & (y % storey < 0.8 * storey) & (along % bay > 0.4 * bay)
    image = image * (1 + window * np.exp(-depth / 50) * (rng.uniform(*domain.windows) - 1))[..., None]

    amplitude = np.asarray(domain.texture, np.float32)[label]
    texture = sum(_grain(rng, height, width, pixels) * amplitude[..., k] for k, pixels in enumerate((1, 3, 12)))
    shaded = ground & (x < rng.uniform(-1, 1) * scene.wall)
    image = (image + texture[..., None]) * (1 - shaded * rng.uniform(*domain.shadow))[..., None]

    mirror = np.clip(2 * scene.horizon - np.arange(height), 0, height - 1).astype(int)
    puddles = np.clip(0.6 + 0.5 * _grain(rng, height, width, 16), 0, 1)
    wet = (ground * puddles * rng.uniform(*domain.wet))[..., None]
    image = image + wet * (image[mirror] - image)
    clear = np.exp(-rng.uniform(*domain.haze) * depth)[..., None]
    return image * clear + np.asarray(domain.haze_colour, np.float32) * (1 - clear)


def _expose(image: np.ndarray, domain: _Domain, rng: np.random.Generator) -> np.ndarray:
    """(H, W, 3) uint8 image that the domain's camera takes: blur, tone, colour cast and noise."""
    blurred = Image.fromarray(np.clip(image, 0, 255).astype(np.uint8))
    blurred = blurred.filter(ImageFilter.GaussianBlur(rng.uniform(*domain.blur) * len(image)))
    tone = np.linspace(0, 1, 256) ** rng.uniform(*domain.gamma) * 255
    curves = np.stack([tone * rng.uniform(*gain) for gain in domain.cast])
    taken = np.asarray(blurred.point(np.clip(curves, 0, 255).astype(int).ravel().tolist()), np.float32)
    noise = rng.standard_normal(taken.shape, dtype=np.float32) * np.float32(rng.uniform(*domain.noise))
    return np.clip(taken + noise, 0, 255).astype(np.uint8)


def render(
    domain: Literal["source", "target"], index: int, *, seed: int = 0, size: tuple[int, int] = (128, 256)
) -> tuple[np.ndarray, np.ndarray]:
    """Render one scene, a pure function of the arguments.

    Args:
        domain: which of the two domains.
        index: which image of it, >= 0.
        seed: another seed gives other images of the same domains.
        size: (height, width) in pixels; what the scene shows does not depend on it, but its grain is in pixels.

    Returns:
        (H, W, 3) uint8 image and (H, W) uint8 label of train ids.
    """
    rng = keyed(seed, domain, index, "render")
    scene = _Scene(_DOMAINS[domain], rng, *size)
    _paint(scene)
    return _expose(_light(scene), scene.domain, rng), np.array(scene.label)


def write_pair(
    directory: str | Path, *, seed: int = 0, size: tuple[int, int] = (128, 256), train: int = 240, val: int = 60
) -> None:
    """Render both domains to `directory`, as a download of a public pair would leave them.

        {source,target}/{train,val}/{images,labels}/NNNN.png   RGB images; 8-bit palette labels of train ids
        classes.json                                           `CLASSES`
        synthetic.json                                         these arguments, written last

    A whole pair of the same arguments is left as it is, and an interrupted one is made anew. Raises DatasetError where
    the directory holds a pair of other arguments or anything else.
    """
    root = Path(directory)
    done, begun = root / "synthetic.json", root / "synthetic.json.tmp"
    arguments = {"renderer": RENDERER, "seed": seed, "size": list(size), "train": train, "val": val}
    marker = next((path for path in (done, begun) if path.exists()), None)
    if marker:
        if (found := json.loads(marker.read_text())) != arguments:
            raise DatasetError(f"{root}: holds a pair of {found}, not of {arguments}; delete it or name another folder")
        if marker is done:
            return
    elif root.exists() and (not root.is_dir() or any(root.iterdir())):
        raise DatasetError(f"{root}: holds other files; name a new or empty directory")
    root.mkdir(parents=True, exist_ok=True)
    begun.write_text(json.dumps(arguments))
    colours = [value for colour in CLASSES.palette for value in colour]
    for domain in _DOMAINS:
        for split, count, first in (("train", train, 0), ("val", val, train)):
            images, labels = (root / domain / split / kind for kind in ("images", "labels"))
            images.mkdir(parents=True, exist_ok=True)
            labels.mkdir(parents=True, exist_ok=True)
            for i in range(count):
                image, label = render(domain, first + i, seed=seed, size=size)
                Image.fromarray(image).save(images / f"{i:04d}.png")
                indexed = Image.fromarray(label)
                indexed.putpalette(colours + [0] * (768 - len(colours)))  # all 256 entries keep the file at 8 bits
                indexed.save(labels / f"{i:04d}.png")
    (root / "classes.json").write_text(CLASSES.to_json())
    begun.replace(done)
