"""How a job predicts and what it takes from the cluster, what a sweep or an adaptation is told; typed, without Ray."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from udaseg.config import Recipe
from udaseg.errors import ConfigError
from udaseg.extras import require_extra
from udaseg.ranges import Count, CountOrZero, Pixels, Positive, Range, check_numbers, naming
from udaseg.types import Blend, DepthRange, Domain, NetworkRole

TrackerName = Literal["mlflow", "wandb"]


def check_trackers(names: Sequence[TrackerName]) -> None:
    """Raise ConfigError where a tracker's library is not installed."""
    for name in names:
        require_extra(name, f"--track {name}")


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

    window: tuple[Pixels, Pixels] | None = None
    """Height and width of sliding windows in pixels, best as the crops in training or multiples of 32; None = the
    model's own, which HRDA's networks and some imported ones have, else whole images."""
    overlap: Annotated[float, Range(0, 1, "[)")] | None = None
    """Share of a window that the next one covers again; None = the model's own, mostly 0.5."""
    blend: Blend = "mean"
    """How windows that overlap are averaged: all alike, or tapered toward their edges."""
    scales: tuple[Annotated[float, Range(0, 16, "(]")], ...] = (1.0,)
    """Factors on the size that the network was trained at; probabilities are averaged over them."""
    flip: bool = False
    """Average over the mirrored image too."""
    domain: Domain = "target"
    """Which domain's own parts of the network are used, where it has such."""
    network: NetworkRole = "predictor"
    """What of a run's checkpoint predicts; a model directory has its predictor alone, mostly the teacher."""
    batch_size: Count = 1
    """Images of one size that are predicted together."""
    actors: Count | None = None
    """Processes that predict; None = one on a GPU, else as many as this machine has cores, up to 4."""
    min_actors: Count | None = None
    """Begin with as few processes as this and add others while there is work for them; None = `actors`, or 1."""
    gpu: bool = field(default_factory=has_gpu)
    """One GPU an actor."""

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        check_numbers(self)
        if not self.scales:
            raise ConfigError("scales is empty; there must be one at least, e.g. 1")
        if self.min_actors is not None and self.actors is not None and self.actors < self.min_actors:
            raise ConfigError(f"min_actors is {self.min_actors}; it must not be above actors, {self.actors}")

    def views(self) -> dict[str, Any]:
        """The arguments of `udaseg.models.inference.predict` that these are."""
        return {name: getattr(self, name) for name in ("window", "overlap", "blend", "scales", "flip", "domain")}


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes from the cluster."""

    workers: Annotated[int, Range(1, 100_000)] = 1
    """Training workers; the global batch stays as it is and is split among them."""
    min_workers: Count | None = None
    """Elastic: go on with as few as this while more cannot be had; None = always `workers`. Results then depend on how
    many there were where batch norm normalises per worker (`sync_batch_norm`), but not which samples make a step."""
    gpu: bool = field(default_factory=has_gpu)
    """One GPU a worker."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray sets aside for a worker; data tasks need some beside them."""
    threads: CountOrZero = 0
    """Threads of torch in a worker on the CPU; 0 = the cores of its machine, shared with the run's others there. Side
    by side, in sweeps and `udaseg adapt`, it is the cores of the machine that the command runs on that all share."""
    tf32: bool = True
    """On a GPU, single-precision matrix products and convolutions keep 10 bits of their factors' mantissas and add up
    in 23, several times as fast from Ampere on; off where a GPU is to be compared with a CPU."""
    cudnn_benchmark: bool = True
    """On a GPU, cuDNN times its convolutions at each new shape and keeps the fastest: crops have few shapes. Off where
    two runs are to have the same bits."""
    channels_last: bool = True
    """Weights of convolutions lie with their channels innermost, as images come: tensor cores and a CPU's vector units
    read them so without reordering."""
    compile: bool = False
    """Compile backbone and head by `torch.compile`, each shape for itself: the first steps take minutes, and what is
    dropped out is drawn otherwise. Evaluation, whose images have many shapes, is never compiled."""
    grad_checkpointing: bool = False
    """Blocks of a backbone keep for the backward pass what goes into them alone and compute the rest a second time:
    less memory, about a third more time, the same results. For backbones without batch norms in their blocks."""
    sync_batch_norm: bool | None = None
    """Batch norms in training normalise over all workers' samples, so that their number changes no result; None = on
    GPUs. A CPU cannot: there each worker normalises its own, and running statistics are averaged."""
    bf16_gradients: bool = False
    """Workers exchange gradients in bfloat16, which halves what crosses the network and rounds them to 8 bits."""
    max_failures: CountOrZero = 3
    """How many losses of a worker a stage survives, and beside them how many of nodes that gave notice."""
    wait: Positive = 60.0
    """Seconds that missing workers are waited for; where a cluster grows on demand, longer than a machine boots."""

    @property
    def fewest(self) -> int:
        """The least workers that training goes on with."""
        return self.workers if self.min_workers is None else self.min_workers

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        with naming("cluster"):
            check_numbers(self)
            if self.sync_batch_norm and not self.gpu:
                raise ConfigError("sync_batch_norm is on, which torch has for GPUs alone; leave it out, or use gpu")
            if self.fewest > self.workers:
                raise ConfigError(f"min_workers is {self.fewest}; it must not be above workers, {self.workers}")


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """What a sweep is told, beside its space."""

    recipe: Recipe
    out: str
    """Directory of the sweep, a path or URI that every node can write."""
    target: str
    """Dataset directory of target images."""
    source: str | None = None
    """Dataset directory of labelled source images."""
    metric: Literal["miou", "entropy", "information", "agreement", "snd"]
    """What trials are ranked by; all but miou need no labels. See `udaseg.evaluation.model_selection`."""
    trials: Count = 16
    """How many values are tried."""
    search: Literal["optuna", "random"] = "optuna"
    """How the next values are chosen."""
    scheduler: Literal["asha", "none"] = "asha"
    """asha stops the worse two thirds of the trials early, none nothing."""
    split: str = "val"
    """Split of the target that checkpoints are scored on."""
    images: Count = 200
    """Most images that a checkpoint is scored on."""
    window: tuple[Pixels, Pixels] | None = None
    """Height and width of sliding windows in pixels; None = as `udaseg evaluate` does."""
    concurrent: CountOrZero = 0
    """Trials at a time; 0 = as many as the cluster's CPUs and GPUs hold."""
    resume: bool = False
    """Go on with the sweep in --out."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that every trial is shown to."""
    cluster: Cluster = field(default_factory=Cluster)

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        self.recipe.check()
        self.cluster.check()
        check_trackers(self.track)
        check_numbers(self)


@dataclass(frozen=True, kw_only=True)
class Adapt:
    """What an adaptation is told. What is None is chosen, see `udaseg.jobs.adapt.choice.choose`."""

    out: str
    """Directory of the adaptation, a path or URI that every node can write."""
    target: str
    """Dataset directory of target images, or a bare folder of them."""
    source: str | None = None
    """Dataset directory of labelled source images, or a bare folder with images/ and labels/."""
    checkpoint: str | None = None
    """Model directory to adapt in place of a warm start on the source; without a source it is adapted without one."""
    classes: str | None = None
    """classes.json of bare folders, where they hold none; or cityscapes or cityscapes_train_ids, as of prepare."""
    depth_range: DepthRange | None = None
    """LOW and HIGH of bare folders' images of one band and more than 8 bits, which become black and white; None = that
    of the checkpoint."""
    candidates: tuple[str, ...] = ()
    """Recipes that are tried, as dacs for dacs_small; () = the recommended one."""
    backbone: str | None = None
    """A timm model name; None = resnet101 on a GPU of 16 GB or more, resnet50 of 6, else mobilenetv2_100, or without
    weights a smaller one."""
    pretrained: bool = True
    """Begin with ImageNet's weights where the hub can be reached."""
    weights: str | None = None
    """A local file of backbone weights in timm's key order, in place of the hub's."""
    same_padding: bool = False
    """TensorFlow-style padding, which weights converted from TensorFlow need."""
    short_side: Pixels | None = None
    """Pixels of an image's short side that the network sees; None = the images' own, at most 720, 512 or 240 by the
    machine."""
    crop: tuple[Pixels, Pixels] | None = None
    """Height and width of training crops in pixels; None = three quarters of an image's sides."""
    batch_size: Count | None = None
    """Samples a step over all workers; None = 2 to 8, by the machine."""
    lr: Positive | None = None
    """Learning rate of the backbone, by AdamW; None = that of the backbone, 3e-4 for mobilenetv2_100."""
    warm_steps: Count | None = None
    """Steps of the warm start on the source; None = 300 or 800 on a CPU, 5,000 or 10,000 on a GPU, or 100
    passes."""
    steps: Count | None = None
    """Steps of the adaptation, and of the source-only network that it is compared with; None = 600 or 800 on a
    CPU, 10,000 or 20,000 on a GPU, or 100 passes."""
    images: Count = 200
    """Most held-out images of a domain that networks are judged on."""
    seed: Annotated[int, Range(0, 2**63 - 1)] = 0
    resume: bool = False
    """Go on with the adaptation in --out."""
    track: tuple[TrackerName, ...] = ()
    """Trackers that every run is shown to."""
    cluster: Cluster = field(default_factory=Cluster)

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range or two contradict each other."""
        self.cluster.check()
        check_trackers(self.track)
        check_numbers(self)
        if self.source is None and self.checkpoint is None:
            raise ConfigError("give --source, labelled images, or --from, a model directory to adapt without a source")
        if self.checkpoint is not None and (self.backbone or self.weights or self.warm_steps):
            raise ConfigError("--backbone, --weights and --warm-steps are of a warm start, which --from replaces")
