"""TADA (TACS, 2109.04813): source and target have other classes; a few labelled target images show what is new."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import Data, Optim, Recipe, Stage, Stream
from udaseg.methods.tada import TADA
from udaseg.recipes.common import CAFFE_DEEPLAB, ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small, warm_start

_FEWSHOT = Stream(labels="true")


def tada() -> Recipe:
    """TADA, SYNTHIA -> Cityscapes, open taxonomy (2109.04813): 30 labelled images of each of six new classes.

    Two-branch DeepLabV2-R101, 250,000 steps of 2 + 2 + 2 crops of 512. A step runs student and teacher on two views
    each. Wall, fence, pole, terrain, truck and train are `null` in the source's mapping. The authors start from COCO
    weights; ImageNet here.
    """
    stage = Stage(
        name="tada",
        method=TADA.Config(variant="released", relabel_from=125_000, group_size=2, evaluate="student"),
        steps=250_000,
        model=replace(CAFFE_DEEPLAB, head_branches=(6, 12)),
        data=Data(
            batch_size=2,
            group_size=2,
            short_side=512,
            crop=(512, 512),
            flip=0.0,
            source=Stream(labels="candidates", short_side=720, resample="bicubic"),
            fewshot=_FEWSHOT,
        ),
        optim=Optim(lr=2.5e-4),
    )
    return Recipe(name="tada", stages=(stage,), checkpoint_every=2000)


def tada_coarse() -> Recipe:
    """TADA, GTA5 -> Cityscapes, coarse to fine (2109.04813): vegetation, people and cycles become two classes each."""
    return replace(tada(), name="tada_coarse")


def tada_overlap() -> Recipe:
    """TADA, Synscapes -> Cityscapes, overlapping taxonomies (2109.04813): a vehicle may be of three classes.

    15 labelled images of each class concerned.
    """
    recipe = tada()
    stage = replace(recipe.stages[0], method=replace(recipe.stages[0].method, keep=0.4))
    return replace(recipe, name="tada_overlap", stages=(stage,))


def tada_small() -> Recipe:
    """TADA on a small network, from a source-only warm start; few-shot images are the target's split "fewshot"."""
    stage = Stage(
        name="tada",
        method=TADA.Config(threshold=0.9, relabel_from=ROUND_STEPS, anchors_per_class=4, projection_channels=32),
        steps=2 * ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, source=Stream(labels="candidates"), fewshot=_FEWSHOT),
        optim=SMALL_OPTIM,
        init_from="source",
    )
    return small("tada_small", warm_start(), stage)
