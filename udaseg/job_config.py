"""What a job takes from the cluster, and what a sweep is told; typed, and without Ray or torch."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, kw_only=True)
class Cluster:
    """What a run takes from the cluster."""

    workers: int = 1
    """Training workers; the global batch stays as it is and is split among them."""
    min_workers: int | None = None
    """Elastic: go on with as few as this while more cannot be had; None = always `workers`. Results then depend on how
    many there were, since batch norm normalises per worker, but not which samples make a step."""
    gpu: bool = torch.cuda.is_available()
    """One GPU a worker."""
    cpus_per_worker: float = 1.0
    """CPUs that Ray sets aside for a worker; data tasks need some beside them."""
    threads: int = 0
    """Threads of torch in a worker on the CPU; 0 = the machine's cores shared among the workers."""
    max_failures: int = 3
    """How many losses of a worker a stage survives, and beside them how many of nodes that gave notice."""
    wait: float = 60.0
    """Seconds that missing workers are waited for; where a cluster grows on demand, longer than a machine boots."""

    @property
    def fewest(self) -> int:
        """The least workers that training goes on with."""
        return self.workers if self.min_workers is None else self.min_workers
