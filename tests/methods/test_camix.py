"""CAMix: what is pasted when, which pixels are significant, and what the method needs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import CLASSES, SEED, collect_frozen, make_batches, make_stage, make_state

from udaseg.components.mixing import class_mask, context_mask
from udaseg.config import Stage
from udaseg.methods import camix as camix_module
from udaseg.types import IGNORE, Loss


def made(**method: Any) -> Stage:
    stage = make_stage("camix")
    return replace(stage, method=replace(stage.method, **method))


def mask_of(stage: Stage, step: int, monkeypatch: pytest.MonkeyPatch) -> tuple[torch.Tensor, dict[str, Loss]]:
    """The source's pixels in the mixture of a step, and its terms."""
    seen: list[torch.Tensor] = []
    original = type(stage.method).mix

    def watched(*arguments: Any, **named: Any) -> Any:
        mixed = original(*arguments, **named)
        seen.append(mixed.mask)
        return mixed

    monkeypatch.setattr(type(stage.method), "mix", watched)
    method = make_state(stage).method.eval()
    found = {loss.name: loss for part in method.losses(make_batches(stage), step, 20) for loss in part}
    return seen[0], found


def test_half_of_the_source_s_classes_are_pasted_until_the_mask_is_contextual(monkeypatch: pytest.MonkeyPatch) -> None:
    stage = made(context_from=5)
    batches, network = make_batches(stage), make_state(stage).method.eval().teacher.network
    source, target = batches["source"], batches["target"]
    before, _ = mask_of(stage, 4, monkeypatch)
    assert torch.equal(before, class_mask(source.labels, source.index, seed=SEED, num_classes=CLASSES))
    after, _ = mask_of(stage, 5, monkeypatch)
    with torch.no_grad():
        probability = network(target.image, "target").logits.softmax(1)
    prior = torch.nn.functional.interpolate(target.priors, size=(64, 64), mode="bilinear", align_corners=False)
    label = (probability * prior).argmax(1)
    pasted = context_mask(label, target.index, companions=((1, 2), (2, 3)), seed=SEED, num_classes=CLASSES)
    assert torch.equal(after, ~pasted)


def test_pixels_of_which_the_teacher_is_unsure_are_not_learned_from(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none of the target's is significant, what the teacher calls them cannot matter; as released it does."""
    monkeypatch.setattr(camix_module, "entropy_threshold", lambda *_, **__: -1.0)
    values: dict[str, list[float]] = {"paper": [], "released": []}
    for form, found in values.items():
        stage = made(significance=form, context_from=100, threshold=0.0)  # a mask that the teacher does not make
        state = make_state(stage)
        for flipped in (False, True):
            if flipped:
                with torch.no_grad():
                    for parameter in state.method.teacher.network.net.head.parameters():
                        parameter.neg_()
            losses = collect_frozen(state, make_batches(stage))
            found.append(losses["mixed_ce"].value.item())
            assert 0 < losses["significant"].value < 1
    assert values["paper"][0] == values["paper"][1] > 0
    assert values["released"][0] != values["released"][1]


def test_every_pixel_is_significant_once_the_threshold_has_risen() -> None:
    method = make_state(made()).method.eval()
    batches = make_batches(make_stage("camix"))
    late = {loss.name: loss for part in method.losses(batches, 10, 20) for loss in part}
    assert late["significant"].value == pytest.approx(1)


def test_the_feature_distance_is_daformers_and_kept_only_where_it_is_on() -> None:
    assert collect_frozen(make_state(made()), make_batches(made()))["feature_distance"].weight == 0.1
    state = make_state(made(feature_weight=0.0, things=(99,)))
    assert state.method.beginning is None and "feature_distance" not in collect_frozen(state, make_batches(made()))


@pytest.mark.parametrize(
    ("field", "value"), [("companions", ((1, 2), (2, 4))), ("things", (1, 4))], ids=["companions", "things"]
)
def test_classes_that_are_named_must_be_classes(field: str, value: object) -> None:
    with pytest.raises(ValueError, match=rf"method\.{field} .*4.* names classes beyond 0 \.\.\. 3"):
        make_state(made(**{field: value}))


def test_a_stream_without_a_prior_says_what_is_missing() -> None:
    stage = made()
    batches = make_batches(stage)
    bare = batches | {"target": replace(batches["target"], prior=None)}
    with pytest.raises(ValueError, match=r"stream 'target' has no spatial prior: set data\.target\.prior"):
        collect_frozen(make_state(stage), bare)


def test_the_source_s_loss_has_a_reduction_of_its_own() -> None:
    """DACS's is the mean over labelled pixels, DAFormer's over all."""
    found = {}
    for reduction in ("valid", "all"):
        stage = made(source_reduction=reduction)
        batches = make_batches(stage)
        found[reduction] = collect_frozen(make_state(stage), batches)
    kept = (batches["source"].labels != IGNORE).float().mean()
    assert 0 < kept < 1
    torch.testing.assert_close(found["all"]["source_ce"].value, found["valid"]["source_ce"].value * kept)
    assert found["all"]["mixed_ce"].value == found["valid"]["mixed_ce"].value
