"""What recipes share: networks, schedules and the warm start; `*_small` ones take minutes on a CPU."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from udaseg.config import Data, Model, Optim, Recipe, Stage, Stream
from udaseg.methods.supervised import Supervised
from udaseg.types import DOMAIN_OF

DEEPLAB = Model(backbone="resnet101", pretrained=True, output_stride=8, head="aspp", frozen_norm_affine=True)
CAFFE_DEEPLAB = replace(DEEPLAB, caffe=True, input_form="caffe", align_corners=True)
"""DeepLabV2 as ADVENT has it, and DACS, DSP, BCL and LDBE after it. Their authors start from Caffe's weights, which
`--model.weights FILE --model.no-pretrained` takes as they are; ImageNet's of timm, brought to this input, here."""
WHOLE_IMAGES = Data(
    batch_size=4,
    short_side=512,
    crop=(512, 1024),
    flip=0.0,
    source=Stream(labels="true", short_side=720, crop=(720, 1280)),
)
"""4 + 4 images: 1280x720 of GTA5, of whose 1310 columns a part is cut off, and 1024x512."""
SDCA_MODEL = replace(DEEPLAB, backbone="resnet101.tv_in1k", align_corners=True)
SDCA_SOURCE = Stream(labels="true", sampling="class_balanced", short_side=720, crop=(720, 1280))
SDCA_IMAGES = replace(WHOLE_IMAGES, resample="bicubic", source=SDCA_SOURCE)
"""As SDCA's line takes them: source images are drawn by their classes."""
SDCA_CROPS = replace(SDCA_IMAGES, batch_size=8, short_side=1024, scale=(0.5, 1.5), flip=0.5, source=None)
"""As its self-training takes them: 8 crops of 1024x512 of target images at half to 1.5 times their own size."""
DAFORMER = Model(
    backbone="mit_b5",
    pretrained=True,
    head="context_aware",
    head_branches=(1, 6, 12, 18),
    head_channels=256,
    head_init="mmseg",
    drop_path=0.1,
)
TRANSFORMER_OPTIM = Optim(
    name="adamw",
    lr=6e-5,
    head_lr_factor=10.0,
    weight_decay=0.01,
    undecayed=("norm",),
    power=1.0,
    warmup_steps=1500,
    warmup_start=1e-6,
)

SMALL = Model(backbone="test_byobnet", head="multilevel", head_channels=32)  # 0.2 M parameters: minutes on a CPU
SMALL_DATA = Data(batch_size=8, short_side=128, scale=(1.0, 1.4), crop=(128, 192))
SMALL_OPTIM = Optim(name="adamw", lr=3e-3, head_lr_factor=1.0, weight_decay=0.01, horizon=1.1, clip=5.0)
SMALL_RARE = Stream(
    labels="true", sampling="rare_class", rare_temperature=0.1, rare_min_pixels=60, rare_min_crop_pixels=30
)
WARM_STEPS, ROUND_STEPS = 300, 300


def small(name: str, *stages: Stage) -> Recipe:
    """A recipe of small stages, which keeps a checkpoint every 150 steps."""
    return Recipe(name=name, stages=stages, checkpoint_every=150)


def warm_start(steps: int = WARM_STEPS, model: Model = SMALL) -> Stage:
    """A small network on the source alone, from which small recipes adapt."""
    return Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=steps,
        model=model,
        data=replace(SMALL_DATA, target=None),
        optim=SMALL_OPTIM,
    )


def in_sdca_s_colours(stream: Stream, *, grey: float = 0.0, blur: float = 0.0) -> Stream:
    """The colours that SDCA's line gives the domain whose labels it trains on: in adaptation the source's alone."""
    return replace(stream, jitter=0.5, jitter_probability=1.0, hue=0.2, grey=grey, blur=blur)


def rare_source(*, short_side: int, share: float) -> Stream:
    """DAFormer's rare-class sampling; a crop has `share` times the pixels of the class that an image needs."""
    return Stream(
        labels="true",
        sampling="rare_class",
        rare_temperature=0.01,
        rare_min_pixels=3000,
        rare_min_crop_pixels=int(3000 * share),
        short_side=short_side,
        max_class_share=0.75,
    )


def on_synthia(recipe: Recipe, *, short_side: int = 760) -> Recipe:
    """A recipe of GTA5 for SYNTHIA, whose images are 1280 x 760: streams of the source have that short side.

    Crops that are whole images stay so. Of 19 outputs three are of classes that SYNTHIA lacks.
    """
    return replace(
        recipe,
        name=f"{recipe.name}_synthia",
        stages=tuple(replace(stage, data=_with_source_of(stage.data, short_side)) for stage in recipe.stages),
    )


def _with_source_of(data: Data, short_side: int) -> Data:
    sized: dict[str, Any] = {}
    for name, stream in data.streams().items():
        if DOMAIN_OF[name] == "source":
            crop = stream.crop
            if crop is not None and crop[0] == stream.short_side:
                crop = (short_side, crop[1])
            sized[name] = replace(stream, short_side=short_side, crop=crop)
    return replace(data, **sized)
