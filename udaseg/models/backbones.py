"""Backbones from their settings: any of timm's with levels, and SegFormer's Mix Transformers."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from types import MethodType
from typing import Any, NamedTuple

import timm
import torch
import torch.nn.functional as F
from timm.layers import Format
from torch import Tensor, nn

from udaseg.models.weights import load_backbone, read_backbone_weights

# Weights of a classifier hold more than a backbone takes; what they lack is looked for here.
logging.getLogger("timm.models._builder").setLevel(logging.ERROR)
_IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


class Backbone(NamedTuple):
    """What a `Segmenter` must know of its backbone."""

    body: nn.Module
    """(B, 3, H, W) normalised images -> list of levels, finest first."""
    channels: list[int]
    """Of the levels that a head reads."""
    skip_levels: int
    """Levels too fine for a head, which come first."""
    stem_end: str
    """Last module of the stem that BCL gives each domain, "" where the backbone has none."""
    strides: list[int]
    """Of the same levels."""
    mean: Sequence[float]
    std: Sequence[float]


# --- timm -----------------------------------------------------------------------------------------------------------


def timm_backbone(
    name: str, pretrained: bool, weights: str | None, input_size: tuple[int, int] | None, options: dict[str, Any]
) -> tuple[Backbone, tuple[int, int] | None]:
    """A backbone, and the height and width that it was made for."""
    if not timm.is_model(name):
        close = timm.list_models(f"*{name.split('_')[0]}*")[:5]
        raise ValueError(f"timm has no model {name!r}" + (f"; did you mean {', '.join(close)}?" if close else ""))
    config = timm.get_pretrained_cfg(name)
    if input_size is not None:
        options["img_size"] = input_size
    elif config and config.fixed_input_size:
        options["dynamic_img_size"] = True
    if weights is not None:
        given = {"file": weights, "state_dict": read_backbone_weights(weights)}
        options |= {"pretrained": True, "pretrained_cfg_overlay": given}
    elif pretrained:
        options["pretrained"] = True
    random_state = torch.get_rng_state()
    body = _create(name, options)
    if weights is not None and (tensor := _first_not_loaded(body, name, options, random_state)):
        raise ValueError(f"model.weights: {weights} has no tensor for {tensor} of {name}")
    if weights is not None:
        body.pretrained_cfg.pop("state_dict", None)  # copies of the network would carry it along
    info = body.feature_info
    skip = sum(1 for r in info.reduction() if r < 4)  # stride 2 is too fine and too shallow to help a head
    stem_end = info.module_name()[skip]
    if stem_end not in dict(body.named_modules()):
        stem_end = stem_end.replace(".", "_")  # timm flattens sequential containers under such names
    if stem_end not in dict(body.named_modules()):
        stem_end = ""
    if getattr(body, "output_fmt", None) == Format.NHWC:  # Swin
        body = _ChannelsFirst(body)
        stem_end = stem_end and f"body.{stem_end}"
    return Backbone(
        body,
        info.channels()[skip:],
        skip,
        stem_end,
        info.reduction()[skip:],
        config.mean if config else _IMAGENET[0],
        config.std if config else _IMAGENET[1],
    ), None if config is None else (config.input_size[1], config.input_size[2])


def _create(name: str, options: dict[str, Any]) -> Any:
    try:
        return timm.create_model(name, features_only=True, **options)
    except (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if "dynamic_img_size" in str(error) and "dynamic_img_size" in options:
            # it has no such option: what sizes it takes as it is, a trial tells
            del options["dynamic_img_size"]
            return _create(name, options)
        if file := options.get("pretrained_cfg_overlay", {}).get("file"):
            reason = next((line.strip() for line in str(error).splitlines() if "mismatch" in line), str(error))
            raise ValueError(f"model.weights: {file} does not fit {name}: {reason}") from error
        raise ValueError(f"backbone {name!r} cannot be built with {options}: {error}") from error


def as_caffe(body: nn.Module, name: str) -> None:
    """Give a ResNet of timm's the graph of Caffe's, in place; see `build_segmenter`."""
    stages = [getattr(body, f"layer{i}", None) for i in (2, 3, 4)]
    pooling = getattr(body, "maxpool", None)
    if not isinstance(pooling, nn.MaxPool2d) or not all(hasattr(stage and stage[0], "conv3") for stage in stages):
        raise ValueError(f"model.caffe is of ResNets with bottlenecks, and backbone {name!r} is none")
    pooling.ceil_mode = True
    for stage in stages:
        first, second = stage[0], stage[1]  # type: ignore[index]
        first.conv1.stride, first.conv2.stride = first.conv2.stride, (1, 1)
        first.conv2.dilation, first.conv2.padding = second.conv2.dilation, second.conv2.padding


def for_caffe_input(parts: Backbone, name: str) -> None:
    """Bring weights made for normalised RGB to BGR of 0 to 255 less the mean, in place."""
    convolution = getattr(parts.body, "conv1", None)
    if not isinstance(convolution, nn.Conv2d):
        raise ValueError(f"model.input_form: the weights of backbone {name!r} cannot be brought to the form caffe")
    with torch.no_grad():
        convolution.weight.copy_((convolution.weight / (255 * torch.tensor(parts.std)).view(1, 3, 1, 1)).flip(1))


class _ChannelsFirst(nn.Module):
    """Levels of (B, h, w, C) as (B, C, h, w)."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__()
        self.body = body

    def forward(self, x: Tensor) -> list[Tensor]:
        return [level.movedim(-1, 1) for level in self.body(x)]


def _first_not_loaded(body: nn.Module, backbone: str, options: Mapping[str, Any], random_state: Tensor) -> str | None:
    """The first matrix of `body` that still is as it was initialised: timm passes over what a file lacks."""
    blank_options = {name: value for name, value in options.items() if not name.startswith("pretrained")}
    with torch.random.fork_rng(devices=[]):
        torch.set_rng_state(random_state)
        blank = timm.create_model(backbone, features_only=True, **blank_options)
    pairs = zip(body.named_parameters(), blank.parameters(), strict=True)
    return next((name for (name, loaded), new in pairs if new.ndim > 1 and torch.equal(loaded, new)), None)


# --- Mix Transformer ------------------------------------------------------------------------------------------------


def mix_transformer(name: str, pretrained: bool, weights: str | None, drop_path: float) -> Backbone:
    """SegFormer's backbone, which timm does not have."""
    try:
        import segmentation_models_pytorch as smp
    except ImportError:
        raise ValueError(f"backbone {name!r} needs an extra package: pip install 'udaseg[mit]'") from None
    try:
        with torch.device("cpu"):  # as it is built, numbers are read off a tensor
            body = smp.encoders.get_encoder(name, weights="imagenet" if pretrained and weights is None else None)
            body.reset_drop_path(drop_path)
    except KeyError:
        raise ValueError(f"there is no backbone {name!r}; there are mit_b0 to mit_b5") from None
    for module in body.modules():
        if type(module).__name__ == "Attention":
            module.forward = MethodType(_attend_fused_on_gpu, module)
    if weights is not None:
        load_backbone(body, read_backbone_weights(weights), weights, name)
    # Its first two levels are the image and one without channels.
    return Backbone(body, list(body.out_channels[2:]), 2, "", [4, 8, 16, 32], *_IMAGENET)


def _attend_fused_on_gpu(attention: Any, x: Tensor, height: int, width: int) -> Tensor:
    """On a CPU the package's own form, so that results keep their bits there."""
    if x.is_cuda:
        return attend_fused(attention, x, height, width)
    out: Tensor = type(attention).forward(attention, x, height, width)
    return out


def attend_fused(attention: Any, x: Tensor, height: int, width: int) -> Tensor:
    """What a Mix Transformer's attention returns for (B, N, C) cells, by a kernel that never holds the cells' products.

    Those of stride 4 are 16,384 x 256 for an image of 512 x 512. It has no dropout, as in SegFormer.
    """
    read = x
    if attention.sr_ratio > 1:
        plane = x.transpose(1, 2).unflatten(2, (height, width))
        read = attention.norm(attention.sr(plane).flatten(2).transpose(1, 2))
    heads = attention.num_heads
    query = attention.q(x).unflatten(2, (heads, -1)).transpose(1, 2)
    key, value = attention.kv(read).unflatten(2, (2, heads, -1)).permute(2, 0, 3, 1, 4)
    out = F.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    projected: Tensor = attention.proj(out.transpose(1, 2).flatten(2))
    return projected
