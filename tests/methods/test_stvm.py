"""STvM: who learns from what, what a pixel weighs, and what MOCM pastes where."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from toy import collect_frozen, make_batches, make_stage, make_state

from udaseg.methods.stvm import STvM

PLAIN = STvM.Config(metric_channels=8, jitter_probability=0, blur_probability=0, prior=0.5)


def made(**settings: object) -> STvM:
    """Without a strong view."""
    stage = replace(make_stage("stvm"), method=replace(PLAIN, **settings))  # type: ignore[arg-type]
    return make_state(stage).method.eval()  # type: ignore[return-value]


def test_each_pixel_of_the_mixture_weighs_the_metric_s_probability_of_its_class() -> None:
    method, batch = made(), make_batches(make_stage("stvm"), size=4)["target"]
    batch = replace(batch, image=torch.rand(4, 3, 64, 64, generator=torch.Generator().manual_seed(0)))
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    found = [loss for losses in method.losses({"target": batch}, 0, 10) for loss in losses]
    taught = method.teacher(batch.image)
    cosines = method.metric(taught.features[-1])[1][:, :, 0]
    up = F.interpolate(cosines / 0.1, size=(64, 64), mode="bilinear")
    shift = 0.5 * method.frequencies.shares().log()[:, None, None]
    assert shift.unique().numel() > 1, "of the mixture's labels"
    total, pasted = 0.0, 0
    for i, following in enumerate((1, 0, 3, 2)):
        mine = (seen[0][i] == batch.image[i]).all(0)
        assert torch.equal(seen[0][i][:, ~mine], batch.image[following][:, ~mine])
        pasted += int(mine.sum())
        for at, j in ((mine, i), (~mine, following)):
            label = taught.logits[j].argmax(0)
            weight = up[j].softmax(0).gather(0, label[None])[0]
            logits = method.student(seen[0][i : i + 1]).logits + shift
            loss = F.cross_entropy(logits, label[None], reduction="none")[0]
            total += float((weight * loss)[at].detach().sum())
        classes = taught.logits[i].argmax(0)
        assert not set(classes[mine].tolist()) & set(classes[~mine].tolist()), "classes are pasted whole"
    assert pasted > 0
    assert float(found[1].value.detach()) == pytest.approx(total / (4 * 64 * 64), rel=1e-4)


def test_the_metric_learns_what_the_teacher_is_sure_of_and_the_student_does_not_move_it() -> None:
    batches = make_batches(make_stage("stvm"))
    confidence = made().teacher(batches["target"].image).logits.softmax(1).amax(1)[:, ::32, ::32]
    threshold = float(confidence.median())
    method = made(metric_threshold=threshold)
    (metric,), mixed = method.losses(batches, 0, 10)
    taught = method.teacher(batches["target"].image)
    logits = method.metric(taught.features[-1])[1][:, :, 0] / 0.1
    sure = confidence >= threshold
    assert logits.shape[2:] == (2, 2) and 0 < sure.sum() < sure.numel()
    label = taught.logits.argmax(1)[:, ::32, ::32]
    expected = F.cross_entropy(logits, label, reduction="none")[sure].mean()
    assert metric.value.item() == pytest.approx(expected.item(), rel=1e-5)
    metric.value.backward()
    assert all(p.grad is not None and p.grad.any() for p in method.metric.parameters())
    assert all(p.grad is None for p in method.student.parameters())
    method.metric.zero_grad(set_to_none=True)
    mixed[0].value.backward()
    assert all(p.grad is None for p in method.metric.parameters())
    assert any(p.grad is not None and p.grad.any() for p in method.student.parameters())


def test_without_mocm_the_target_is_learned_as_it_is() -> None:
    method, batch = made(paste_share=0.0, group_size=1), make_batches(make_stage("stvm"))["target"]
    seen: list[Tensor] = []
    method.student.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    list(method.losses({"target": batch}, 0, 10))
    assert torch.equal(seen[0], batch.image)
    with pytest.raises(ValueError, match="group_size"):
        made(group_size=1)


def test_it_reads_no_source() -> None:
    stage = make_stage("stvm")
    assert set(make_batches(stage)) == {"target"}
    assert collect_frozen(make_state(stage), make_batches(stage))["coverage"].value > 0
