"""I2I+CR, our reconstruction: semantically consistent translation, then mixtures of target images (2111.03522)."""

from __future__ import annotations

from dataclasses import replace

from udaseg.config import DEFAULT_RULES, Data, Optim, Recipe, Stage, Stream
from udaseg.methods.i2i_cr import I2ICR
from udaseg.methods.supervised import Supervised
from udaseg.recipes.common import CAFFE_DEEPLAB, ROUND_STEPS, SMALL, SMALL_DATA, SMALL_OPTIM, small, warm_start

_MODEL = replace(CAFFE_DEEPLAB, head="aspp_gn", head_channels=256)
"""With ProDA's head, which drops channels in training, as the student does that is held to its teacher."""


def _i2i_cr(name: str, *, source_short_side: int) -> Recipe:
    source = Stage(
        name="source",
        method=Supervised.Config(stream="source"),
        steps=40_000,
        model=_MODEL,
        data=Data(
            batch_size=2,
            short_side=512,
            crop=(512, 512),
            source=Stream(labels="true", short_side=source_short_side),
            target=None,
        ),
        optim=Optim(lr=2.5e-4),
    )
    translation = replace(
        source,
        name="translation",
        method=I2ICR.Config(),
        data=replace(source.data, target=Stream(labels="pseudo")),
        init_from="source",
        pseudo_label=DEFAULT_RULES,
    )
    consistency = replace(
        translation,
        name="consistency",
        method=I2ICR.Config(phase="consistency", group_size=2),
        steps=80_000,
        data=replace(source.data, group_size=2, target=Stream(labels="none")),
        init_from="translation",
        translated_by="translation",
        pseudo_label=None,
    )
    return Recipe(name=name, stages=(source, translation, consistency), checkpoint_every=2000)


def i2i_cr() -> Recipe:
    """I2I+CR, our reconstruction, GTA5 -> Cityscapes (2111.03522): the paper's figure could not be read.

    DeepLabV2-R101: 40,000 steps of 2 source crops of 512; 40,000 of 2 + 2 beside two generators and two discriminators;
    the source's training images translated once, as PNG, so on the disk about as large as they are; 80,000 of 2 + 2.
    """
    return _i2i_cr("i2i_cr", source_short_side=720)


def i2i_cr_synthia() -> Recipe:
    """I2I+CR, our reconstruction, SYNTHIA -> Cityscapes (2111.03522): the paper's figure could not be read.

    As `i2i_cr`, with source images of 1280 x 760.
    """
    return _i2i_cr("i2i_cr_synthia", source_short_side=760)


def i2i_cr_small() -> Recipe:
    """I2I+CR from a source-only warm start, on a small network and small generators."""
    translation = Stage(
        name="translation",
        method=I2ICR.Config(generator_channels=8, generator_blocks=2, discriminator_channels=16),
        steps=ROUND_STEPS,
        model=SMALL,
        data=replace(SMALL_DATA, target=Stream(labels="pseudo")),
        optim=SMALL_OPTIM,
        init_from="source",
        pseudo_label=DEFAULT_RULES,
    )
    consistency = replace(
        translation,
        name="consistency",
        method=I2ICR.Config(phase="consistency", threshold=0.9, group_size=2),
        data=replace(SMALL_DATA, group_size=2),
        init_from="translation",
        translated_by="translation",
        pseudo_label=None,
    )
    return small("i2i_cr_small", warm_start(), translation, consistency)
