"""Masked image consistency: what is hidden, and what is asked of it."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from networks import Says, half_sure
from toy import CLASSES, SEED, make_batches, make_stage, make_state

from udaseg.components import masked_consistency
from udaseg.components.masked_consistency import MIC, patch_mask
from udaseg.losses.segmentation import cross_entropy

STAGE = make_stage("dacs")
SOURCE = make_batches(STAGE)["source"]


def test_masked_consistency_hides_patches_and_asks_for_the_whole_label() -> None:
    target = make_batches(STAGE)["target"]
    student = Says(torch.randn(2, CLASSES, 64, 64, generator=torch.Generator().manual_seed(0)))
    label = torch.randint(0, CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    weight = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(2))
    part = MIC(weight=0.7, block=16, ratio=0.5, jitter=0.0)
    ((term,),) = part.losses(student, SOURCE, target, label, weight, seed=SEED, reduction="all")  # type: ignore[arg-type]
    assert (term.name, term.weight) == ("masked_ce", 0.7)
    torch.testing.assert_close(term.value, cross_entropy(student.logits, label, weight, reduction="all"))
    shown = patch_mask(target.image, target.index, block=16, ratio=0.5, seed=SEED)
    hidden = student.seen[0].movedim(1, -1)[~shown]
    assert 0 < shown.float().mean() < 1
    assert torch.equal(hidden, student.mean[0, :, 0, 0].expand_as(hidden))
    assert (student.seen[0].movedim(1, -1)[shown] != student.mean[0, :, 0, 0]).any(1).float().mean() > 0.99


def test_of_every_other_sample_the_source_image_may_be_masked_and_its_true_label_asked_for() -> None:
    batches = make_batches(STAGE, size=4)
    source, target = batches["source"], batches["target"]
    student = Says(torch.randn(4, CLASSES, 64, 64, generator=torch.Generator().manual_seed(0)))
    label = torch.randint(0, CLASSES, (4, 64, 64), generator=torch.Generator().manual_seed(1))
    weight = torch.rand(4, 64, 64, generator=torch.Generator().manual_seed(2))
    part = MIC(weight=1.0, block=16, ratio=0.5, jitter=0.0, blur_probability=0.0, images="both")
    ((term,),) = part.losses(student, source, target, label, weight, seed=SEED, reduction="all")  # type: ignore[arg-type]
    shown, total = patch_mask(target.image, target.index, block=16, ratio=0.5, seed=SEED), 0.0
    assert target.index.tolist() == [0, 1, 2, 3]
    for i, (of, asked, factor) in enumerate(
        [(source, source.labels, torch.ones_like(weight)), (target, label, weight)] * 2
    ):
        assert torch.equal(student.seen[0][i].movedim(0, -1)[shown[i]], of.image[i].movedim(0, -1)[shown[i]])
        loss = F.cross_entropy(student.logits[i : i + 1], asked[i : i + 1], ignore_index=255, reduction="none")
        total += float((loss[0] * factor[i]).sum())
    assert term.value.item() == pytest.approx(total / label.numel(), rel=1e-5)


def test_masked_consistency_is_off_at_weight_0() -> None:
    target = make_batches(STAGE)["target"]
    student = Says(half_sure())
    nothing = torch.zeros(2, 64, 64)
    assert not list(MIC().losses(student, SOURCE, target, nothing.long(), nothing, seed=0, reduction="all"))  # type: ignore[arg-type]
    assert not student.seen


def test_patches_are_hidden_whole_at_the_given_share() -> None:
    image, index = torch.zeros(40, 3, 48, 64), torch.arange(40)
    shown = patch_mask(image, index, block=16, ratio=0.7, seed=0)
    assert shown.shape == (40, 48, 64)
    for i, j in np.ndindex(3, 4):
        patch = shown[:, 16 * i : 16 * (i + 1), 16 * j : 16 * (j + 1)].flatten(1)
        assert (patch.all(1) | ~patch.any(1)).all()
    assert 0.25 < shown.float().mean() < 0.35
    assert torch.equal(patch_mask(image[7:9], index[7:9], block=16, ratio=0.7, seed=0), shown[7:9])
    assert patch_mask(image, index, block=16, ratio=0.0, seed=0).all()
    assert not patch_mask(image, index, block=16, ratio=1.0, seed=0).any()


def test_patches_fill_the_image_evenly_where_its_side_is_no_multiple_of_theirs() -> None:
    """A side of 100 pixels has round(100 / 64) = 2 cells of 50; one below half a block still has one."""
    image, index = torch.zeros(40, 3, 100, 20), torch.arange(40)
    shown = patch_mask(image, index, block=64, ratio=0.5, seed=SEED)
    assert shown.shape == (40, 100, 20)
    halves = torch.stack([shown[:, :50], shown[:, 50:]], 1).flatten(2)
    assert torch.equal(halves.all(2), halves.any(2)), "each half is hidden or shown whole"
    assert 0.3 < halves.float().mean() < 0.7 and (halves[:, 0, 0] != halves[:, 1, 0]).any()


def test_the_masked_view_is_jittered_as_the_method_s_mixture_unless_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors have one jitter for both; the forms of Kornia's versions lie up to 0.18 apart."""
    seen: list[str] = []
    original = masked_consistency.strong

    def watched(*arguments: Any, form: str, **named: Any) -> torch.Tensor:
        seen.append(form)
        return original(*arguments, form=form, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(masked_consistency, "strong", watched)
    for own in (None, "blend"):
        stage = make_stage("daformer")
        part = MIC(weight=1.0, block=16, jitter_form=own)  # type: ignore[arg-type]
        stage = replace(stage, method=replace(stage.method, mic=part, jitter_form="hsv"))
        list(make_state(stage).method.train().losses(make_batches(stage), 0, 10))
    assert seen == ["hsv", "blend"]
