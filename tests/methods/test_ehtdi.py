"""EHTDI: what is pasted where, which samples learn, and the average that is evaluated."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from toy import SEED, collect, collect_frozen, make_batches, make_stage, make_state

from udaseg.config import Stage
from udaseg.methods import ehtdi as ehtdi_module
from udaseg.training.step import train_step

PLAIN = {"target_ce", "target_auxiliary", "mixed_ce", "class_contrast", "cell_contrast", "coverage"}


def made(name: str = "ehtdi", **method: Any) -> Stage:
    stage = make_stage(name)
    return replace(stage, method=replace(stage.method, **method))


def half_sure(**method: Any) -> Stage:
    """The student is sure of about half of the target's pixels."""
    student, image = make_state(made()).method.student.eval(), make_batches(made())["target"].image
    with torch.no_grad():
        confidence = student(image, "target").logits.softmax(1).amax(1)
    return made(threshold=float(confidence.median()), **method)


def test_source_and_target_are_two_graphs() -> None:
    stage = made()
    terms = list(make_state(stage).method.train().losses(make_batches(stage), 0, 10))
    assert [{loss.name for loss in part} for part in terms] == [{"source_ce", "auxiliary_ce"}, PLAIN]


def test_edges_count_once_more_and_change_what_is_sure_alone() -> None:
    found = {}
    for edges in (False, True):
        stage = half_sure(edges=edges)
        found[edges] = collect_frozen(make_state(stage), make_batches(stage))
    more = {"target_edge", "target_auxiliary_edge", "mixed_edge", "mixed_auxiliary"}
    assert found[True].keys() - found[False].keys() == more
    assert all(found[True][name].value > 0 for name in more)
    for name in ("source_ce", "target_ce", "target_auxiliary", "cell_contrast"):
        assert found[True][name].value == found[False][name].value
    assert found[True]["mixed_edge"].weight == 0.5**2 and found[True]["mixed_auxiliary"].weight == 0.5 * 1.0 * 0.1


def test_where_nothing_is_sure_the_mixture_is_the_source_s_view() -> None:
    stage = made(threshold=1.0, things=())
    batches = make_batches(stage)
    found = collect_frozen(make_state(stage), batches)
    assert found["coverage"].value == 0 and found["class_contrast"].value == 0
    target = batches["target"]
    other = batches | {"target": replace(target, image=1 - target.image)}
    again = collect_frozen(make_state(stage), other)
    assert again["mixed_ce"].value == found["mixed_ce"].value > 0
    assert again["target_ce"].value != found["target_ce"].value


@pytest.mark.parametrize("samples", ["all", "first"])
def test_the_mixture_and_the_contrast_of_classes_learn_from_all_samples_or_the_first_of_each_group(
    samples: str,
) -> None:
    stage = half_sure(samples=samples, group_size=2, edges=True)
    batches = make_batches(stage)
    found = collect_frozen(make_state(stage), batches)
    changed = {}
    for name, batch in batches.items():
        image = batch.image.clone()
        image[1] = 1 - image[1]
        changed[name] = replace(batch, image=image)
    again = collect_frozen(make_state(stage), changed)
    for name in ("mixed_ce", "mixed_edge", "class_contrast"):
        assert (again[name].value == found[name].value) == (samples == "first"), name
    assert again["target_ce"].value != found["target_ce"].value


def test_the_average_follows_from_the_first_step_on_and_takes_the_student_s_statistics() -> None:
    stage = made(teacher_momentum=0.75)
    state = make_state(stage)
    before = {n: p.clone() for n, p in state.method.student.named_parameters()}
    train_step(state, make_batches(stage), stage, seed=SEED)
    student, average = state.method.student, state.method.predictor
    for (name, mine), theirs in zip(average.named_parameters(), student.parameters(), strict=True):
        torch.testing.assert_close(mine, 0.75 * before[name] + 0.25 * theirs)
    assert all(torch.equal(a, b) for a, b in zip(average.buffers(), student.buffers(), strict=True))
    assert make_state(made(evaluate="student")).method.predictor is not average


def test_things_must_be_classes() -> None:
    with pytest.raises(ValueError, match=r"method\.things \(1, 4\) names classes beyond 0 \.\.\. 3"):
        make_state(made(things=(1, 4)))


def test_images_of_two_sizes_need_a_size_of_their_views() -> None:
    stage = made(crop=None)
    batches = make_batches(stage)
    source = batches["source"]
    smaller = batches | {"source": replace(source, image=source.image[..., :48], label=source.labels[..., :48])}
    with pytest.raises(ValueError, match=r"\(64, 64\) and \(64, 48\)|\(64, 48\) and \(64, 64\)"):
        collect(make_state(stage), smaller)
    assert all(loss.value.isfinite() for loss in collect(make_state(made()), smaller).values())


def test_with_edges_mask_and_class_are_of_the_view_without_things(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in the authors' enhanced script: `label_1_w_f_ori` of main_edge_enhance.py, fe669154."""
    stage = made(edges=True)
    state, batches = make_state(stage), make_batches(stage)
    method = state.method.eval()

    def sure(image: torch.Tensor) -> torch.Tensor:
        """Without the things: of class 3, and that in the left half alone."""
        logits = torch.zeros(len(image), 4, *image.shape[-2:])
        logits[:, 3, :, : image.shape[-1] // 2] = 9.0
        return logits

    monkeypatch.setattr(method, "_predicted", sure)
    labels: list[torch.Tensor] = []
    weak: list[torch.Tensor] = []
    original = ehtdi_module.output_cross_entropy

    def watched(out: Any, label: torch.Tensor, *more: Any, **named: Any) -> torch.Tensor:
        labels.append(label)
        return original(out, label, *more, **named)

    monkeypatch.setattr(ehtdi_module, "output_cross_entropy", watched)
    method.student.register_forward_hook(lambda _, inputs, out: weak.append(out.logits.argmax(1)))
    pasted: list[torch.Tensor] = []
    original_paste = ehtdi_module.paste

    def watched_paste(mask: torch.Tensor, over: torch.Tensor, under: torch.Tensor) -> torch.Tensor:
        pasted.append(mask)
        return original_paste(mask, over, under)

    monkeypatch.setattr(ehtdi_module, "paste", watched_paste)
    list(method.losses(batches, 0, 10))
    things, half = pasted[0], torch.arange(labels[2].shape[2]) < labels[2].shape[2] // 2
    target = half & ~things  # pixels of the target in the mixture: those that are sure
    assert target.any() and (labels[2][target] == 3).all()
    assert (weak[1][target] != 3).any(), "or nothing is tested"
