"""A run's typed configuration. A recipe returns one; the command line and Ray Tune override its fields by name."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from udaseg.errors import ConfigError
from udaseg.ranges import (
    Channels,
    Count,
    CountOrZero,
    Jitter,
    Momentum,
    NonNegative,
    Pixels,
    Positive,
    Range,
    Share,
    check_numbers,
    naming,
)
from udaseg.types import DOMAIN_OF, Domain, HeadInit, HeadName, InputForm, PerDomain, Resample, Sampling


@dataclass(frozen=True, kw_only=True)
class Optim:
    """The optimiser of a stage. The learning rate is a pure function of the step."""

    name: Literal["sgd", "adamw"] = "sgd"
    lr: Positive = 2.5e-4
    """Base learning rate, of the backbone."""
    head_lr_factor: NonNegative = 10.0
    """Head learning rate / base learning rate."""
    momentum: Momentum = 0.9
    """Of SGD."""
    weight_decay: NonNegative = 5e-4
    decay_vectors: bool = True
    """Whether biases, scales and shifts of norms, and position embeddings decay too."""
    undecayed: tuple[str, ...] = ()
    """Parts of names: parameters whose name has one do not decay. ("norm",) in DAFormer and its line."""
    power: NonNegative = 0.9
    """lr * (1 - step / horizon) ** power."""
    horizon: Annotated[float, Range(1)] = 1.0
    """The step at which the learning rate would reach 0, in units of the stage's steps; >= 1."""
    warmup_steps: CountOrZero = 0
    """Steps of linear warm-up."""
    warmup_start: Share | None = None
    """Factor of the first step's rate, in [0, 1]; None = 1 / (warmup_steps + 1). DAFormer and its line have 1e-6."""
    clip: NonNegative = 0.0
    """Largest norm of the averaged gradient; 0 = not clipped."""
    fused: bool | None = None
    """Whether one kernel updates all parameters, which also skips a step that is not finite without asking the host;
    None = on a GPU. The sums are the same in another order, so that results differ in the last bits."""

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
    input_size: tuple[Pixels, Pixels] | None = None
    """Height and width, for backbones such as Hiera that take images of one size alone."""
    output_stride: Literal[8, 16, 32] = 32
    caffe: bool = False
    """A ResNet's graph as Caffe's weights need it: see `udaseg.models.build.build_segmenter`."""
    input_form: InputForm = "imagenet"
    """"imagenet": less mean, over standard deviation, as the backbone's weights have it. "caffe": BGR of 0
    to 255 less Caffe's mean. "unit": 0 to 1 as it is."""
    align_corners: bool = False
    """Whether logits are upsampled with the corners of image and map aligned, as ADVENT's line does."""
    head: HeadName = "multilevel"
    head_branches: tuple[Count, ...] = (6, 12, 18, 24)
    """Dilations of the heads but "multilevel"."""
    head_channels: Channels = 64
    """Width of the heads but "aspp"."""
    head_norm: bool = False
    """A batch norm before the head "aspp_gn", as ProDA's second and third stage have it."""
    embedding_after_dropout: bool = False
    """Whether the embedding of the head "aspp_gn" is what its dropout has left, as ProDA's prototypes are made of."""
    head_init: HeadInit = "torch"
    """How the head's first weights are drawn: see `udaseg.models.heads.draw`."""
    head_pair: bool = False
    """Two such heads, whose logits are added, as CLAN has them."""
    projection: Annotated[int, Range(0, 2**13)] = 0
    """Channels of the embedding's projection head; 0 = none."""
    per_domain: PerDomain = "nothing"
    """What source and target each have of their own."""
    frozen_norm_affine: bool = False
    """Keep the scale and shift of the backbone's batch norms."""
    drop_path: Annotated[float, Range(0, 1, "[)")] = 0.0
    """Largest rate of stochastic depth in the backbone."""
    detail_crop: tuple[Pixels, Pixels] | None = None
    """Height and width of HRDA's detail crop; None = one resolution."""


@dataclass(frozen=True, kw_only=True)
class Stream:
    """How the images of one domain are drawn."""

    labels: Literal["true", "pseudo", "soft", "distribution", "candidates", "none"]
    """A target's true ones are read by oracles and `fewshot` alone. "soft": pseudo-labels that weigh as much as they
    are certain; "distribution": with all classes' probabilities; "candidates": true, with all that a mapping allows."""
    sampling: Sampling = "uniform"
    rare_temperature: Positive = 0.01
    """T of "rare_class", P(c) ~ exp((1 - f_c) / T); "class_balanced" is `DatasetIndex.balanced_classes`."""
    rare_min_pixels: CountOrZero = 3000
    """Pixels of the drawn class that an image must have."""
    rare_classes: tuple[int, ...] = ()
    """Train ids of the classes that are drawn; () = all."""
    rare_min_crop_pixels: CountOrZero = 1500
    """Pixels of the drawn class that a crop should have; redrawn at most nine times."""
    short_side: Pixels | None = None
    """Pixels of an image's short side after the resize, where it is not the stage's `data.short_side`."""
    crop: tuple[Pixels, Pixels] | None = None
    """Height and width in pixels, where they are not those of the stage's `data.crop`."""
    resample: Resample | None = None
    """How images are resized, where it is not the stage's `data.resample`."""
    max_class_share: Annotated[float, Range(0, 1, "(]")] = 1.0
    """Below 1 a crop is redrawn, at most nine times, until it shows two classes or more and none holds as large a share
    of its labelled pixels as this; 0.75 in DAFormer and its line (`cat_max_ratio`). Needs labels."""
    jitter: Jitter = 0.0
    """Strength of colour jitter, 0 to 0.5."""
    jitter_probability: Share = 0.8
    """Share of the images that are jittered."""
    hue: Jitter | None = None
    """Largest turn of the jitter's hue, 0.5 being half of the circle, where it is not its strength."""
    grey: Share = 0.0
    """Probability of an image to lose its colours."""
    blur: Share = 0.0
    """Probability of a Gaussian blur."""
    prior: bool = False
    """Whether each crop comes with how often the source's labels have each class at its place in the image."""


@dataclass(frozen=True, kw_only=True)
class Data:
    """What a stage streams. Resize and crop happen in Ray Data, flip and rotation on the device."""

    batch_size: Count = 2
    """Samples a step over all workers; a sample holds one image of each stream."""
    group_size: Count = 1
    """Consecutive samples that a method couples; a worker holds whole groups."""
    short_side: Pixels = 720
    """Pixels of an image's short side after the resize, in evaluation too."""
    resample: Resample = "antialias"
    """How images are resized, in evaluation too: see `udaseg.data.resampling.resample`."""
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    """Range of the random factor on `short_side`."""
    crop: tuple[Pixels, Pixels] = (512, 512)
    """Height and width in pixels."""
    flip: Share = 0.5
    """Probability of a horizontal flip."""
    rotation: Annotated[float, Range(0, 180)] = 0.0
    """Largest random rotation in degrees."""
    source: Stream | None = field(default_factory=lambda: Stream(labels="true"))
    target: Stream | None = field(default_factory=lambda: Stream(labels="none"))
    template: Stream | None = None
    """A second image of the source, which methods paste from."""
    rare: Stream | None = None
    """A third image of the source, drawn for its rare classes."""
    fewshot: Stream | None = None
    """A labelled image of the target, of its split "fewshot"."""

    def streams(self) -> dict[str, Stream]:
        """The streams that are on, by name."""
        named = {name: getattr(self, name) for name in DOMAIN_OF}
        return {name: stream for name, stream in named.items() if stream is not None}

    def domains(self) -> list[Domain]:
        """The domains that the streams draw from."""
        return list(dict.fromkeys(DOMAIN_OF[name] for name in self.streams()))

    def check(self) -> None:
        """Raise ConfigError, naming the field, where settings contradict one another."""
        if self.batch_size % self.group_size:
            raise ConfigError(f"batch_size {self.batch_size} is no multiple of group_size {self.group_size}")
        if self.scale[0] > self.scale[1]:
            raise ConfigError(f"scale is {self.scale}; it must be low, high")
        if not self.streams():
            raise ConfigError("source is off, and so is target: the stage would read neither")
        for name, stream in self.streams().items():
            if stream.sampling != "uniform" and stream.labels == "none":
                raise ConfigError(f"{name}.sampling is {stream.sampling}, which needs labels")
            if stream.max_class_share < 1 and stream.labels == "none":
                raise ConfigError(f"{name}.max_class_share is {stream.max_class_share}, which needs labels")
            planes = {"labels is distribution": stream.labels == "distribution", "prior is on": stream.prior}
            for what, on in planes.items():
                if on and self.rotation:
                    raise ConfigError(f"{name}.{what}, which is not rotated; set rotation to 0")
            if stream.prior and self.source is None:
                raise ConfigError(f"{name}.prior is of the source's labels, and source is off")


@dataclass(frozen=True, kw_only=True)
class PseudoLabel:
    """How the target's training images are labelled before a stage, by the network that the stage starts from."""

    share: Share = 0.1
    """Most certain share of each class that is kept, in [0, 1]; 0 = that of each image alone."""
    cap: Annotated[float, Range(0, 1, "(]")] = 1.0
    """Confidence from which a pixel is kept whatever the share, in (0, 1]."""
    image_share: Share = 0.1
    """Most certain share of each image that is kept whatever its class, in [0, 1]."""
    rule: Literal["top1", "any_class", "fixed", "soft"] = "top1"
    """"top1": the union of both shares. "any_class": the authors' union, which predicts twice, see `union_pseudo_label`
    of `udaseg.components.thresholds`. "fixed": what reaches `threshold`. "soft": all, beside its confidence."""
    threshold: Share = 0.9
    """Of the rule "fixed", in [0, 1]."""
    measure: Literal["confidence", "entropy", "prototype"] = "confidence"
    """How certain a pixel is: its largest probability; 1 - its entropy over the largest possible; or its probability
    of the nearest source prototype, which then is its class too."""
    temperature: Positive = 0.1
    """Of the cosines to the prototypes, > 0."""
    rare_class: Literal["keep_top", "keep_all"] = "keep_top"
    """See `udaseg.components.thresholds.class_balanced_thresholds`."""
    distribution: bool = False
    """Store all classes' probabilities too, at an eighth of the image's size, for the labels "distribution"."""
    flip: bool = False
    """Average over the mirrored image too, as `inference.flip` does; for the labelling between stages."""
    by: str | None = None
    """Earlier stage, or model directory, whose network labels; None = the one that the stage starts from."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        check_numbers(self)
        if self.rule == "any_class" and self.measure == "entropy":
            raise ConfigError("measure is entropy, but rule any_class looks at probabilities; use rule top1 or fixed")


DEFAULT_RULES = PseudoLabel(share=0.5, cap=0.9, image_share=0.0)
"""What `udaseg pseudo-label` keeps where it is not told: the more certain half of each class, and what reaches 0.9."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One training run of a recipe."""

    name: str
    method: Any
    """A method's Config, which is a `udaseg.methods.base.MethodConfig`."""
    steps: Count
    model: Model = field(default_factory=Model)
    data: Data = field(default_factory=Data)
    optim: Optim = field(default_factory=Optim)
    init_from: str | None = None
    """An earlier stage's name, or the path or URI of a model directory; None = from the backbone's weights."""
    pseudo_label: PseudoLabel | None = None
    """Label the target anew before this stage."""
    translated_by: str | None = None
    """An earlier stage that learns to translate: before this one, its generator gives the source the target's look."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where settings contradict one another."""
        if not self.name.replace("-", "").replace("_", "").isalnum() or len(self.name) > 60:
            raise ConfigError(f"name is {self.name!r}; it must be of letters, digits, - and _, 60 at most")
        with naming("data"):
            self.data.check()
        own_group = self.method.group_size
        if own_group not in (None, self.data.group_size):
            raise ConfigError(
                f"data.group_size is {self.data.group_size}, but method.group_size {own_group}: "
                "the method couples samples, so both must be equal"
            )
        have = {name for name, stream in self.data.streams().items() if stream.labels == "candidates"}
        wanted = {"source"} if self.method.reads_candidates else set()
        if unread := have - wanted:
            raise ConfigError(f'data.{min(unread)}.labels is "candidates", which this method does not read')
        if wanted - have:
            raise ConfigError('data.source.labels must be "candidates", which this method reads')
        if self.translated_by is not None and self.data.source is None:
            raise ConfigError("translated_by is set, but data.source is off")
        for name, stream in self.data.streams().items():
            if self.translated_by is not None and stream.prior:
                raise ConfigError(f"translated_by is set, but a translated source has no prior for data.{name}.prior")
        if self.pseudo_label is None:
            return
        with naming("pseudo_label"):
            self.pseudo_label.check()
        if self.init_from is None and self.pseudo_label.by is None:
            raise ConfigError("pseudo_label needs init_from, or by: the network that labels")
        if self.data.target is None or self.data.target.labels not in ("pseudo", "soft", "distribution"):
            raise ConfigError('pseudo_label is set; data.target.labels must be "pseudo", "soft" or "distribution"')
        if self.data.target.labels == "distribution" and not self.pseudo_label.distribution:
            raise ConfigError('data.target.labels is "distribution": set pseudo_label.distribution, which stores it')
        if self.data.fewshot is not None:
            raise ConfigError("pseudo_label and data.fewshot are set: the labels of a round hold no few-shot images")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """All that a run does, as one value."""

    name: str
    stages: tuple[Stage, ...]
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    checkpoint_every: Count = 500
    """Steps between checkpoints; the last step always has one."""
    keep_checkpoints: Count = 3
    """How many checkpoints of a stage are kept."""
    log_every: Count = 10
    """Steps between lines of metrics."""
    bf16: bool = False
    """Autocast networks to bfloat16: on a GPU with tensor cores twice the speed of TF32 and half the activations'
    memory. Off but where the paper's authors have it so, as it moves results; losses stay in single precision."""

    def domains(self) -> set[Domain]:
        """The domains that its stages draw from."""
        return {domain for stage in self.stages for domain in stage.data.domains()}

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number is out of range or the recipe contradicts itself."""
        if not self.stages:
            raise ConfigError("stages: a recipe has at least one")
        check_numbers(self)
        names = [stage.name for stage in self.stages]
        for i, stage in enumerate(self.stages):
            with naming(f"stages.{i}"):
                stage.check()
                if stage.name in names[:i]:
                    raise ConfigError(f"name is {stage.name!r}, as that of an earlier stage; names must be unique")
                able = [other.name for other in self.stages[:i] if other.method.translates]
                if stage.translated_by is not None and stage.translated_by not in able:
                    raise ConfigError(
                        f"translated_by is {stage.translated_by!r}; it must name an earlier stage that learns to "
                        f"translate, of which there is {' and '.join(able) or 'none'}"
                    )
