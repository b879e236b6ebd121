"""SePiCo: what the teacher's features describe, when the contrast begins, and the target's crop."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import changed, collect, make_batches, make_stage, make_state, snapshot

from udaseg.config import Stage
from udaseg.models.heads import LevelProjection
from udaseg.recipes import RECIPES
from udaseg.types import Batch, Loss


def made(name: str = "sepico", **method: Any) -> Stage:
    stage = make_stage(name)
    return replace(stage, method=replace(stage.method, **method))


def terms(method: Any, batches: dict[str, Batch], step: int) -> dict[str, Loss]:
    return {loss.name: loss for losses in method.losses(batches, step, 10) for loss in losses}


def test_classes_are_described_from_the_first_step_and_contrasted_later() -> None:
    stage = made("sepico_bank", contrast_from=1)
    state, batches = make_state(stage), make_batches(stage)
    assert terms(state.method, batches, 0).keys() == {"source_ce", "mixed_ce", "coverage"}
    assert state.method.classes.count.sum() > 0 and state.method.bank.filled.max() == 2
    both = {f"{domain}_{what}" for domain in ("source", "target") for what in ("contrast", "regulariser")}
    assert terms(state.method, batches, 1).keys() == {"source_ce", "mixed_ce", "coverage"} | both


def test_describing_the_classes_leaves_the_teacher_as_it_is() -> None:
    stage = make_stage("sepico")
    state, batches = make_state(stage), make_batches(stage)
    state.method.train()
    before = snapshot(state.method.teacher)
    state.method._describe_classes(batches["source"])
    assert not changed(before, state.method.teacher) and state.method.classes.count.sum() > 0
    state.method.teacher(batches["target"].image)
    assert changed(before, state.method.teacher), "the target's statistics are the teacher's"


def test_the_teacher_s_projection_follows_with_the_teacher() -> None:
    state = make_state(make_stage("sepico"))
    method = state.method
    method.after_step()
    with torch.no_grad():
        for parameter in method.projection.parameters():
            parameter.add_(1)
    before = [p.clone() for p in method.teacher_projection.parameters()]
    method.after_step()  # the second update: half of the way
    for mine, was in zip(method.teacher_projection.parameters(), before, strict=True):
        torch.testing.assert_close(mine, was + 0.5)
        assert not mine.requires_grad


def test_pixels_at_the_border_are_not_contrasted() -> None:
    stage = made("sepico_bank", ignore_top=64)
    found = collect(make_state(stage), make_batches(stage))
    assert found["target_contrast"].value == found["target_regulariser"].value == 0
    assert found["source_contrast"].value > 0 and found["source_regulariser"].value <= -1


def test_variants_differ_in_the_contrast_alone() -> None:
    values = {}
    for contrast in ("distribution", "bank", "prototype"):
        stage = made(contrast=contrast)
        state = make_state(stage)
        values[contrast] = {n: loss.value.item() for n, loss in collect(state, make_batches(stage)).items()}
        assert (state.method.bank is None) == (contrast != "bank")
    for name in values["bank"]:
        assert (len({found[name] for found in values.values()}) == 3) == name.endswith("_contrast"), name


def test_the_target_is_cropped_before_it_is_mixed() -> None:
    stage = make_stage("sepico")
    batches = make_batches(stage)
    source = batches["source"]
    part = replace(source, image=source.image[..., :48, :48], label=source.labels[:, :48, :48])
    mixed = batches | {"source": part}
    with pytest.raises(ValueError, match=r"\(48, 48\) and \(64, 64\) cannot be mixed.*data\.crop"):
        collect(make_state(stage), mixed)
    found = collect(make_state(made(crop=(48, 48))), mixed)
    assert all(loss.value.isfinite() for loss in found.values())


def test_the_published_projections_have_the_authors_sizes() -> None:
    sizes = {}
    for name, channels in (("sepico", (64, 128, 320, 512)), ("sepico_deeplab", (256, 512, 1024, 2048))):
        config = RECIPES[name]().stages[0].method
        read = channels if config.levels == "all" else channels[-1:]
        with torch.device("meta"):
            projection = LevelProjection(read, config.projection_channels)
        sizes[name] = sum(p.numel() for p in projection.parameters())
        unit = LevelProjection((3, 5), 4)((torch.rand(2, 3, 6, 8), torch.rand(2, 5, 3, 4)))
        assert unit.shape == (2, 4, 6, 8) and unit.norm(dim=1).max() <= 1 + 1e-6
    # 1x1 convolutions and their batch norms: 1024 -> 256 -> 512, and 2048 -> 2048 -> 512
    assert sizes == {
        "sepico": 1024 * 256 + 2 * 256 + 256 * 512 + 2 * 512,
        "sepico_deeplab": 2048 * 2048 + 2 * 2048 + 2048 * 512 + 2 * 512,
    }
