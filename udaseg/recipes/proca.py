"""ProCA: class-centred alignment of both domains (2207.06654)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Optim, PseudoLabel, Recipe
from udaseg.methods.proca import ProCA
from udaseg.recipes.common import on_synthia, small
from udaseg.recipes.sdca import sdca, sdca_small

LABELS = PseudoLabel(share=0.4, cap=0.9, image_share=0.0)
"""The authors': the confidence that four tenths of a class's pixels reach, at most 0.9."""


def proca() -> Recipe:
    """ProCA, GTA5 -> Cityscapes (2207.06654): 55.1 mIoU at one scale (authors' README). DeepLabV2-R101 in three stages.

    SDCA's stages and images, with batch norms that learn throughout: source-only for 20,000 steps of 8, class-centred
    alignment for 90,000 of 4 + 4 whole images, self-training from ImageNet's weights for 90,000 of 8. The paper's 56.3
    is at several scales.
    """
    source, contrast, self_training = sdca().stages
    source = replace(source, model=self_training.model)
    alignment = replace(
        contrast,
        name="alignment",
        model=self_training.model,
        method=ProCA.Config(lovasz_classes="present", confidence="logit", fill_steps=1000),
        steps=90_000,
        optim=Optim(lr=2.5e-4),
    )
    self_training = replace(
        self_training, steps=90_000, optim=Optim(lr=5e-4), pseudo_label=replace(LABELS, by="alignment")
    )
    return Recipe(name="proca", stages=(source, alignment, self_training), checkpoint_every=2000)


def proca_synthia() -> Recipe:
    """ProCA, SYNTHIA -> Cityscapes (2207.06654): 52.0 mIoU-16 at one scale (authors' README).

    The authors' network has SYNTHIA's 16 classes, as have datasets made with a mapping to them.
    """
    return on_synthia(proca())


def proca_small() -> Recipe:
    """ProCA from a source-only warm start on a small network, its contrast at temperature 0.5; then self-training."""
    source, contrast, self_training = sdca_small().stages
    alignment = replace(contrast, name="alignment", method=ProCA.Config(temperature=0.5, fill_steps=60))
    self_training = replace(self_training, init_from="alignment", pseudo_label=LABELS)
    return small("proca_small", source, alignment, self_training)
