"""What a job takes from the cluster, and what a sweep is told; typed, and without Ray or torch."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Literal

from udaseg.config import Recipe, has_gpu
from udaseg.errors import ConfigError
from udaseg.ranges import Count, CountOrZero, Pixels, Positive, Range, check_numbers, naming


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes from the cluster."""

    workers: Annotated[int, Range(1, 100_000)] = 1
    """Training workers; the global batch stays as it is and is split among them."""
    min_workers: Count | None = None
    """Elastic: go on with as few as this while more cannot be had; None = always `workers`. Results then depend on how
    many there were, since batch norm normalises per worker, but not which samples make a step."""
    gpu: bool = field(default_factory=has_gpu)
    """One GPU a worker."""
    cpus_per_worker: Positive = 1.0
    """CPUs that Ray sets aside for a worker; data tasks need some beside them."""
    threads: CountOrZero = 0
    """Threads of torch in a worker on the CPU; 0 = the machine's cores shared among the workers."""
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
    """Height and width of sliding windows in pixels; None = whole images."""
    concurrent: CountOrZero = 0
    """Trials at a time; 0 = as many as the cluster's CPUs and GPUs hold."""
    resume: bool = False
    """Go on with the sweep in --out."""
    cluster: Cluster = field(default_factory=Cluster)

    def check(self) -> None:
        """Raise ConfigError, naming the field, where a number lies outside its range."""
        self.recipe.check()
        self.cluster.check()
        check_numbers(self)
