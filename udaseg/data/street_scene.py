"""Procedural street scenes: what the images of the embedded pair of domains show.

Every scene is a street seen in perspective: lots of buildings and greenery along both kerbs, then cars, people, poles
and trees, painted from far to near, then texture, light, haze and the sensor. The domains share this geometry and these
steps and differ in the numbers of `StreetDomain` alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal

import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from udaseg.data.street_domains import (
    BUILDING,
    CAR,
    DOMAINS,
    PAVEMENT,
    PERSON,
    POLE,
    RGB,
    ROAD,
    SKY,
    VEGETATION,
    Range,
    StreetDomain,
)
from udaseg.rng import keyed

_END = 60.0  # depth of the block that closes the street, metres


class _Scene:
    """A camera on the street and what it has painted so far: colour, train id and depth of every pixel."""

    def __init__(self, domain: StreetDomain, rng: np.random.Generator, height: int, width: int) -> None:
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


def _expose(image: np.ndarray, domain: StreetDomain, rng: np.random.Generator) -> np.ndarray:
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
    scene = _Scene(DOMAINS[domain], rng, *size)
    _paint(scene)
    return _expose(_light(scene), scene.domain, rng), np.array(scene.label)
