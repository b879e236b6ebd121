"""A run's typed configuration. A recipe returns one; the command line and Ray Tune override its fields by name."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field
from typing import Any, Literal

from udaseg.errors import ConfigError
from udaseg.types import Blend, Domain, HeadName, NetworkRole, PerDomain


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser of a stage. The learning rate is a pure function of the step."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: float = 2.5e-4
    """Base learning rate, of the backbone."""
    head_lr_factor: float = 10.0
    """Head learning rate / base learning rate."""
    momentum: float = 0.9
    """Of SGD."""
    weight_decay: float = 5e-4
    decay_vectors: bool = True
    """Whether biases, scales and shifts of norms, and position embeddings decay too."""
    undecayed: tuple[str, ...] = ()
    """Parts of names: parameters whose name has one do not decay. ("norm",) in DAFormer and its line."""
    power: float = 0.9
    """lr * (1 - step / horizon) ** power."""
    horizon: float = 1.0
    """The step at which the learning rate would reach 0, in units of the stage's steps; >= 1."""
    warmup_steps: int = 0
    """Steps of linear warm-up."""
    warmup_start: float | None = None
    """Factor of the first step's rate, in [0, 1]; None = 1 / (warmup_steps + 1). DAFormer and its line have 1e-6."""
    clip: float = 0.0
    """Largest norm of the averaged gradient; 0 = not clipped."""

    def lr_factor(self, step: int, total_steps: int) -> float:
        """What every learning rate is multiplied with at `step` in [0, total_steps)."""
        decay = (1 - step / (total_steps * self.horizon)) ** self.power
        if step >= self.warmup_steps:
            return decay
        if self.warmup_start is None:
            return decay * min(1.0, (step + 1) / (self.warmup_steps + 1))
        return decay * (self.warmup_start + (1 - self.warmup_start) * step / self.warmup_steps)


@dataclass(frozen=True, kw_only=True)
class Model:
    """The network; see `udaseg.models.build.build_segmenter`."""

    backbone: str = "resnet101"
    """A timm model name, or mit_b0 ... mit_b5."""
    pretrained: bool = False
    """Fetch the backbone's weights from the hub."""
    weights: str | None = None
    """A local file of backbone weights in timm's key order."""
    same_padding: bool = False
    """TensorFlow-style padding, which weights converted from TensorFlow need."""
    input_size: tuple[int, int] | None = None
    """Height and width, for backbones such as Hiera that take images of one size alone."""
    output_stride: Literal[8, 16, 32] = 32
    head: HeadName = "multilevel"
    head_branches: tuple[int, ...] = (6, 12, 18, 24)
    """Dilations of the ASPP and context-aware heads."""
    head_channels: int = 64
    """Width of the heads but "aspp"."""
    projection: int = 0
    """Channels of the embedding's projection head; 0 = none."""
    per_domain: PerDomain = "nothing"
    """What source and target each have of their own."""
    frozen_norm_affine: bool = False
    """Keep the scale and shift of the backbone's batch norms."""
    drop_path: float = 0.0
    """Largest rate of stochastic depth in the backbone."""
    detail_crop: tuple[int, int] | None = None
    """Height and width of HRDA's detail crop; None = one resolution."""


DOMAIN_OF: dict[str, Domain] = {"source": "source", "target": "target", "template": "source", "rare": "source"}
"""The streams that a method can read, and the domain that each draws from."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How the images of one domain are drawn."""

    labels: Literal["true", "pseudo", "soft", "none"]
    """Which labels the stage reads. True labels of a target are read by oracles alone; "soft" are pseudo-labels whose
    pixels weigh as much in the cross-entropy as they are certain."""
    sampling: Literal["uniform", "rare_class"] = "uniform"
    rare_temperature: float = 0.01
    """T of rare-class sampling, P(c) ~ exp((1 - f_c) / T)."""
    rare_min_pixels: int = 3000
    """Pixels of the drawn class that an image must have."""
    rare_min_crop_pixels: int = 1500
    """Pixels of the drawn class that a crop should have; redrawn at most ten times."""
    short_side: int | None = None
    """Pixels of an image's short side after the resize, where it is not the stage's `data.short_side`."""
    max_class_share: float = 1.0
    """Below 1 a crop is redrawn, at most nine times, until it shows two classes or more and none holds as large a share
    of its labelled pixels as this; 0.75 in DAFormer and its line (`cat_max_ratio`). Needs labels."""
    jitter: float = 0.0
    """Strength of colour jitter on four of five images, 0 to 0.5."""
    blur: float = 0.0
    """Probability of a Gaussian blur."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a stage streams. Resize and crop happen in Ray Data, flip and rotation on the device."""

    batch_size: int = 2
    """Samples a step over all workers; a sample holds one image of each stream."""
    group_size: int = 1
    """Consecutive samples that a method couples; a worker holds whole groups."""
    short_side: int = 720
    """Pixels of an image's short side after the resize, in evaluation too."""
    scale: tuple[float, float] = (1.0, 1.0)
    """Range of the random factor on `short_side`."""
    crop: tuple[int, int] = (512, 512)
    """Height and width in pixels."""
    flip: float = 0.5
    """Probability of a horizontal flip."""
    rotation: float = 0.0
    """Largest random rotation in degrees."""
    source: Stream | None = field(default_factory=lambda: Stream(labels="true"))
    target: Stream | None = field(default_factory=lambda: Stream(labels="none"))
    template: Stream | None = None
    """A second image of the source, which methods paste from."""
    rare: Stream | None = None
    """A third image of the source, drawn for its rare classes."""

    def streams(self) -> dict[str, Stream]:
        """The streams that are on, by name."""
        named = {name: getattr(self, name) for name in DOMAIN_OF}
        return {name: stream for name, stream in named.items() if stream is not None}

    def domains(self) -> list[Domain]:
        """The domains that the streams draw from."""
        return list(dict.fromkeys(DOMAIN_OF[name] for name in self.streams()))


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """How the target's training images are labelled before a stage, by the network that the stage starts from."""

    share: float = 0.1
    """Most certain share of each class that is kept, in [0, 1]; 0 = that of each image alone."""
    cap: float = 1.0
    """Confidence from which a pixel is kept whatever the share, in (0, 1]."""
    image_share: float = 0.1
    """Most certain share of each image that is kept whatever its class, in [0, 1]."""
    rule: Literal["top1", "any_class", "fixed", "soft"] = "top1"
    """"top1": the union of both shares. "any_class": the authors' union, which predicts a second time, see
    `udaseg.components.thresholds.union_pseudo_label`. "fixed": what reaches `threshold`. "soft": all, beside its
    confidence."""
    threshold: float = 0.9
    """Of the rule "fixed", in [0, 1]."""
    measure: Literal["confidence", "entropy", "prototype"] = "confidence"
    """How certain a pixel is: its largest probability; 1 - its entropy over the largest possible; or its probability
    of the nearest source prototype, which then is its class too."""
    temperature: float = 0.1
    """Of the cosines to the prototypes, > 0."""
    rare_class: Literal["keep_top", "keep_all"] = "keep_top"
    """See `udaseg.components.thresholds.class_balanced_thresholds`."""
    by: str | None = None
    """Earlier stage, or model directory, whose network labels; None = the one that the stage starts from."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        unit = {name: getattr(self, name) for name in ("share", "image_share", "threshold")}
        for name, value in unit.items():
            if not 0 <= value <= 1:
                raise ConfigError(f"{name} is {value}; it must lie in [0, 1]")
        if not 0 < self.cap <= 1:
            raise ConfigError(f"cap is {self.cap}; it must lie in (0, 1]")
        if self.temperature <= 0:
            raise ConfigError(f"temperature is {self.temperature}; it must be above 0")
        if self.rule == "any_class" and self.measure == "entropy":
            raise ConfigError("rule any_class looks at probabilities, of which entropy is none; use top1 or fixed")


def has_gpu() -> bool:
    """Whether torch finds a GPU. Where the system shows none it is not asked: loading it takes seconds."""
    devices = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")  # CUDA, CUDA under Windows' Linux, ROCm
    if sys.platform == "linux" and "torch" not in sys.modules and not any(map(os.path.exists, devices)):
        return False
    import torch

    return torch.cuda.is_available()


@dataclass(frozen=True, kw_only=True)
class Inference:
    """How images are predicted."""

    window: tuple[int, int] | None = None
    """Height and width of sliding windows in pixels; None = whole images."""
    overlap: float = 0.5
    """Share of a window that the next one covers again."""
    blend: Blend = "mean"
    """How windows that overlap are averaged: all alike, or tapered toward their edges."""
    scales: tuple[float, ...] = (1.0,)
    """Factors on the size that the network was trained at; probabilities are averaged over them."""
    flip: bool = False
    """Average over the mirrored image too."""
    domain: Domain = "target"
    """Which domain's own parts of the network are used, where it has such."""
    network: NetworkRole = "predictor"
    """What of a run's checkpoint predicts; a model directory has its predictor alone, mostly the teacher."""
    batch_size: int = 1
    """Images of one size that are predicted together."""
    actors: int | None = None
    """Processes that predict; None = one on a GPU, else as many as this machine has cores, up to 4."""
    min_actors: int | None = None
    """Begin with as few processes as this and add others while there is work for them; None = `actors`, or 1."""
    gpu: bool = field(default_factory=has_gpu)
    """One GPU an actor."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        if not 0 <= self.overlap < 1:
            raise ConfigError(f"overlap is {self.overlap}; it must lie in [0, 1)")
        if self.window is not None and min(self.window) < 1:
            raise ConfigError(f"window is {self.window}; both sides must be at least 1")
        if not self.scales or min(self.scales) <= 0:
            raise ConfigError(f"scales are {self.scales}; there must be one, and all above 0")
        if self.batch_size < 1:
            raise ConfigError(f"batch_size is {self.batch_size}; it must be at least 1")
        least = 1 if self.min_actors is None else self.min_actors
        if least < 1 or (self.actors is not None and self.actors < least):
            raise ConfigError(f"min_actors is {self.min_actors}, actors {self.actors}: 1 <= min_actors <= actors")

    def views(self) -> dict[str, Any]:
        """The arguments of `udaseg.models.inference.predict` that these are."""
        return {name: getattr(self, name) for name in ("window", "overlap", "blend", "scales", "flip", "domain")}


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a recipe."""

    name: str
    method: Any
    """A method's Config."""
    steps: int
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    init_from: str | None = None
    """An earlier stage's name, or the path or URI of a model directory; None = from the backbone's weights."""
    pseudo_label: PseudoLabel | None = None
    """Label the target anew before this stage."""


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a run does, as one value."""

    name: str
    stages: tuple[Stage, ...]
    seed: int = 0
    checkpoint_every: int = 500
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: int = 3
    """How many checkpoints of a stage are kept."""
    log_every: int = 10
    """Steps between lines of metrics."""
    bf16: bool = False
    """Autocast networks to bfloat16."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where the recipe contradicts itself."""
        if not self.stages:
            raise ConfigError("stages: a recipe has at least one")
        names = [stage.name for stage in self.stages]
        for i, stage in enumerate(self.stages):
            where = f"stages.{i}"
            positive = {
                "steps": stage.steps,
                "data.batch_size": stage.data.batch_size,
                "data.group_size": stage.data.group_size,
            }
            for name, value in positive.items():
                if value < 1:
                    raise ConfigError(f"{where}.{name} is {value}; it must be at least 1")
            if names.count(stage.name) > 1 or not stage.name.replace("-", "").replace("_", "").isalnum():
                raise ConfigError(f"{where}.name {stage.name!r} must be unique, of letters, digits, - and _")
            if stage.data.batch_size % stage.data.group_size:
                raise ConfigError(
                    f"{where}.data.batch_size {stage.data.batch_size} is no multiple of "
                    f"group_size {stage.data.group_size}"
                )
            if stage.optim.horizon < 1:
                raise ConfigError(f"{where}.optim.horizon is {stage.optim.horizon}; it must be at least 1")
            low, high = stage.data.scale
            if not 0 < low <= high:
                raise ConfigError(f"{where}.data.scale is {stage.data.scale}; it must be 0 < low <= high")
            if not stage.data.streams():
                raise ConfigError(f"{where}.data has neither a source nor a target")
            own_group = getattr(stage.method, "group_size", stage.data.group_size)
            if stage.data.group_size != own_group:
                raise ConfigError(
                    f"{where}.data.group_size is {stage.data.group_size}, but method.group_size {own_group}: "
                    "the method couples samples, so both must be equal"
                )
            pseudo = [name for name, stream in stage.data.streams().items() if stream.labels in ("pseudo", "soft")]
            if stage.pseudo_label is not None and stage.init_from is None and stage.pseudo_label.by is None:
                raise ConfigError(f"{where}.pseudo_label needs init_from, or by: the network that labels")
            if stage.pseudo_label is not None:
                try:
                    stage.pseudo_label.check()
                except ConfigError as error:
                    raise ConfigError(f"{where}.pseudo_label.{error}") from None
            if stage.pseudo_label is not None and "target" not in pseudo:
                raise ConfigError(f'{where}.pseudo_label is set, but data.target.labels is neither "pseudo" nor "soft"')
            for name, stream in stage.data.streams().items():
                if stream.sampling == "rare_class" and stream.labels == "none":
                    raise ConfigError(f"{where}.data.{name}.sampling is rare_class, which needs labels")
        if self.checkpoint_every < 1 or self.keep_checkpoints < 1 or self.log_every < 1:
            raise ConfigError("checkpoint_every, keep_checkpoints and log_every must be at least 1")
