"""The types that pass between data, networks, methods and the training loop, and the words of their settings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from os import PathLike
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:  # tasks that need no network start five seconds sooner without torch
    from torch import Tensor

IGNORE = 255
"""The train id of pixels without a label; every loss and metric leaves them out."""

# What settings and networks both have to spell; the docstrings of those that take them say what each word means.
Domain = Literal["source", "target"]
HeadName = Literal["aspp", "aspp_gn", "deeplabv3", "multilevel", "context_aware"]
InputForm = Literal["imagenet", "caffe", "unit"]
HeadInit = Literal["torch", "mmseg", "deeplab"]
Resample = Literal["antialias", "bilinear", "bicubic"]
Sampling = Literal["uniform", "rare_class", "class_balanced"]
PerDomain = Literal["nothing", "stem", "stem+statistics"]
Detail = Literal["random", "entropy", "everywhere"]
Blend = Literal["mean", "taper"]
DepthRange = tuple[float, float]
Location = str | PathLike[str]
NetworkRole = Literal["predictor", "student", "teacher"]

DOMAIN_OF: dict[str, Domain] = {
    "source": "source",
    "target": "target",
    "template": "source",
    "rare": "source",
    "fewshot": "target",
}
"""The streams that a method can read, and the domain that each draws from."""


def split_of(stream: str) -> str:
    """The split of its dataset that a stream draws from."""
    return "fewshot" if stream == "fewshot" else "train"


@dataclass(frozen=True, slots=True)
class Batch:
    """Images of one stream, on the device, in the order of their global sample index."""

    image: Tensor
    """(B, 3, H, W) float in [0, 1]."""
    index: Tensor
    """(B,) int64, the global sample index; random draws for a sample are keyed by it. It stays on the CPU, where they
    are made, so that no draw waits for the device."""
    label: Tensor | None = None
    """(B, H, W) int64 train ids, 255 = ignore."""
    weight: Tensor | None = None
    """(B, H, W) float, for pseudo-labels the confidence in [0, 1]."""
    distribution: Tensor | None = None
    """(B, K, h, w) float, for pseudo-labels the probability of every class, at an eighth of the image's size; 0 of all
    where nothing is known."""
    prior: Tensor | None = None
    """(B, K, h, w) float, how often the source's labels have each class at the places of the image, at an eighth of its
    size."""
    candidate: Tensor | None = None
    """(B, U + 1, K) bool, for labels in which ids K + i stand for a pixel of one of several classes: those of row i;
    the last row are the classes that unknown pixels may be, since the labels have none of them."""
    stream: str = ""
    """Which one, for messages."""

    @property
    def labels(self) -> Tensor:
        """`label` of a stream that must have one. Raises ValueError, naming the stream, where it has none."""
        if self.label is None:
            raise ValueError(f'stream {self.stream!r} has no labels: give data.{self.stream}.labels other than "none"')
        return self.label

    @property
    def distributions(self) -> Tensor:
        """`distribution` of a stream that must have one. Raises ValueError, naming the stream, where it has none."""
        if self.distribution is None:
            wanted = f'data.{self.stream}.labels "distribution"'
            raise ValueError(f"stream {self.stream!r} has no probabilities of all classes: give {wanted}")
        return self.distribution

    @property
    def priors(self) -> Tensor:
        """`prior` of a stream that must have one. Raises ValueError, naming the stream, where it has none."""
        if self.prior is None:
            raise ValueError(f"stream {self.stream!r} has no spatial prior: set data.{self.stream}.prior")
        return self.prior

    @property
    def candidates(self) -> Tensor:
        """`candidate` of a stream that must have one. Raises ValueError, naming the stream, where it has none."""
        if self.candidate is None:
            wanted = f'data.{self.stream}.labels "candidates"'
            raise ValueError(f"stream {self.stream!r} does not say what classes its pixels may be of: give {wanted}")
        return self.candidate


@dataclass(frozen=True, slots=True)
class SegOutput:
    """What a segmentation network returns."""

    logits: Tensor
    """(B, K, H, W) at the size of the image."""
    embedding: Tensor
    """(B, D, h, w), the features that contrastive losses compare."""
    features: tuple[Tensor, ...] = ()
    """The backbone's levels, finest first."""
    aux: Mapping[str, Tensor] = field(default_factory=dict)
    """Whatever else a network has to offer, by name: "coarse_logits" (B, K, h, w), before they are upsampled; of two
    heads those of each, and what `udaseg.models.hrda.HRDA` says of its detail crop."""


@dataclass(frozen=True, slots=True)
class Loss:
    """One term of a method's objective; the loop minimises the sum of weight * value.

    With weight 0 it is only reported, e.g. the share of pixels that have a pseudo-label.
    """

    name: str
    value: Tensor
    weight: float = 1.0
