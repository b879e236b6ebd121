"""ProDA: prototypical denoising of pseudo-labels, then distillation (2101.10979)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Model, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.proda import ProDA
from udaseg.recipes.common import ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small, warm_start

_PASS = 743
"""Steps in which Cityscapes' 2,975 training images are seen once, 4 a step."""
_STEPS = 84 * _PASS
_MODEL = Model(
    backbone="resnet101.tv_in1k",
    pretrained=True,
    output_stride=8,
    caffe=True,
    input_form="unit",
    align_corners=True,
    head="aspp_gn",
    head_channels=256,
    embedding_after_dropout=True,
    head_init="deeplab",
)
_LONG_SIDE = 2200 / 2048
"""Of a training image before its random scale, in Cityscapes' own."""


def _proda(name: str, *, source_short_side: int, uniform_weight: float) -> Recipe:
    data = Data(
        batch_size=4,
        short_side=1024,
        scale=(0.5 * _LONG_SIDE, 1.5 * _LONG_SIDE),
        crop=(512, 896),
        source=Stream(labels="true", short_side=source_short_side),
    )
    optim = Optim(lr=2.5e-4, weight_decay=2e-4, horizon=90_000 / _STEPS)
    warm_up = Stage(
        name="warm-up", method=ProDA.Config(phase="warm_up"), steps=_STEPS, model=_MODEL, data=data, optim=optim
    )
    denoise = Stage(
        name="denoise",
        method=ProDA.Config(uniform_weight=uniform_weight, fill_steps=_PASS, evaluate="student"),
        steps=_STEPS,
        model=_MODEL,
        data=replace(data, target=Stream(labels="distribution")),
        optim=replace(optim, lr=1e-4, head_lr_factor=1.0),
        init_from="warm-up",
        pseudo_label=PseudoLabel(rule="soft", distribution=True),
    )
    distil = replace(
        denoise,
        name="distil-1",
        method=ProDA.Config(phase="distil"),
        model=replace(_MODEL, head_norm=True),
        optim=replace(optim, lr=6e-4),
        init_from=None,
        pseudo_label=PseudoLabel(rule="fixed", threshold=0.95, distribution=True, flip=True, by="denoise"),
    )
    again = replace(
        distil,
        name="distil-2",
        init_from="distil-1",
        pseudo_label=PseudoLabel(rule="fixed", threshold=0.95, distribution=True, flip=True),
    )
    return Recipe(name=name, stages=(warm_up, denoise, distil, again), seed=1337, checkpoint_every=2000)


def proda() -> Recipe:
    """ProDA, GTA5 -> Cityscapes (2101.10979): 43.3, 53.7, 56.9, then 57.5 mIoU (authors' README).

    Four stages of 62,412 steps of 4 + 4 crops of 512 x 896, on four GPUs of 16 GB by the authors. They begin the third
    with SimCLRv2's ResNet-101, which `--stages.2.model.weights FILE` takes in timm's order of keys; here ImageNet's.
    """
    return _proda("proda", source_short_side=round(1052 * 2048 / 1914), uniform_weight=0.1)


def proda_synthia() -> Recipe:
    """ProDA, SYNTHIA -> Cityscapes (2101.10979): 55.5 mIoU-16, 62.0 mIoU-13 (authors' README), from 41.4.

    As `proda`, without the divergence from a uniform prediction; the datasets have SYNTHIA's 16 classes.
    """
    return _proda("proda_synthia", source_short_side=round(760 * 2048 / 1280), uniform_weight=0.0)


def proda_small() -> Recipe:
    """ProDA on a small network, from a source-only warm start: adversarial warm-up, denoising, one distillation."""
    warm_up = Stage(
        name="warm-up",
        method=ProDA.Config(phase="warm_up", discriminator_channels=16),
        steps=ROUND_STEPS,
        model=SMALL,
        data=SMALL_DATA,
        optim=replace(SMALL_OPTIM, lr=1e-3),
        init_from="source",
    )
    denoise = replace(
        warm_up,
        name="denoise",
        method=ProDA.Config(fill_steps=60, prototype_momentum=0.999, teacher_momentum=0.99),
        data=replace(SMALL_DATA, target=Stream(labels="distribution")),
        init_from="warm-up",
        pseudo_label=PseudoLabel(rule="soft", distribution=True),
    )
    distil = replace(
        denoise,
        name="distil",
        method=ProDA.Config(phase="distil"),
        init_from="denoise",
        pseudo_label=PseudoLabel(rule="fixed", threshold=0.9, distribution=True, flip=True),
    )
    return small("proda_small", warm_start(), warm_up, denoise, distil)
