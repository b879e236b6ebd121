"""SePiCo: contrast with distributions, banks or means of classes in a self-training step (2204.08808)."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from udaseg.config import Data, Model, Recipe, Stage, Stream
from udaseg.methods.sepico import SePiCo
from udaseg.recipes.common import (
    DAFORMER,
    SMALL_DATA,
    SMALL_RARE,
    TRANSFORMER_OPTIM,
    on_synthia,
    rare_source,
    small,
    warm_start,
)
from udaseg.recipes.dacs import dacs_small

DEEPLAB_C = Model(backbone="resnet101c", pretrained=True, output_stride=8, head="aspp", head_init="mmseg")
"""The authors' DeepLabV2, whose ResNet begins with three 3x3 convolutions."""


def sepico() -> Recipe:
    """SePiCo's DistCL, GTA5 -> Cityscapes (2204.08808): 70.3 mIoU (authors' README). DAFormer's network.

    40,000 steps of 2 + 2 crops of 640, the target's taken of whole images by the teacher's classes. A step runs the
    student on three views and the teacher on four batches, from step 3000 on. As the authors do, the student is
    evaluated.
    """
    stage = Stage(
        name="sepico",
        method=SePiCo.Config(
            crop=(640, 640),
            pool="batch",
            group_size=2,
            jitter_form="hsv",
            teacher_moves="before",
            evaluate="student",
        ),
        steps=40_000,
        model=DAFORMER,
        data=Data(
            batch_size=2,
            group_size=2,
            short_side=640,
            resample="bilinear",
            crop=(640, 640),
            source=rare_source(short_side=704, share=0.5),
            target=Stream(labels="none", crop=(640, 1280)),
        ),
        optim=TRANSFORMER_OPTIM,
    )
    return Recipe(name="sepico", stages=(stage,), checkpoint_every=2000)


def sepico_bank() -> Recipe:
    """SePiCo's BankCL, GTA5 -> Cityscapes (2204.08808): 68.7 mIoU (authors' README). DAFormer's network."""
    return _variant("sepico_bank", sepico(), "bank")


def sepico_prototype() -> Recipe:
    """SePiCo's ProtoCL, GTA5 -> Cityscapes (2204.08808): 68.5 mIoU (authors' README). DAFormer's network."""
    return _variant("sepico_prototype", sepico(), "prototype")


def sepico_deeplab() -> Recipe:
    """SePiCo's DistCL, GTA5 -> Cityscapes (2204.08808): 61.0 mIoU (authors' README). DeepLabV2-R101.

    The steps and images of `sepico`; the projection reads the last level.
    """
    stage = sepico().stages[0]
    method = replace(stage.method, levels="last")
    optim = replace(stage.optim, undecayed=())
    stage = replace(stage, method=method, model=DEEPLAB_C, optim=optim)
    return Recipe(name="sepico_deeplab", stages=(stage,), checkpoint_every=2000)


def sepico_deeplab_bank() -> Recipe:
    """SePiCo's BankCL, GTA5 -> Cityscapes (2204.08808): 59.8 mIoU (authors' README). DeepLabV2-R101."""
    return _variant("sepico_deeplab_bank", sepico_deeplab(), "bank")


def sepico_deeplab_prototype() -> Recipe:
    """SePiCo's ProtoCL, GTA5 -> Cityscapes (2204.08808): 58.8 mIoU (authors' README). DeepLabV2-R101."""
    return _variant("sepico_deeplab_prototype", sepico_deeplab(), "prototype")


def sepico_synthia() -> Recipe:
    """SePiCo's DistCL, SYNTHIA -> Cityscapes (2204.08808): 64.3 mIoU-16 (authors' README). DAFormer's network.

    The authors' file is not public; two repositories that derive from theirs have the source at 1280 x 760.
    """
    return on_synthia(sepico())


def sepico_bank_synthia() -> Recipe:
    """SePiCo's BankCL, SYNTHIA -> Cityscapes (2204.08808): 63.3 mIoU-16 (authors' README). DAFormer's network."""
    return on_synthia(sepico_bank())


def sepico_prototype_synthia() -> Recipe:
    """SePiCo's ProtoCL, SYNTHIA -> Cityscapes (2204.08808): 62.9 mIoU-16 (authors' README). DAFormer's network."""
    return on_synthia(sepico_prototype())


def sepico_deeplab_synthia() -> Recipe:
    """SePiCo's DistCL, SYNTHIA -> Cityscapes (2204.08808): 58.1 mIoU-16 (authors' README). DeepLabV2-R101."""
    return on_synthia(sepico_deeplab())


def sepico_deeplab_bank_synthia() -> Recipe:
    """SePiCo's BankCL, SYNTHIA -> Cityscapes (2204.08808): 57.4 mIoU-16 (authors' README). DeepLabV2-R101."""
    return on_synthia(sepico_deeplab_bank())


def sepico_deeplab_prototype_synthia() -> Recipe:
    """SePiCo's ProtoCL, SYNTHIA -> Cityscapes (2204.08808): 56.8 mIoU-16 (authors' README). DeepLabV2-R101."""
    return on_synthia(sepico_deeplab_prototype())


def sepico_small() -> Recipe:
    """SePiCo's DistCL at temperature 1 from a source-only warm start, on a small network."""
    stage = replace(
        dacs_small().stages[1],
        name="sepico",
        method=SePiCo.Config(
            threshold=0.9,
            teacher_momentum=0.99,
            ignore_top=0,
            ignore_bottom=0,
            temperature=1.0,
            contrast_from=60,
            projection_channels=32,
        ),
        data=replace(SMALL_DATA, source=SMALL_RARE),
    )
    return small("sepico_small", warm_start(), stage)


def sepico_bank_small() -> Recipe:
    """`sepico_small` with a memory bank of class means (BankCL)."""
    return _variant("sepico_bank_small", sepico_small(), "bank")


def sepico_prototype_small() -> Recipe:
    """`sepico_small` with the classes' means alone (ProtoCL)."""
    return _variant("sepico_prototype_small", sepico_small(), "prototype")


def _variant(name: str, recipe: Recipe, contrast: Literal["bank", "prototype"]) -> Recipe:
    *before, stage = recipe.stages
    return replace(recipe, name=name, stages=(*before, replace(stage, method=replace(stage.method, contrast=contrast))))
