"""Mixtures of source and target, labelled by a teacher."""

from __future__ import annotations

import pytest
import torch
from networks import Says, half_sure
from torch import Tensor
from toy import SEED, make_batches, make_stage

from udaseg.components.cross_domain_mix import mix
from udaseg.components.mixing import class_mask
from udaseg.models.teacher import EMATeacher
from udaseg.types import IGNORE, Batch

STAGE = make_stage("dacs")


def mixture(**options: object) -> tuple[dict[str, Batch], Tensor, object]:
    batches = make_batches(STAGE)
    teacher = EMATeacher(Says(half_sure()), momentum=0.9)
    mixed = mix(
        teacher,
        batches["source"],
        batches["target"],
        seed=SEED,
        **({"threshold": 0.9, "jitter": 0.0} | options),  # type: ignore[arg-type]
    )
    source = batches["source"]
    assert source.label is not None
    return batches, class_mask(source.label, source.index, seed=SEED), mixed


def test_a_mixture_is_source_where_pasted_and_the_teacher_s_elsewhere() -> None:
    batches, mask, mixed = mixture()
    assert mixed.quality == pytest.approx(0.25)  # type: ignore[attr-defined]
    label, source_label = mixed.label, batches["source"].label  # type: ignore[attr-defined]
    assert source_label is not None and 0 < mask.float().mean() < 1
    assert torch.equal(label[mask], source_label[mask]) and (label[~mask] == 1).all()
    weight = mixed.weight  # type: ignore[attr-defined]
    assert (weight[mask] == 1).all() and torch.allclose(weight[~mask], torch.tensor(0.25))
    sure = torch.zeros(2, 64, 64, dtype=torch.bool)
    sure[0, :, :32] = True
    assert torch.equal(mixed.sure, mask | sure)  # type: ignore[attr-defined]
    assert (mixed.target_label == 1).all()  # type: ignore[attr-defined]


def test_rows_at_the_border_of_the_target_weigh_nothing() -> None:
    _, mask, mixed = mixture(ignore_top=5, ignore_bottom=7)
    inside = torch.zeros(2, 64, 64, dtype=torch.bool)
    inside[:, 5:57] = True
    weight = mixed.weight  # type: ignore[attr-defined]
    assert torch.equal(weight > 0, mask | inside)
    assert not (mixed.sure & ~mask & ~inside).any()  # type: ignore[attr-defined]
    assert not mixture(ignore_bottom=500)[2].target_weight.any()  # type: ignore[attr-defined]


def test_few_shot_images_are_pasted_below_the_source() -> None:
    few = make_batches(make_stage("tada"))["fewshot"]
    batches, mask, mixed = mixture(fewshot=few, blur_probability=0.0)
    below = class_mask(
        few.labels, few.index, seed=SEED, include_ignore=False, num_classes=len(half_sure()[0]), purpose="fewshot_mask"
    )
    assert (below & ~mask).any() and (below & mask).any() and not (few.labels[below] == IGNORE).any()
    here, elsewhere = below & ~mask, ~below & ~mask
    assert torch.equal(mixed.label[here], few.labels[here]) and (mixed.label[elsewhere] == 1).all()  # type: ignore[attr-defined]
    assert torch.equal(mixed.label[mask], batches["source"].labels[mask])  # type: ignore[attr-defined]
    assert (mixed.weight[here] == 1).all() and mixed.sure[here].all()  # type: ignore[attr-defined]
    assert torch.allclose(mixed.weight[elsewhere], torch.tensor(0.25))  # type: ignore[attr-defined]
    assert (mixed.target_label == 1).all(), "what the teacher says stays as it was"  # type: ignore[attr-defined]
    image = mixed.image.permute(0, 2, 3, 1)  # type: ignore[attr-defined]
    for where, of in ((here, few), (mask, batches["source"]), (elsewhere, batches["target"])):
        torch.testing.assert_close(image[where], of.image.permute(0, 2, 3, 1)[where])
