"""What an adaptation trains: chosen from the images and the machine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

from udaseg.config import Model, Optim
from udaseg.job_config import Adapt
from udaseg.recipes.common import DEEPLAB, SMALL, SMALL_OPTIM

T = TypeVar("T")

_FINE_TUNING = Optim(name="adamw", lr=3e-4, head_lr_factor=5.0, weight_decay=0.01, horizon=1.1, clip=5.0)
_MOST_PASSES = 100
_CELL = 32
"""Sides of crops are multiples of it, or of half of it where they are short, so that the levels of a backbone fit."""


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a worker has to train with."""

    memory: float | None
    """GiB of its GPU; None = it has none."""
    cores: int
    """Of its CPU."""
    hub: bool = False
    """Whether weights can be fetched."""

    def __str__(self) -> str:
        cores = f"{self.cores} CPU core{'s' if self.cores > 1 else ''}"
        return f"{cores} and no GPU" if self.memory is None else f"a GPU of {self.memory:.0f} GiB"


@dataclass(frozen=True, kw_only=True)
class Images:
    """What the two domains hold; see `udaseg.jobs.adapt.inputs.measure`."""

    short_side: int
    """Median of a domain's short sides, in pixels."""
    long_side: int
    """Median of its long sides."""
    portrait: bool = False
    """Whether both domains' images are higher than wide."""
    count: int
    """Training images."""
    commonest_class_pixels: int = 1 << 30
    """Of the source's training images the median of their commonest class's pixels: few where labels are scribbles."""


class _Row(NamedTuple):
    memory: float
    """GiB of GPU memory from which it holds; 0 = without a GPU."""
    model: Model
    short_side: int
    """The largest that is trained at, in pixels."""
    crop: int
    """The largest side of a crop."""
    batch: int
    optim: Optim
    warm_steps: int
    steps: int


# GPUs have a little less than they are sold as: one of 16 GB has 14.6 GiB to 15.8.
# Those of a GPU follow the sizes of the literature (2 crops of 512 pixels on 11 to 24 GiB), and were not measured here;
# that of a CPU is the one of the README's figures.
_TABLE = (
    _Row(36, DEEPLAB, 720, 768, 4, replace(_FINE_TUNING, lr=6e-5, head_lr_factor=10.0), 10_000, 20_000),
    _Row(14, DEEPLAB, 512, 512, 2, replace(_FINE_TUNING, lr=6e-5, head_lr_factor=10.0), 10_000, 20_000),
    _Row(5, Model(backbone="resnet50", pretrained=True), 512, 512, 4, replace(_FINE_TUNING, lr=1e-4), 5_000, 10_000),
    _Row(0, Model(backbone="mobilenetv2_100", pretrained=True), 240, 240, 4, _FINE_TUNING, 800, 800),
)
_FROM_NOTHING = _Row(0, SMALL, 128, 192, 8, SMALL_OPTIM, 300, 600)
"""Where no weights are at hand: a network so small that it learns from nothing within minutes."""


@dataclass(frozen=True, kw_only=True)
class Choice:
    """What is trained."""

    model: Model
    short_side: int
    crop: tuple[int, int]
    batch_size: int
    optim: Optim
    warm_steps: int
    """Of the warm start; 0 = there is none."""
    steps: int
    rare_min_pixels: int
    """Of a class in an image of the source that is drawn for it; a third of them must be in the crop."""
    reasons: dict[str, tuple[str, str]]
    """What was chosen, and why, by name."""


def _crop_side(most: int) -> int:
    unit = _CELL if most >= 2 * _CELL else _CELL // 2
    return max(_CELL, most // unit * unit)


def choose(told: Adapt, machine: Machine, images: Images, begun: tuple[Model, int] | None = None) -> Choice:
    """What to train where the user says nothing else; whatever is told is taken as it is.

    Args:
        told: what the user says.
        machine: what there is to train with.
        images: of both domains.
        begun: the network and short side of a checkpoint that is adapted.
    """
    reasons: dict[str, tuple[str, str]] = {}

    def pick(name: str, asked: T | None, chosen: T, reason: str) -> T:
        value = chosen if asked is None else asked
        reasons[name] = (str(value), reason if asked is None else "as told")
        return value

    row = next(row for row in _TABLE if row.memory <= (machine.memory or 0))
    if begun is not None:
        model = begun[0]
        known = next((known for known in (*_TABLE, _FROM_NOTHING) if known.model.backbone == model.backbone), row)
        # as large as the machine holds, by the learning rates of the network
        row = known if machine.memory is None and known.memory == 0 else row._replace(optim=known.optim)
        reasons["backbone"] = (model.backbone, "the checkpoint's")
    else:
        fetched = told.pretrained and machine.hub and told.weights is None
        if machine.memory is None and not fetched and told.weights is None and told.backbone is None:
            row = _FROM_NOTHING
        fits = told.backbone in (None, row.model.backbone) or str(told.backbone).startswith("resnet")
        model = row.model if fits else Model()  # not all backbones take DeepLab's stride
        model = replace(model, pretrained=fetched, weights=told.weights, same_padding=told.same_padding)
        small = "without weights and GPU, one that learns from nothing within minutes"
        why = small if row is _FROM_NOTHING else f"for {machine}"
        model = replace(model, backbone=pick("backbone", told.backbone, model.backbone, why))
        no_hub = "the hub cannot be reached; give a file by --weights, it is worth much"
        none = ("none", no_hub if told.pretrained else "as told")
        of_hub = ("ImageNet's", "from the hub, which can be reached")
        reasons["weights"] = (told.weights, "as told") if told.weights else of_hub if fetched else none

    size = f"images have {images.short_side} x {images.long_side} pixels"
    side, why = min(images.short_side, row.short_side), f"{size}; {row.short_side} at most on {machine}"
    if begun is not None:
        side, why = begun[1], "what the checkpoint was trained at"
    short_side = pick("short_side", told.short_side, side, why)
    sides = [short_side, round(short_side * images.long_side / images.short_side)]
    if images.portrait:
        sides.reverse()
    height, width = (_crop_side(min(row.crop, 3 * side // 4)) for side in sides)
    crop = pick("crop", told.crop, (height, width), f"three quarters of an image's sides, {row.crop} at most")
    batch_size = pick("batch_size", told.batch_size, row.batch, f"crops of that size, on {machine}")
    most = max(1, _MOST_PASSES * images.count // batch_size)
    why = f"for {machine}; {_MOST_PASSES} passes over {images.count} images, the most, would be {most}"
    warm_steps = 0 if begun is not None else pick("warm_steps", told.warm_steps, min(row.warm_steps, most), why)
    steps = pick("steps", told.steps, min(row.steps, most), why)
    lr = pick("lr", told.lr, row.optim.lr, f"AdamW, for {model.backbone}")
    return Choice(
        model=model,
        short_side=short_side,
        crop=crop,
        batch_size=batch_size,
        optim=replace(row.optim, lr=lr),
        warm_steps=warm_steps,
        steps=steps,
        rare_min_pixels=min(crop[0] * crop[1] // 140, images.commonest_class_pixels),
        reasons=reasons,
    )
