"""What the ranks of a run tell each other. Without a process group every function is the identity of one rank.

The loop *averages* gradients over ranks, so a loss that divides by `mean_over_ranks(count)` has exactly the gradient of
one process that holds the joined batch.
"""

from __future__ import annotations

import torch
import torch.distributed as torch_dist
from torch import Tensor, nn


def world_size() -> int:
    """Number of ranks; 1 where no process group exists."""
    return torch_dist.get_world_size() if torch_dist.is_available() and torch_dist.is_initialized() else 1


def rank() -> int:
    """This process's rank; 0 where no process group exists."""
    return torch_dist.get_rank() if world_size() > 1 else 0


def sum_over_ranks(value: Tensor) -> Tensor:
    """The sum of a detached copy of `value` over all ranks (no gradient flows)."""
    total = value.detach().clone()
    if world_size() > 1:
        torch_dist.all_reduce(total)
    return total


def mean_over_ranks(value: Tensor) -> Tensor:
    """The mean of a detached copy of `value` over all ranks: what a rank's loss sum is divided by."""
    return sum_over_ranks(value) / world_size()


def all_samples(value: Tensor) -> Tensor:
    """(B, ...) of all ranks one after another, which is the samples' order; each rank has B (no gradient flows)."""
    slots = value.detach().new_zeros(world_size(), *value.shape)
    slots[rank()] = value.detach()
    return sum_over_ranks(slots).flatten(0, 1)


def joined_mean(value: Tensor) -> Tensor:
    """The mean of `value` over all ranks, in place of a rank's own where a loss is no sum over samples.

    Its gradient is that of the rank's own value, so that the average over ranks is the gradient of the mean.
    """
    return value + (mean_over_ranks(value) - value).detach()


def _average_flat(tensors: list[Tensor]) -> None:
    """Average tensors in place over ranks, one all-reduce per (dtype, device)."""
    kinds: dict[tuple[torch.dtype, torch.device], list[Tensor]] = {}
    for tensor in tensors:
        kinds.setdefault((tensor.dtype, tensor.device), []).append(tensor)
    for group in kinds.values():
        flat = torch.cat([tensor.reshape(-1) for tensor in group])
        torch_dist.all_reduce(flat)
        flat /= world_size()
        for tensor, mean in zip(group, flat.split([t.numel() for t in group]), strict=True):
            tensor.copy_(mean.view_as(tensor))


def average_batch_norm(module: nn.Module) -> None:
    """Average the running mean and variance of every batch norm over ranks, which normalise their own batches.

    They are found by name, since those that a network keeps per domain do not lie in a batch norm.
    """
    if world_size() == 1:
        return
    if statistics := [b for name, b in module.named_buffers() if name.endswith(("running_mean", "running_var"))]:
        _average_flat(statistics)
