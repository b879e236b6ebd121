"""The formats of checkpoints that other repositories publish: their signs, networks and names."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from functools import partial

import torch
from torch import Tensor

from udaseg.checkpoints.format import Format, Misfit, Names, State, Window, count_of, resnet_of, tensor_of
from udaseg.config import Model
from udaseg.types import Resample

# --- DAFormer's line: mmseg 0.16 ------------------------------------------------------------------------------------

_MIT = {
    (32, 2): "mit_b0",
    (64, 2): "mit_b1",
    (64, 6): "mit_b2",
    (64, 18): "mit_b3",
    (64, 27): "mit_b4",
    (64, 40): "mit_b5",
}
"""Channels of the first level, blocks of the third."""


def _mit(state: State) -> str:
    key = len(tensor_of(state, "backbone.patch_embed1.proj.weight")), count_of(state, r"backbone\.block3\.(\d+)\.")
    if key not in _MIT:
        raise Misfit(f"its backbone has {key[0]} channels and {key[1]} blocks, as none of mit_b0 to mit_b5 has")
    return _MIT[key]


def _mmseg(state: State) -> Model:
    hrda = any(name.startswith("decode_head.head.") for name in state)
    part = "decode_head.head." if hrda else "decode_head."
    detail_crop = (512, 512) if hrda else None
    if any(name.startswith("backbone.stem.") for name in state):
        branches = (6, 12, 18, 24)[: count_of(state, rf"{re.escape(part)}aspp_modules\.(\d)\.")]
        backbone = f"{resnet_of(state, 'backbone.')}c"
        return Model(backbone=backbone, output_stride=8, head="aspp", head_branches=branches, detail_crop=detail_crop)
    branches = (1, 6, 12, 18)[: count_of(state, rf"{re.escape(part)}fuse_layer\.aspp_modules\.(\d)\.")]
    return Model(
        backbone=_mit(state),
        head="context_aware",
        head_branches=branches,
        head_channels=len(tensor_of(state, f"{part}embed_layers.0.proj.weight")),
        detail_crop=detail_crop,
    )


def _mmseg_view(state: State) -> tuple[int, Window]:
    if any(name.startswith("decode_head.head.") for name in state):
        return 1024, (1024, 1024)
    return (640 if any(name.startswith("auxiliary_head.") for name in state) else 512), None  # SePiCo sees 1280 x 640


_MMSEG_NAMES: Names = (
    (r"^backbone\.stem\.7\.", "net.backbone.bn1."),
    (r"^backbone\.stem\.", "net.backbone.conv1."),
    (r"^backbone\.", "net.backbone."),
    (r"^decode_head\.scale_attention\.", "net.attention."),
    (r"^decode_head\.(head\.)?", "net.head."),
    (r"^(net\.\w+)\.conv_seg\.", r"\1.classify."),
    (r"^(net\.\w+)\.embed_layers\.(\d)\.proj\.", r"\1.project.\2."),
    (r"^(net\.\w+)\.fuse_layer\.aspp_modules\.(\d)\.depthwise_conv\.", r"\1.branches.\2.0."),
    (r"^(net\.\w+)\.fuse_layer\.aspp_modules\.(\d)\.pointwise_conv\.", r"\1.branches.\2.1."),
    (r"^(net\.\w+)\.fuse_layer\.aspp_modules\.", r"\1.branches."),
    (r"^(net\.\w+)\.fuse_layer\.(bottleneck\.)?", r"\1.fuse."),
    (r"^(net\.\w+)\.aspp_modules\.(\d)\.conv\.", r"\1.branches.\2."),
)
_mmsegs = partial(
    Format,
    settings=_mmseg,
    names=_MMSEG_NAMES,
    dropped=r"^auxiliary_head\.",  # SePiCo's projection
    view=_mmseg_view,
    resample=lambda state: "bilinear",
)
"""A format of the line, by its signs."""


# --- DeepLabV2 on Caffe's ResNet ------------------------------------------------------------------------------------


def _one_head(state: State) -> dict[str, Tensor]:
    """The head that answers, as layer5.

    ADVENT's and MinEnt's is layer6, beside an auxiliary layer5 on the third stage. CLAN's answer is the sum of two
    heads, which is that of one with the sum of their weights. Of DASS's, layer6 takes no part. Where there is layer5
    alone, without a target's stem, it is that of the line of DACS, of whose four branches two take part.
    """
    head, other = _head_tensors(state, 5), _head_tensors(state, 6)
    of_two = {name for name in head | other if re.match(r"layer5\.conv2d_list\.[01]\.", name)}
    rest = {name: tensor for name, tensor in state.items() if not re.match(r"layer[56]\.", name)}
    if any(name.startswith("target_") for name in state):
        return rest | head
    if not other:
        return rest | {name: tensor for name, tensor in head.items() if name in of_two}
    if head.keys() == other.keys() and all(tensor.shape == other[name].shape for name, tensor in head.items()):
        return rest | {name: tensor + other[name] for name, tensor in head.items()}
    return rest | ({name: tensor for name, tensor in other.items() if name in of_two} if _idle(other) else other)


def _idle(head: Mapping[str, Tensor]) -> bool:
    """Whether the last two branches are as they were drawn, N(0, 0.01): AdaptSegNet, whose names are ADVENT's, leaves
    them out and so never trains them. Of their 350,000 weights the deviation tells to a thousandth.
    """
    last = [head[name] for name in (f"layer5.conv2d_list.{branch}.weight" for branch in (2, 3)) if name in head]
    return len(last) == 2 and all(abs(float(weight.float().std()) / 0.01 - 1) < 0.01 for weight in last)


def _head_tensors(state: State, number: int) -> dict[str, Tensor]:
    prefix = f"layer{number}."
    return {f"layer5.{k.removeprefix(prefix)}": tensor for k, tensor in state.items() if k.startswith(prefix)}


def _deeplab(state: State) -> Model:
    return Model(
        backbone=resnet_of(state),
        output_stride=8,
        caffe=True,
        input_form="caffe",
        align_corners=True,
        head="aspp",
        head_branches=(6, 12, 18, 24)[: count_of(state, r"layer5\.conv2d_list\.(\d)\.")],
        per_domain="stem" if any(name.startswith("target_") for name in state) else "nothing",
        frozen_norm_affine=True,
    )


def _of_the_line(state: State) -> Resample:
    """ADVENT and CLAN, whose heads are two, resize by Pillow's bicubic filter; DACS and DSP, at evaluation, by SciPy's
    `imresize`, which is Pillow's bilinear one."""
    return "bicubic" if _head_tensors(state, 6) else "antialias"


def _proda(state: State) -> Model:
    return dataclasses.replace(
        _deeplab(state),
        input_form="unit",
        head="aspp_gn",
        head_branches=(6, 12, 18, 24)[: count_of(state, r"layer5\.conv2d_list\.(\d)\.") - 1],
        head_channels=len(tensor_of(state, "layer5.conv2d_list.0.0.weight")),
        head_norm=any(name.startswith("bn_pretrain.") for name in state),  # stages 2 and 3
        embedding_after_dropout=True,
        frozen_norm_affine=False,
    )


def _target_name(match: re.Match[str]) -> str:
    """A tensor of DASS's own stem of the target, as `Segmenter` calls it."""
    statistics = match[1].endswith(("running_mean", "running_var", "num_batches_tracked"))
    return f"target_{'buffers' if statistics else 'parameters'}.backbone/{match[1].replace('.', '/')}"


_DEEPLAB_NAMES: Names = (
    (r"^(conv1|bn1|layer[1-4])\.", r"net.backbone.\1."),
    (r"^target_(.+)$", _target_name),
    (r"^layer5\.conv2d_list\.", "net.head.branches."),
)
_PRODA_NAMES: Names = (
    *_DEEPLAB_NAMES,
    (r"^bn_pretrain\.", "net.head.norm."),
    (r"^layer5\.bottleneck\.0\.se\.0\.", "net.head.bottleneck.0.fc1."),
    (r"^layer5\.bottleneck\.0\.se\.2\.", "net.head.bottleneck.0.fc2."),
    (r"^layer5\.bottleneck\.", "net.head.bottleneck."),
    (r"^layer5\.head\.1\.", "net.head.classify."),
)


# --- SegFormer ------------------------------------------------------------------------------------------------------


def _segformer(state: State) -> dict[str, Tensor]:
    """In mmseg's names, with our order of levels: the authors join them coarsest first."""
    out = {}
    for name, tensor in state.items():
        for pattern, replacement in _FROM_TRANSFORMERS:
            name = re.sub(pattern, replacement, name)
        out[name] = tensor
    for name in [name for name in out if ".attn.key." in name]:
        value = tensor_of(out, name.replace(".key.", ".value."))
        out[name.replace(".key.", ".kv.")] = torch.cat([out.pop(name), value])
        del out[name.replace(".key.", ".value.")]
    fuse = "decode_head.linear_fuse.conv.weight"
    out[fuse] = torch.cat(tensor_of(out, fuse).chunk(4, 1)[::-1], 1)
    return out


def _segformer_model(state: State) -> Model:
    return Model(
        backbone=_mit(state),
        head="context_aware",
        head_branches=(),
        head_channels=len(tensor_of(state, "decode_head.linear_c1.proj.weight")),
    )


def _next(match: re.Match[str]) -> str:
    """Counted from 1 in mmseg's names."""
    return f"{match[1]}{int(match[2]) + 1}."


_FROM_TRANSFORMERS: Names = (
    (r"^segformer\.encoder\.(patch_embed)dings\.(\d)\.", lambda m: f"backbone.{_next(m)}"),
    (r"^segformer\.encoder\.(block)\.(\d)\.", lambda m: f"backbone.{_next(m)}"),
    (r"^segformer\.encoder\.(layer_norm)\.(\d)\.", lambda m: f"backbone.norm{int(m[2]) + 1}."),
    (r"^(backbone\.patch_embed\d)\.layer_norm\.", r"\1.norm."),
    (r"\.layer_norm_(\d)\.", r".norm\1."),
    (r"\.attention\.self\.query\.", ".attn.q."),
    (r"\.attention\.self\.layer_norm\.", ".attn.norm."),
    (r"\.attention\.self\.", ".attn."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.mlp\.dense(\d)\.", r".mlp.fc\1."),
    (r"^(decode_head\.linear_c)\.(\d)\.", _next),
    (r"^decode_head\.linear_fuse\.weight$", "decode_head.linear_fuse.conv.weight"),
    (r"^decode_head\.batch_norm\.", "decode_head.linear_fuse.bn."),
    (r"^decode_head\.classifier\.", "decode_head.linear_pred."),
)
"""Names of Hugging Face's transformers to those of mmseg."""
_SEGFORMER_NAMES: Names = (
    (r"^backbone\.", "net.backbone."),
    (r"^decode_head\.linear_c1\.proj\.", "net.head.project.0."),
    (r"^decode_head\.linear_c2\.proj\.", "net.head.project.1."),
    (r"^decode_head\.linear_c3\.proj\.", "net.head.project.2."),
    (r"^decode_head\.linear_c4\.proj\.", "net.head.project.3."),
    (r"^decode_head\.linear_fuse\.", "net.head.fuse."),
    (r"^decode_head\.linear_pred\.", "net.head.classify."),
)


# --- torchvision ----------------------------------------------------------------------------------------------------


def _deeplabv3(state: State) -> Model:
    if "backbone.0.0.weight" in state:
        raise Misfit("its backbone is torchvision's MobileNetV3, which dilates other convolutions than timm's")
    branches = (12, 24, 36)[: count_of(state, r"classifier\.0\.convs\.(\d)\.") - 2]  # beside the 1x1 and the mean
    return Model(
        backbone=resnet_of(state, "backbone."),
        output_stride=8,
        head="deeplabv3",
        head_branches=branches,
        head_channels=len(tensor_of(state, "classifier.1.weight")),
    )


_DEEPLABV3_NAMES: Names = (
    (r"^backbone\.", "net.backbone."),
    (r"^classifier\.0\.", "net.head.context."),
    (r"^classifier\.1\.", "net.head.fuse.0."),
    (r"^classifier\.2\.", "net.head.fuse.1."),
    (r"^classifier\.4\.", "net.head.classify."),
)


FORMATS = {
    "daformer": _mmsegs(signs=(r"^decode_head\.embed_layers\.", r"^decode_head\.fuse_layer\.")),
    "hrda": _mmsegs(signs=(r"^decode_head\.head\.", r"^decode_head\.scale_attention\.")),
    "mic": _mmsegs(signs=(r"^decode_head\.(embed_layers|scale_attention)\.",)),
    "dlv2-mmseg": _mmsegs(signs=(r"^backbone\.stem\.", r"^decode_head\.aspp_modules\.")),
    "deeplabv2": Format(
        signs=(r"^layer[56]\.conv2d_list\.0\.weight$",),
        settings=_deeplab,
        names=_DEEPLAB_NAMES,
        arrange=_one_head,
        dropped=r"^c1\.",  # what DSP's MMD compares
        resample=_of_the_line,
        view=lambda state: (730 if any(name.startswith("target_") for name in state) else 512, None),
    ),
    "proda": Format(
        signs=(r"^layer5\.conv2d_list\.0\.0\.weight$", r"^layer5\.bottleneck\."),
        settings=_proda,
        names=_PRODA_NAMES,
        view=lambda state: (1024, None),
    ),
    "segformer": Format(
        signs=(r"^(backbone|segformer\.encoder)\.patch_embed", r"^decode_head\.linear_fuse\."),
        settings=_segformer_model,
        names=_SEGFORMER_NAMES,
        arrange=_segformer,
        dropped=r"^decode_head\.conv_seg\.",
        resample=lambda state: "bilinear",
        view=lambda state: (1024, (1024, 1024)),
        overlap=0.25,  # they slide by 768
    ),
    "deeplabv3": Format(
        signs=(r"^backbone\.", r"^classifier\.0\.convs\."),
        settings=_deeplabv3,
        names=_DEEPLABV3_NAMES,
        dropped=r"^aux_classifier\.",
        view=lambda state: (520, None),
    ),
}
"""What `udaseg import --from` takes."""
