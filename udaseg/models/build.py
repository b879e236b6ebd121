"""Networks from their settings: a timm backbone, or a Mix Transformer, with a head."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from udaseg.models.backbones import Backbone, as_caffe, for_caffe_input, mix_transformer, timm_backbone
from udaseg.models.heads import (
    ASPPGroupNormHead,
    ASPPHead,
    ContextAwareHead,
    DeepLabV3Head,
    Head,
    HeadPair,
    MultiLevelHead,
    ProjectionHead,
    draw,
)
from udaseg.models.hrda import HRDA
from udaseg.models.image_sizes import ImageSizes, find_image_sizes
from udaseg.models.segmenter import Segmenter
from udaseg.types import HeadInit, HeadName, InputForm, PerDomain

_CAFFE = (tuple(mean / 255 for mean in (122.67891434, 116.66876762, 104.00698793)), (1 / 255,) * 3)


def build_segmenter(
    num_classes: int,
    *,
    backbone: str = "resnet101",
    pretrained: bool = False,
    weights: str | None = None,
    same_padding: bool = False,
    input_size: tuple[int, int] | None = None,
    output_stride: int = 32,
    caffe: bool = False,
    input_form: InputForm = "imagenet",
    align_corners: bool = False,
    head: HeadName = "multilevel",
    head_branches: Sequence[int] = (6, 12, 18, 24),
    head_channels: int = 64,
    head_norm: bool = False,
    embedding_after_dropout: bool = False,
    head_init: HeadInit = "torch",
    head_pair: bool = False,
    projection: int = 0,
    per_domain: PerDomain = "nothing",
    frozen_norm_affine: bool = False,
    drop_path: float = 0.0,
    detail_crop: tuple[int, int] | None = None,
    image_sizes: ImageSizes | None = None,
    seed: int = 0,
    bf16: bool = False,
) -> Segmenter:
    """A `Segmenter` on any timm backbone that has `features_only`, or on SegFormer's mit_b0 ... mit_b5.

    Args:
        num_classes: K.
        backbone: a timm model name, or mit_b0 ... mit_b5, which the extra `udaseg[mit]` brings.
        pretrained: fetch the weights that timm names, from the hub.
        weights: a local safetensors or torch file of backbone weights in the backbone's key order; overrides
            `pretrained`.
        same_padding: TensorFlow-style padding, which weights converted from TensorFlow need.
        input_size: height and width, for backbones such as Hiera that take images of one size alone.
        output_stride: 8, 16 or 32, where the backbone can be dilated.
        caffe: a ResNet of three convolutions a block as Caffe's weights need it: the pooling rounds sizes up, the
            stride of a stage is in the first convolution of its first block, and that block's dilation is the stage's.
            ADVENT, CLAN, DACS, DASS, DSP, ProDA and LDBE train such networks (`get_deeplab_v2` of valeoai/ADVENT).
        input_form: see `udaseg.config.Model`. Weights that timm names are brought to the form "caffe"; those of a file
            are taken to be made for it.
        align_corners: of the upsampling of logits, see `Segmenter`.
        head: "aspp" (DeepLabV2), "aspp_gn" (ProDA, LDBE), "deeplabv3" (torchvision), "context_aware" (DAFormer) or
            "multilevel".
        head_branches: dilations of all heads but "multilevel".
        head_channels: width of all heads but "aspp".
        head_norm: of the "aspp_gn" head, see there, as for `embedding_after_dropout`.
        head_init: whose first weights the head gets, and HRDA's attention; see `udaseg.models.heads.draw`.
        head_pair: two such heads, whose logits are added, see `HeadPair`.
        projection: channels of a projection head for the embedding; 0 = none.
        per_domain: see `Segmenter`.
        frozen_norm_affine: keep the scale and shift of the backbone's batch norms as they are.
        drop_path: largest rate of stochastic depth in the backbone.
        detail_crop: height and width of HRDA's detail crop; None = one resolution.
        image_sizes: which sizes the backbone takes; None = to be found by trial.
        seed: key of the run and stage for what the network draws.
        bf16: autocast to bfloat16.

    Raises:
        ValueError: unknown backbone, one that cannot be built like this, or missing weights; it says which.
    """
    _check_ranges(head_branches, head_channels, projection, drop_path, input_size)
    if detail_crop is not None:
        _check_detail(align_corners=align_corners, caffe=caffe, head_pair=head_pair)
    parts, native = _build_backbone(
        backbone,
        pretrained=pretrained,
        weights=weights,
        same_padding=same_padding,
        input_size=input_size,
        output_stride=output_stride,
        caffe=caffe,
        drop_path=drop_path,
    )
    if per_domain != "nothing" and not parts.stem_end:
        raise ValueError(f"backbone {backbone!r} has no stem of its own per domain; set model.per_domain to nothing")
    if input_form == "caffe" and pretrained and weights is None:
        for_caffe_input(parts, backbone)
    if frozen_norm_affine:
        for module in parts.body.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm):
                module.requires_grad_(False)
    if image_sizes is None:
        image_sizes = _image_sizes(
            parts, native, input_size, key=(backbone, same_padding, input_size, output_stride, caffe), name=backbone
        )
    form: dict[str, Any] = {"channels": head_channels, "init": head_init}
    own: dict[str, Any] = {"norm": head_norm, "embedding_after_dropout": embedding_after_dropout}
    shape: dict[str, Any] = {"branches": head_branches, **form, **own}
    first = build_head(head, parts.channels, num_classes, **shape)
    made: Head | HeadPair = first
    if head_pair:
        made = HeadPair(first, build_head(head, parts.channels, num_classes, **shape), num_classes)
    stride = parts.strides[-1] if head in ("aspp", "aspp_gn", "deeplabv3") else parts.strides[0]
    settings: dict[str, Any] = {
        "num_classes": num_classes,
        "mean": {"imagenet": parts.mean, "caffe": _CAFFE[0], "unit": (0.0, 0.0, 0.0)}[input_form],
        "std": {"imagenet": parts.std, "caffe": _CAFFE[1], "unit": (1.0, 1.0, 1.0)}[input_form],
        "bgr": input_form == "caffe",
        "align_corners": align_corners,
        "projection": ProjectionHead(made.embedding_channels, projection) if projection else None,
        "per_domain": per_domain,
        "stem_end": parts.stem_end,
        "skip_levels": parts.skip_levels,
        "feature_channels": parts.channels,
        "feature_stride": parts.strides[-1],
        "stride": stride,
        "image_sizes": image_sizes,
        "seed": seed,
        "bf16": bf16,
    }
    if detail_crop is None:
        return Segmenter(parts.body, made, **settings)
    # HRDA's attention reads the same levels; its authors' context-aware head for it has no dilated convolutions.
    branches = () if head == "context_aware" else head_branches
    attention = build_head(head, parts.channels, num_classes, branches=branches, **form)
    return HRDA(parts.body, made, attention=attention, detail_crop=detail_crop, **settings)


def _check_ranges(
    branches: Sequence[int], channels: int, projection: int, drop_path: float, input_size: tuple[int, int] | None
) -> None:
    """Raise ValueError, naming the field, where a number lies outside of what can be built."""
    if len(branches) > 64 or any(dilation < 1 for dilation in branches):
        raise ValueError(f"model.head_branches {branches[:64]} must be at most 64 dilations, all at least 1")
    if channels < 1:
        raise ValueError(f"model.head_channels is {channels}; it must be at least 1")
    if projection < 0:
        raise ValueError(f"model.projection is {projection}; it must be at least 0")
    if not 0 <= drop_path < 1:
        raise ValueError(f"model.drop_path is {drop_path}; it must lie in [0, 1)")
    if input_size is not None and min(input_size) < 1:
        raise ValueError(f"model.input_size is {input_size}; height and width must be at least 1")


def _check_detail(*, align_corners: bool, caffe: bool, head_pair: bool) -> None:
    """Raise ValueError where HRDA cannot be built of such parts."""
    if align_corners:
        raise ValueError("model.align_corners: HRDA (model.detail_crop) aligns its resolutions by cells; leave it off")
    if caffe:
        raise ValueError("model.caffe: HRDA (model.detail_crop) needs whole cells, Caffe's round up; leave it off")
    if head_pair:
        raise ValueError("model.head_pair: HRDA (model.detail_crop) has one head for both resolutions; leave it off")


def _build_backbone(
    name: str,
    *,
    pretrained: bool,
    weights: str | None,
    same_padding: bool,
    input_size: tuple[int, int] | None,
    output_stride: int,
    caffe: bool,
    drop_path: float,
) -> tuple[Backbone, tuple[int, int] | None]:
    """A backbone, and the one size of images that it was made for, where there is one."""
    if weights is not None and not Path(weights).is_file():
        raise ValueError(f"model.weights: there is no file {weights}")
    if name.startswith("mit_b"):
        if same_padding or input_size or output_stride != 32:
            raise ValueError(f"backbone {name!r} has neither same_padding, input_size nor output_stride")
        if caffe:
            raise ValueError(f"model.caffe is of ResNets with bottlenecks, and backbone {name!r} is none")
        return mix_transformer(name, pretrained, weights, drop_path), None
    options: dict[str, Any] = {"drop_path_rate": drop_path} if drop_path else {}
    if same_padding:
        options["pad_type"] = "same"
    if output_stride != 32:
        options["output_stride"] = output_stride
    parts, native = timm_backbone(name, pretrained, weights, input_size, options)
    if caffe:
        as_caffe(parts.body, name)
    return parts, native


def _image_sizes(
    parts: Backbone, native: tuple[int, int] | None, input_size: tuple[int, int] | None, *, key: Hashable, name: str
) -> ImageSizes:
    try:
        found = find_image_sizes(parts.body, parts.strides, input_size or native, key=key)
    except ValueError as error:
        raise ValueError(f"backbone {name!r} {error}") from None
    if found.only is not None and input_size is None:
        raise ValueError(_ONE_SIZE.format(name))
    return found


_ONE_SIZE = "backbone {!r} takes images of one size alone: set model.input_size to that of the crops"


def build_head(
    name: HeadName, in_channels: Sequence[int], num_classes: int, *, init: HeadInit = "torch", **settings: Any
) -> Head:
    """A head by name, with its first weights; its settings are `branches`, `channels` and what it has of its own."""
    made = _new_head(name, in_channels, num_classes, **settings)
    draw(made, init)
    return made


def _new_head(
    name: HeadName,
    in_channels: Sequence[int],
    num_classes: int,
    *,
    branches: Sequence[int],
    channels: int,
    norm: bool = False,
    embedding_after_dropout: bool = False,
) -> Head:
    for setting, on in (("head_norm", norm), ("embedding_after_dropout", embedding_after_dropout)):
        if on and name != "aspp_gn":
            raise ValueError(f"model.{setting} is of the head aspp_gn, and the head is {name}")
    if name == "aspp":
        return ASPPHead(in_channels, num_classes, branches=branches)
    if name == "aspp_gn":
        return ASPPGroupNormHead(
            in_channels,
            num_classes,
            branches=branches,
            channels=channels,
            norm=norm,
            embedding_after_dropout=embedding_after_dropout,
        )
    if name == "deeplabv3":
        return DeepLabV3Head(in_channels, num_classes, branches=branches, channels=channels)
    if name == "context_aware":
        return ContextAwareHead(in_channels, num_classes, branches=branches, channels=channels)
    return MultiLevelHead(in_channels, num_classes, channels=channels)
