"""Vision foundation models, ours, anchored on VFM-UDA (2406.09896)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.components.masked_consistency import MIC
from udaseg.config import Data, Model, Recipe, Stage
from udaseg.methods.vfm import VFM
from udaseg.recipes.common import SMALL, TRANSFORMER_OPTIM, rare_source, small, warm_start
from udaseg.recipes.daformer import daformer_small


def vfm() -> Recipe:
    """A DINOv2 ViT-L with a light head, GTA5 -> Cityscapes; not published. VFM-UDA, its anchor, has 78.4 with ViT-L.

    `--model.backbone vit_large_patch16_dinov3` takes DINOv3's weights, which have a licence of their own.
    Evaluation sees whole images, four times the crop's side: `--inference.window 518 518` shows it crops.
    """
    stage = Stage(
        name="vfm",
        method=VFM.Config(),
        steps=40_000,
        model=Model(backbone="vit_large_patch14_dinov2", pretrained=True, head="multilevel", head_channels=256),
        data=Data(batch_size=8, short_side=1024, crop=(518, 518), source=rare_source(short_side=1407, share=0.5)),
        optim=replace(TRANSFORMER_OPTIM, lr=1e-5, decay_vectors=False),
    )
    return Recipe(name="vfm", stages=(stage,), checkpoint_every=2000, bf16=True)


def vfm_small() -> Recipe:
    """The foundation-model recipe with a tiny ViT, from a source-only warm start."""
    model = replace(SMALL, backbone="test_vit")
    method = VFM.Config(threshold=0.9, teacher_momentum=0.99, mic=MIC(weight=1.0, block=16, ratio=0.5))
    stage = replace(daformer_small().stages[1], name="vfm", method=method, model=model)
    return small("vfm_small", warm_start(model=model), stage)
