"""How the networks of a run compute on a device: settings of `udaseg.job_config.Cluster` that change no mathematics."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from timm.layers import convert_sync_batchnorm
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from udaseg.distributed import world_size
from udaseg.errors import ConfigError
from udaseg.job_config import Cluster
from udaseg.models.segmenter import Segmenter


def set_precision(cluster: Cluster, device: torch.device) -> None:
    """TF32 and cuDNN's choice of algorithms, for this process; nothing on a CPU."""
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high" if cluster.tf32 else "highest")
        torch.backends.cudnn.allow_tf32 = cluster.tf32
        torch.backends.cudnn.benchmark = cluster.cudnn_benchmark


def prepare(method: nn.Module, cluster: Cluster, device: torch.device) -> None:
    """Batch norms over all ranks, checkpointed blocks and compiled networks, where they are asked for, in place."""
    over_ranks = device.type == "cuda" if cluster.sync_batch_norm is None else cluster.sync_batch_norm
    if over_ranks and world_size() > 1:
        convert_sync_batchnorm(method)  # timm's, which knows batch norms that hold an activation
    if cluster.grad_checkpointing:
        checkpoint_networks(method)
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


def checkpoint_networks(method: nn.Module) -> None:
    """Have the backbones of a method keep of each block what goes into it alone, in place.

    All else that the backward pass needs is computed a second time, of the same random numbers.

    Raises ConfigError as `blocks_of` does.
    """
    for module in method.modules():
        if isinstance(module, Segmenter):
            for block in blocks_of(module):
                block.forward = partial(_checkpointed, block.forward)


def blocks_of(network: Segmenter) -> list[nn.Module]:
    """The blocks of a backbone, such as those of a Mix Transformer or a ViT.

    Raises ConfigError where it has none, or computing them twice would not be the same: batch norms would count each
    batch twice, and parts that are the target's own are only in place for the forward pass.
    """
    found: dict[str, nn.Module] = {}
    for name, module in network.net.backbone.named_modules():
        if type(module).__name__.endswith("Block") and not any(name.startswith(f"{outer}.") for outer in found):
            found[name] = module
    where = "cluster.grad_checkpointing is for backbones of blocks without batch norms, as Mix Transformers and ViTs"
    if not found:
        raise ConfigError(f"{where}; this one has no blocks")
    for name, block in found.items():
        if any(isinstance(module, _BatchNorm) for module in block.modules()):
            raise ConfigError(f"{where}; block {name} of this one has batch norms")
        if any(key.startswith(f"backbone/{name.replace('.', '/')}/") for key in network.target_parameters):
            raise ConfigError(f"{where}; block {name} of this one has tensors of the target's own (model.per_domain)")
    return list(found.values())


def _checkpointed(forward: Callable[..., Any], *inputs: Any, **options: Any) -> Any:
    if not torch.is_grad_enabled():
        return forward(*inputs, **options)
    inputs = tuple([*given] if isinstance(given, list) else given for given in inputs)  # RDNet's lists grow
    return checkpoint(forward, *inputs, use_reentrant=False, **options)


def _channels_last(module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """Images in one layout: it depends on what of an augmentation was drawn, and each would be compiled for."""
    image, *rest = inputs
    return image.contiguous(memory_format=torch.channels_last), *rest
