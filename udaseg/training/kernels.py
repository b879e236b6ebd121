"""How the networks of a run compute on a device: settings of `udaseg.job_config.Cluster` that change no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn

from udaseg.distributed import world_size
from udaseg.job_config import Cluster
from udaseg.models.segmenter import Segmenter


def set_precision(cluster: Cluster, device: torch.device) -> None:
    """TF32 and cuDNN's choice of algorithms, for this process; nothing on a CPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if cluster.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = cluster.tf32
        torch.backends.cudnn.benchmark = cluster.cudnn_benchmark


def prepare(method: nn.Module, cluster: Cluster, device: torch.device) -> None:
    """Batch norms over all ranks and compiled networks, where they are asked for, in place."""
    over_ranks = device.type == "cuda" if cluster.sync_batch_norm is None else cluster.sync_batch_norm
    if over_ranks and world_size() > 1:
        convert_sync_batchnorm(method)  # timm's, which knows batch norms that hold an activation
    if cluster.compile:
        compile_networks(method)


def compile_networks(method: nn.Module, backend: str | Callable[..., Any] = "inductor") -> None:
    """Compile backbone and head of every network of a method, each shape for itself, in place.

    What `Segmenter` and HRDA do around them stays as it is: padding, draws of crops, a domain's own tensors.
    """
    for module in method.modules():
        if isinstance(module, Segmenter):
            module.net.compile(dynamic=False, backend=backend)
            module.register_forward_pre_hook(_channels_last)


def _channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images in one layout: it depends on what of an augmentation was drawn, and each would be compiled for."""
    image, *rest = inputs
    return image.contiguous(memory_format=torch.channels_last), *rest
