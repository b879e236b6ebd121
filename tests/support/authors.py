"""Weights, images and planes by formula, as they were given to the authors' own networks and functions."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def uniform(name: str, count: int, salt: int = 0) -> np.ndarray:
    """(count,) float64 in [-1, 1): splitmix64 of the place, seeded by the name."""
    with np.errstate(over="ignore"):
        z = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z += np.uint64(zlib.crc32(name.encode()) + (salt << 32))
        for shift, factor in ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB)):
            z ^= z >> np.uint64(shift)
            z *= np.uint64(factor)
        z ^= z >> np.uint64(31)
    return 2 * ((z >> np.uint64(11)).astype(np.float64) / 2.0**53) - 1


def weight(name: str, like: Tensor, salt: int = 0) -> Tensor:
    """The tensor of the authors' name, in the shape of ours."""
    count = like.numel()
    u = uniform(name, count, salt)
    if name.endswith("num_batches_tracked"):
        return torch.zeros(like.shape, dtype=torch.int64)
    if like.ndim > 1:
        value = u * math.sqrt(6.0 / (count / like.shape[0]))
    elif name.endswith("running_var"):
        value = 1 + u / 4
    elif name.endswith(".weight"):
        value = (0.25 if name.endswith("bn3.weight") else 1) * (1 + u / 4)
    else:
        value = 0.1 * u
    return torch.from_numpy(value.astype(np.float32).reshape(like.shape))


def image(shape: tuple[int, ...], salt: int = 0) -> Tensor:
    """(B, 3, H, W) in [0, 1], of 8 bits."""
    b, c, y, x = np.meshgrid(*[np.arange(s, dtype=np.float64) for s in shape], indexing="ij")
    waves = 0.5 + 0.2 * np.sin(0.05 * y + c) + 0.15 * np.sin(0.031 * x + 1.7 * b)
    value = waves + 0.1 * uniform("image", int(np.prod(shape)), salt).reshape(shape)
    return torch.from_numpy(np.floor(255.99 * value.clip(0, 1)).astype(np.float32)) / 255


class Planes:
    """T and Y of the reference, with the constants that its file states."""

    def __init__(self, golden: dict[str, Any]) -> None:
        self.k, self.c = golden["T"]["k"], golden["T"]["c"]
        self.d, self.e = golden["Y"]["d"], golden["Y"]["e"]

    def waves(self, shape: tuple[int, ...], a: float, b: float = 0.0) -> Tensor:
        """T: sin(k a i + b + c), in C order."""
        i = np.arange(int(np.prod(shape)), dtype=np.float64)
        return torch.from_numpy(np.sin(self.k * a * i + b + self.c).astype(np.float32).reshape(shape))

    def ids(self, shape: tuple[int, ...], classes: int, m: int = 7) -> Tensor:
        """Y: (i m + i // d + e) % classes."""
        i = np.arange(int(np.prod(shape)), dtype=np.int64)
        return torch.from_numpy(((i * m + i // self.d + self.e) % classes).reshape(shape))


def mmseg_name(key: str, hrda: bool = False) -> str:
    """Our key of a network in DAFormer's line -> the authors'."""
    k = key.removeprefix("net.")
    if k.startswith("backbone."):
        k = re.sub(r"^backbone\.conv1\.(\d)\.", r"backbone.stem.\1.", k)
        return re.sub(r"^backbone\.bn1\.", "backbone.stem.7.", k)
    part, k = k.split(".", 1)
    k = re.sub(r"^branches\.(\d)\.(weight|bias)$", r"aspp_modules.\1.conv.\2", k)
    k = re.sub(r"^project\.(\d)\.", r"embed_layers.\1.proj.", k)
    k = re.sub(r"^classify\.", "conv_seg.", k)
    k = re.sub(r"^branches\.(\d)\.0\.", r"fuse_layer.aspp_modules.\1.depthwise_conv.", k)
    k = re.sub(r"^branches\.(\d)\.1\.", r"fuse_layer.aspp_modules.\1.pointwise_conv.", k)
    k = re.sub(r"^branches\.(\d)\.", r"fuse_layer.aspp_modules.\1.", k)
    k = re.sub(r"^fuse\.", "fuse_layer." if part == "attention" else "fuse_layer.bottleneck.", k)
    return "decode_head." + ({"head": "head.", "attention": "scale_attention."}[part] if hrda else "") + k


def deeplab_name(key: str, head: str) -> str:
    """Our key of a Caffe-type DeepLabV2 -> the authors'; `head` is their name of the classifier."""
    if key.startswith(("target_parameters.", "target_buffers.")):
        return "target_" + key.split(".", 1)[1].replace("/", ".").removeprefix("backbone.")
    k = key.removeprefix("net.").removeprefix("backbone.")
    k = re.sub(r"^head\.branches\.", f"{head}.conv2d_list.", k)
    k = re.sub(r"^head\.bottleneck\.0\.fc1", f"{head}.bottleneck.0.se.0", k)
    k = re.sub(r"^head\.bottleneck\.0\.fc2", f"{head}.bottleneck.0.se.2", k)
    k = re.sub(r"^head\.bottleneck", f"{head}.bottleneck", k)
    return re.sub(r"^head\.classify", f"{head}.head.1", k)


def fill(network: nn.Module, name: Callable[[str], str], salt: int = 0) -> None:
    """Give a network of ours the weights that the authors' had."""
    network.load_state_dict({key: weight(name(key), tensor, salt) for key, tensor in network.state_dict().items()})


def without_drop(network: nn.Module, train: bool) -> nn.Module:
    """The network in a mode, without dropout and stochastic depth, which the authors' draws decide."""
    network.train(train)
    for module in network.modules():
        if "drop" in type(module).__name__.lower():
            module.eval()
    return network


def assert_like(found: Tensor, expected: dict[str, Any], rtol: float = 1e-4) -> None:
    """The tensor has the shape, the sums and the entries that the authors' had."""
    assert list(found.shape) == expected["shape"]
    value = found.detach().double()
    scale = math.sqrt(expected["sqsum"] / value.numel())
    assert abs(float((value * value).sum()) / expected["sqsum"] - 1) < rtol
    assert abs(float(value.sum()) - expected["sum"]) < rtol * scale * value.numel()
    for place, entry in expected["entries"].items():
        assert abs(float(value.flatten()[int(place)]) - entry) < 10 * rtol * scale + rtol * abs(entry), place


def norm(parameters: Iterable[nn.Parameter]) -> float:
    """The norm of the gradients of all parameters together; in single precision such a sum is 2e-4 off."""
    return float(torch.cat([p.grad.flatten() for p in parameters if p.grad is not None]).double().norm())
