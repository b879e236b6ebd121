"""Recipes: one function per configuration. `RECIPES` maps their names, which `udaseg train NAME` takes, to them.

The names without a suffix are the published settings for GTA5 -> Cityscapes on a GPU; `*_small` train a small backbone
on small images on a CPU within minutes, e.g. the embedded pair of domains.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from udaseg.components.masked_consistency import MIC
from udaseg.config import Data, Model, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.methods.adabn import AdaBN
from udaseg.methods.bcl import BCL
from udaseg.methods.cluda import CLUDA
from udaseg.methods.dacs import DACS
from udaseg.methods.daformer import DAFormer
from udaseg.methods.dsp import DSP
from udaseg.methods.ldbe import LDBE
from udaseg.methods.sdca import SDCA
from udaseg.methods.supervised import Supervised
from udaseg.methods.vfm import VFM

_DEEPLAB = Model(backbone="resnet101", pretrained=True, output_stride=8, head="aspp", frozen_norm_affine=True)
_DAFORMER = Model(
    backbone="mit_b5",
    pretrained=True,
    head="context_aware",
    head_branches=(1, 6, 12, 18),
    head_channels=256,
    drop_path=0.1,
)
_TRANSFORMER_OPTIM = Optim(
    name="adamw", lr=6e-5, head_lr_factor=10.0, weight_decay=0.01, decay_vectors=False, power=1.0, warmup_steps=1500
)
_SMALL = Model(backbone="test_byobnet", head="multilevel", head_channels=32)  # 0.2 M parameters: minutes on a CPU
_SMALL_DATA = Data(batch_size=8, short_side=128, scale=(1.0, 1.4), crop=(128, 192))
_SMALL_OPTIM = Optim(name="adamw", lr=3e-3, head_lr_factor=1.0, weight_decay=0.01, horizon=1.1, clip=5.0)
_SMALL_RARE = Stream(
    labels="true", sampling="rare_class", rare_temperature=0.1, rare_min_pixels=60, rare_min_crop_pixels=30
)
_WARM_STEPS, _ROUND_STEPS = 300, 300


def source_only() -> Recipe:
    """DeepLabV2-R101 on the source alone, as the warm start of BCL: 720-pixel short side, crop 600, batch 2."""
    data = Data(batch_size=2, short_side=720, scale=(0.5, 1.5), crop=(600, 600), target=None)
    stage = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=60_000,
        model=_DEEPLAB,
        data=data,
        optim=Optim(lr=7.5e-5, horizon=1.2),
    )
    return Recipe(name="source_only", stages=(stage,))


def supervised() -> Recipe:
    """The oracle: DeepLabV2-R101 on *labelled* target images, the upper end of the gap that adaptation closes."""
    data = Data(
        batch_size=2,
        short_side=720,
        scale=(0.5, 1.5),
        crop=(600, 600),
        source=None,
        target=Stream(labels="true"),
    )
    stage = replace(
        source_only().stages[0], name="target", method=Supervised.Config(stream="target"), data=data, steps=160_000
    )
    return Recipe(name="supervised", stages=(stage,))


def dacs() -> Recipe:
    """DACS, GTA5 -> Cityscapes (2007.08702): 52.14 mIoU in the paper, 53.66 at its best in the authors' README.

    Two-branch DeepLabV2-R101, 250,000 steps of 2 + 2 crops of 512. The authors start from COCO weights; ImageNet here.
    """
    stage = Stage(
        name="dacs",
        method=DACS.Config(),
        steps=250_000,
        model=replace(_DEEPLAB, head_branches=(6, 12)),
        data=Data(batch_size=2, short_side=512, crop=(512, 512), source=Stream(labels="true", short_side=720)),
        optim=Optim(lr=2.5e-4),
    )
    return Recipe(name="dacs", stages=(stage,), checkpoint_every=2000)


def bcl() -> Recipe:
    """BCL, GTA5 -> Cityscapes (2207.10892): about 57.1 mIoU (from memory; no table in the authors' README).

    A source-only stage, then ten rounds of two epochs, each on pseudo-labels made anew; the rate halves every round.
    `--method.variant paper` adds dynamic labels and calibration.
    """
    warm_up = replace(source_only().stages[0], model=_DEEPLAB)
    rounds = tuple(
        Stage(
            name=f"round-{r}",
            method=BCL.Config(),
            steps=10_000,
            model=replace(_DEEPLAB, per_domain="stem"),
            data=Data(batch_size=2, short_side=850, scale=(0.8, 1.2), crop=(730, 730), target=Stream(labels="pseudo")),
            optim=Optim(lr=7.5e-5 / 2**r, horizon=1.2),
            init_from="source" if r == 0 else f"round-{r - 1}",
            pseudo_label=PseudoLabel(share=0.1, image_share=0.1, rule="any_class", rare_class="keep_all"),
        )
        for r in range(10)
    )
    return Recipe(name="bcl", stages=(warm_up, *rounds), checkpoint_every=1500)


def ldbe() -> Recipe:
    """LDBE, GTA5 -> Cityscapes (2210.09519): 45.5 mIoU after label denoising, 49.2 in all (authors' README), from 35.7.

    Source-free: it takes `--target` alone. The source model, a `source_only` run's or any other with this head, is
    `--stages.0.init-from`. Two rounds of an epoch in each phase; the shares of the labels grow from 10 to 15 %.
    """
    model = replace(_DEEPLAB, head="aspp_gn", head_channels=256)
    data = Data(
        batch_size=3,
        short_side=720,
        scale=(0.5, 1.5),
        crop=(600, 600),
        source=None,
        target=Stream(labels="pseudo"),
    )
    denoise = tuple(
        Stage(
            name=f"denoise-{r}",
            method=LDBE.Config(),
            steps=991,
            model=model,
            data=data,
            optim=Optim(lr=1e-4 / 2 ** (r / 2), horizon=5000 / 991),
            init_from="runs/source_only/model" if r == 0 else f"denoise-{r - 1}",
            pseudo_label=PseudoLabel(share=share, image_share=share, cap=0.999999999, rule="any_class"),
        )
        for r, share in enumerate((0.1, 0.15))
    )
    enhance = tuple(
        replace(
            stage,
            name=f"enhance-{r}",
            method=LDBE.Config(phase="boundary_enhancement", group_size=3),
            data=replace(data, group_size=3),
            init_from="denoise-1" if r == 0 else f"enhance-{r - 1}",
        )
        for r, stage in enumerate(denoise)
    )
    return Recipe(name="ldbe", stages=(*denoise, *enhance), seed=1234)


def dsp() -> Recipe:
    """DSP, GTA5 -> Cityscapes (2107.09600): 55.0 mIoU in the paper.

    DACS's network and schedule, with a template and a long-tail image a sample; the authors start from COCO weights.
    """
    stage = dacs().stages[0]
    template = Stream(labels="true", short_side=720)
    rare = replace(template, sampling="rare_class")
    data = replace(stage.data, group_size=2, template=template, rare=rare)
    return Recipe(
        name="dsp", stages=(replace(stage, name="dsp", method=DSP.Config(), data=data),), checkpoint_every=2000
    )


def sdca() -> Recipe:
    """SDCA, GTA5 -> Cityscapes (2204.08808): 52.9 mIoU (authors' README). Source-only, contrast, then self-training.

    The authors feed whole images of 1280x720 and 1024x512, here crops of 896x512 at these sizes; they keep batch
    statistics frozen in the first two stages, here they adapt.
    """
    data = Data(
        batch_size=4,
        short_side=512,
        crop=(512, 896),
        source=Stream(labels="true", short_side=720, jitter=0.5, blur=0.5),
        target=Stream(labels="none", jitter=0.5, blur=0.5),
    )
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=20_000,
        model=_DEEPLAB,
        data=replace(data, target=None),
        optim=Optim(lr=5e-4),
    )
    contrast = replace(
        source,
        name="contrast",
        method=SDCA.Config(fill_steps=1000),
        steps=40_000,
        data=data,
        optim=Optim(lr=2.5e-4, horizon=62.5 / 40),
        init_from="source",
    )
    labelled = Stream(labels="pseudo", jitter=0.5, blur=0.5)
    self_training = replace(
        source,
        name="self-training",
        method=Supervised.Config(stream="target"),
        data=replace(data, scale=(0.5, 1.5), source=None, target=labelled),
        optim=Optim(lr=5e-4, horizon=31.25 / 20),
        pseudo_label=PseudoLabel(share=0.5, cap=0.9, image_share=0.0, by="contrast"),
    )
    return Recipe(name="sdca", stages=(source, contrast, self_training), checkpoint_every=2000)


def daformer() -> Recipe:
    """DAFormer, GTA5 -> Cityscapes (2111.14887): 68.3 mIoU in the paper. MiT-B5 and its context-aware head.

    40,000 steps of 2 + 2 crops of 512. `--model.backbone` takes any hierarchical backbone of timm instead.
    """
    stage = Stage(
        name="daformer",
        method=DAFormer.Config(),
        steps=40_000,
        model=_DAFORMER,
        data=Data(batch_size=2, short_side=512, crop=(512, 512), source=_rare_source(short_side=720, share=0.5)),
        optim=_TRANSFORMER_OPTIM,
    )
    return Recipe(name="daformer", stages=(stage,), checkpoint_every=2000)


def hrda() -> Recipe:
    """HRDA, GTA5 -> Cityscapes (2204.13132): 73.8 mIoU (authors' README).

    DAFormer at twice the resolution: 2 + 2 crops of 1024, seen at half of it, with a detail crop of 512 in each. The
    authors weigh also 30 pixels at the left and right end of a target image 0, which here count. Evaluate with
    `--window 1024 1024`.
    """
    stage = daformer().stages[0]
    data = replace(stage.data, short_side=1024, crop=(1024, 1024), source=_rare_source(short_side=1440, share=2.0))
    stage = replace(
        stage,
        name="hrda",
        method=DAFormer.Config(ignore_top=30, ignore_bottom=240),
        model=replace(stage.model, detail_crop=(512, 512)),
        data=data,
    )
    return Recipe(name="hrda", stages=(stage,), checkpoint_every=2000)


def mic() -> Recipe:
    """MIC, GTA5 -> Cityscapes (2212.01322): 75.9 mIoU (authors' README). HRDA with masked consistency."""
    stage = hrda().stages[0]
    method = replace(stage.method, mic=MIC(weight=1.0))
    return Recipe(name="mic", stages=(replace(stage, name="mic", method=method),), checkpoint_every=2000)


def cluda() -> Recipe:
    """CLUDA, GTA5 -> Cityscapes (2208.14227): 74.4 mIoU (authors' README). HRDA with contrast of pixels.

    `--model.detail-crop None` and DAFormer's crops give its single-resolution form.
    """
    stage = hrda().stages[0]
    method = CLUDA.Config(ignore_top=30, ignore_bottom=240)
    stage = replace(stage, name="cluda", method=method, data=replace(stage.data, group_size=2))
    return Recipe(name="cluda", stages=(stage,), checkpoint_every=2000)


def vfm() -> Recipe:
    """A DINOv2 ViT-L with a light head, GTA5 -> Cityscapes; not published. VFM-UDA, its anchor, has 78.4 with ViT-L.

    `--model.backbone vit_large_patch16_dinov3` takes DINOv3's weights, which have a licence of their own.
    """
    stage = Stage(
        name="vfm",
        method=VFM.Config(),
        steps=40_000,
        model=Model(backbone="vit_large_patch14_dinov2", pretrained=True, head="multilevel", head_channels=256),
        data=Data(batch_size=8, short_side=1024, crop=(518, 518), source=_rare_source(short_side=1440, share=0.5)),
        optim=replace(_TRANSFORMER_OPTIM, lr=1e-5),
    )
    return Recipe(name="vfm", stages=(stage,), checkpoint_every=2000, bf16=True)


def _rare_source(*, short_side: int, share: float) -> Stream:
    """DAFormer's rare-class sampling; a crop has `share` times the pixels of the class that an image needs."""
    return Stream(
        labels="true",
        sampling="rare_class",
        rare_temperature=0.01,
        rare_min_pixels=3000,
        rare_min_crop_pixels=int(3000 * share),
        short_side=short_side,
    )


def source_only_small() -> Recipe:
    """A small network on the source alone, as long as `bcl_small` trains in all."""
    stage = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=_WARM_STEPS + 2 * _ROUND_STEPS,
        model=_SMALL,
        data=replace(_SMALL_DATA, target=None),
        optim=_SMALL_OPTIM,
    )
    return Recipe(name="source_only_small", stages=(stage,), checkpoint_every=150)


def supervised_small() -> Recipe:
    """The oracle of the small recipes: labelled target images, and as many steps as `bcl_small` takes in all."""
    data = replace(_SMALL_DATA, source=None, target=Stream(labels="true"))
    stage = replace(source_only_small().stages[0], name="target", method=Supervised.Config(stream="target"), data=data)
    return Recipe(name="supervised_small", stages=(stage,), checkpoint_every=150)


def _warm_start() -> Stage:
    return replace(source_only_small().stages[0], steps=_WARM_STEPS)


def adabn_small() -> Recipe:
    """Source-only, then the target's batch-norm statistics and nothing else: what any adaptation must beat."""
    stage = Stage(
        name="adabn",
        method=AdaBN.Config(),
        steps=60,
        model=_SMALL,
        data=replace(_SMALL_DATA, source=None),
        init_from="source",
    )
    return Recipe(name="adabn_small", stages=(source_only_small().stages[0], stage), checkpoint_every=150)


def dacs_small() -> Recipe:
    """DACS from a source-only warm start, on a small network."""
    stage = Stage(
        name="dacs",
        method=DACS.Config(threshold=0.9),
        steps=2 * _ROUND_STEPS,
        model=_SMALL,
        data=_SMALL_DATA,
        optim=_SMALL_OPTIM,
        init_from="source",
    )
    return Recipe(name="dacs_small", stages=(_warm_start(), stage), checkpoint_every=150)


def bcl_small(count: int = 2) -> Recipe:
    """BCL from a source-only warm start, on a small network, with the mixed view (see docs/methods.md).

    All its steps are shared by `count` rounds.
    """
    rounds = tuple(
        Stage(
            name=f"round-{r}",
            method=BCL.Config(target_weight=1.0, entropy_weight=0.0, teacher_momentum=0.98, mix=True, mix_jitter=0.5),
            steps=2 * _ROUND_STEPS // count,
            model=_SMALL,
            data=replace(_SMALL_DATA, target=Stream(labels="pseudo")),
            optim=_SMALL_OPTIM,
            init_from="source" if r == 0 else f"round-{r - 1}",
            pseudo_label=PseudoLabel(share=0.1, image_share=0.0),
        )
        for r in range(count)
    )
    return Recipe(name="bcl_small", stages=(_warm_start(), *rounds), checkpoint_every=150)


def bcl_demo() -> Recipe:
    """What `udaseg demo` runs, within minutes: `bcl_small` in one round, with rare-class sampling of the source."""
    warm_start, adapt = bcl_small(count=1).stages
    stages = (warm_start, replace(adapt, data=replace(adapt.data, source=_SMALL_RARE)))
    return Recipe(name="bcl_demo", stages=stages, checkpoint_every=150)


def bcl_paper_small() -> Recipe:
    """`bcl_small` with dynamic and hybrid pseudo-labels and calibrated prototypes (`variant="paper"`)."""
    recipe = bcl_small()
    stages = tuple(
        replace(stage, method=replace(stage.method, variant="paper")) if isinstance(stage.method, BCL.Config) else stage
        for stage in recipe.stages
    )
    return replace(recipe, name="bcl_paper_small", stages=stages)


def ldbe_small() -> Recipe:
    """LDBE on a small network: one stage a phase. The source model is `--stages.0.init-from`."""
    denoise = Stage(
        name="denoise",
        method=LDBE.Config(),
        steps=_ROUND_STEPS,
        model=_SMALL,
        data=replace(_SMALL_DATA, source=None, target=Stream(labels="pseudo")),
        optim=replace(_SMALL_OPTIM, lr=1e-3),
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
    return Recipe(name="ldbe_small", stages=(denoise, enhance), checkpoint_every=150)


def dsp_small() -> Recipe:
    """DSP from a source-only warm start, on a small network."""
    stage = replace(
        dacs_small().stages[1],
        name="dsp",
        method=DSP.Config(threshold=0.9, long_tail=(5, 6, 7), mmd_channels=64, group_size=4),
        data=replace(_SMALL_DATA, group_size=4, template=Stream(labels="true"), rare=_SMALL_RARE),
    )
    return Recipe(name="dsp_small", stages=(_warm_start(), stage), checkpoint_every=150)


def sdca_small() -> Recipe:
    """SDCA from a source-only warm start on a small network, its contrast at temperature 1; then self-training."""
    contrast = Stage(
        name="contrast",
        method=SDCA.Config(temperature=1.0, fill_steps=60),
        steps=_ROUND_STEPS,
        model=_SMALL,
        data=_SMALL_DATA,
        optim=_SMALL_OPTIM,
        init_from="source",
    )
    self_training = replace(
        contrast,
        name="self-training",
        method=Supervised.Config(stream="target"),
        data=replace(_SMALL_DATA, source=None, target=Stream(labels="pseudo", jitter=0.25)),
        init_from="contrast",
        pseudo_label=PseudoLabel(share=0.5, cap=0.9, image_share=0.0),
    )
    return Recipe(name="sdca_small", stages=(_warm_start(), contrast, self_training), checkpoint_every=150)


def daformer_small() -> Recipe:
    """DAFormer on a small network, from a source-only warm start, near whose features things stay."""
    stage = replace(
        dacs_small().stages[1],
        name="daformer",
        method=DAFormer.Config(
            threshold=0.9, teacher_momentum=0.99, things=(5, 6), ignore_top=0, ignore_bottom=0, feature_weight=0.005
        ),
        data=replace(_SMALL_DATA, source=_SMALL_RARE),
    )
    return Recipe(name="daformer_small", stages=(_warm_start(), stage), checkpoint_every=150)


def mic_small() -> Recipe:
    """`daformer_small` with masked consistency: patches of 16 pixels, half of them hidden."""
    warm_start, stage = daformer_small().stages
    method = replace(stage.method, mic=MIC(weight=1.0, block=16, ratio=0.5))
    return Recipe(
        name="mic_small", stages=(warm_start, replace(stage, name="mic", method=method)), checkpoint_every=150
    )


def hrda_small() -> Recipe:
    """HRDA on a small network: context at half the resolution, detail crops of half the side. Evaluated likewise."""
    model = replace(_SMALL, detail_crop=(64, 96))
    stages = tuple(replace(stage, model=model) for stage in daformer_small().stages)
    return Recipe(name="hrda_small", stages=stages, checkpoint_every=150)


def cluda_small() -> Recipe:
    """CLUDA at one resolution from a source-only warm start, on a small network."""
    warm_start, stage = daformer_small().stages
    method = CLUDA.Config(
        threshold=0.9,
        teacher_momentum=0.99,
        things=(5, 6),
        ignore_top=0,
        ignore_bottom=0,
        contrast_size=32,
        attention_channels=32,
    )
    stage = replace(stage, name="cluda", method=method, data=replace(stage.data, group_size=2))
    return Recipe(name="cluda_small", stages=(warm_start, stage), checkpoint_every=150)


def vfm_small() -> Recipe:
    """The foundation-model recipe with a tiny ViT, from a source-only warm start."""
    model = replace(_SMALL, backbone="test_vit")
    method = VFM.Config(threshold=0.9, teacher_momentum=0.99, mic=MIC(weight=1.0, block=16, ratio=0.5))
    stage = replace(daformer_small().stages[1], name="vfm", method=method, model=model)
    return Recipe(name="vfm_small", stages=(replace(_warm_start(), model=model), stage), checkpoint_every=150)


RECIPES: dict[str, Callable[[], Recipe]] = {
    recipe.__name__: recipe
    for recipe in (
        source_only,
        supervised,
        dacs,
        bcl,
        ldbe,
        dsp,
        sdca,
        daformer,
        hrda,
        mic,
        cluda,
        vfm,
        source_only_small,
        supervised_small,
        adabn_small,
        dacs_small,
        bcl_small,
        bcl_demo,
        bcl_paper_small,
        ldbe_small,
        dsp_small,
        sdca_small,
        daformer_small,
        hrda_small,
        mic_small,
        cluda_small,
        vfm_small,
    )
}
