"""LDBE: source-free, label denoising and boundary enhancement (2110.06484)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.ldbe import LDBE
from udaseg.recipes.common import CAFFE_DEEPLAB, ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small


def ldbe() -> Recipe:
    """LDBE, GTA5 -> Cityscapes (2110.06484): 45.5 mIoU after label denoising, 49.2 in all (authors' README), from 35.7.

    Source-free: it takes `--target` alone. The source model, which needs this network (docs/methods/ldbe.md), is
    `--stages.0.init-from`. Two rounds of an epoch in each phase; the shares of the labels grow from 10 to 15 %. Labels
    are made, and networks evaluated, at 1024 x 512.
    """
    model = replace(CAFFE_DEEPLAB, head="aspp_gn", head_channels=256, head_init="deeplab")
    data = Data(
        batch_size=3,
        short_side=512,
        resample="bicubic",
        scale=(0.5, 1.5),
        crop=(600, 600),
        source=None,
        target=Stream(labels="pseudo", short_side=720),
    )
    denoise = tuple(
        Stage(
            name=f"denoise-{r}",
            method=LDBE.Config(evaluate="student"),
            steps=991,
            model=model,
            data=data,
            optim=Optim(lr=1e-4 / 2 ** (r / 2), horizon=5000 / 991),
            init_from="runs/source_only/model" if r == 0 else f"denoise-{r - 1}",
            pseudo_label=PseudoLabel(
                share=share, image_share=share, cap=0.999999999, rule="any_class", rare_class="keep_all"
            ),
        )
        for r, share in enumerate((0.1, 0.15))
    )
    enhance = tuple(
        replace(
            stage,
            name=f"enhance-{r}",
            method=LDBE.Config(phase="boundary_enhancement", group_size=3, evaluate="student"),
            data=replace(data, group_size=3),
            init_from="denoise-1" if r == 0 else f"enhance-{r - 1}",
        )
        for r, stage in enumerate(denoise)
    )
    return Recipe(name="ldbe", stages=(*denoise, *enhance), seed=1234)


def ldbe_small() -> Recipe:
    """LDBE on a small network: one stage a phase. The source model is `--stages.0.init-from`."""
    denoise = Stage(
        name="denoise",
        method=LDBE.Config(),
        steps=ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, source=None, target=Stream(labels="pseudo")),
        optim=replace(SMALL_OPTIM, lr=1e-3),
        init_from="runs/source_only_small/model",
        pseudo_label=PseudoLabel(share=0.2, image_share=0.0),
    )
    enhance = replace(
        denoise,
        name="enhance",
        method=LDBE.Config(phase="boundary_enhancement", group_size=4),
        data=replace(denoise.data, group_size=4),
        init_from="denoise",
    )
    return small("ldbe_small", denoise, enhance)
