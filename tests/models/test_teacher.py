"""The EMA teacher, and a network that is kept as it was."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from toy import make_stage, make_state

from udaseg.methods.bcl import DomainBias
from udaseg.models.build import build_segmenter
from udaseg.models.teacher import EMATeacher, FrozenNetwork


def _student(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout2d(dropout), nn.Conv2d(4, 2, 1))


def _move(student: nn.Module, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator))


def test_teacher_is_the_ramped_moving_average_of_the_parameters() -> None:
    student = _student()
    teacher = EMATeacher(student, momentum=0.6)
    expected = [p.detach().clone() for p in student.parameters()]
    for t in range(5):
        _move(student, t)
        alpha = min(1 - 1 / (t + 1), 0.6)
        expected = [alpha * e + (1 - alpha) * p.detach() for e, p in zip(expected, student.parameters(), strict=True)]
        teacher.update(student)
        if t == 0:
            assert all(torch.equal(e, p) for e, p in zip(expected, student.parameters(), strict=True))
        for mine, e in zip(teacher.network.parameters(), expected, strict=True):
            torch.testing.assert_close(mine.detach(), e)
    assert int(teacher.updates) == 5


def test_teacher_never_learns_and_shares_nothing() -> None:
    student = _student()
    teacher = EMATeacher(student, momentum=0.9)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in student.parameters())
    before = [p.clone() for p in teacher.network.parameters()]
    _move(student, 0)
    assert all(torch.equal(a, b) for a, b in zip(before, teacher.network.parameters(), strict=True))


def test_own_statistics_are_those_of_what_the_teacher_sees() -> None:
    student = _student()
    teacher = EMATeacher(student, momentum=0.9).train()
    with torch.no_grad():
        student(5 + torch.rand(4, 3, 8, 8))
    teacher.update(student)
    assert not teacher.network[1].running_mean.any()  # type: ignore[index]
    teacher.network(torch.rand(4, 3, 8, 8))
    assert teacher.network[1].running_mean.any()  # type: ignore[index]
    assert not torch.equal(teacher.network[1].running_mean, student[1].running_mean)  # type: ignore[index]


def test_student_statistics_are_copied() -> None:
    student = _student()
    teacher = EMATeacher(student, momentum=0.9, statistics="student")
    with torch.no_grad():
        student(5 + torch.rand(4, 3, 8, 8))
    teacher.update(student)
    for mine, theirs in zip(teacher.network.buffers(), student.buffers(), strict=True):
        assert torch.equal(mine, theirs)


def test_dropout_is_off_while_batch_norm_trains() -> None:
    teacher = EMATeacher(_student(dropout=0.9), momentum=0.9).train()
    assert teacher.network[1].training and not teacher.network[2].training  # type: ignore[index]
    image = torch.rand(4, 3, 8, 8)
    assert torch.equal(teacher.network(image), teacher.network(image))
    assert not teacher.eval().network[1].training  # type: ignore[index]


def test_dropout_stays_on_where_the_teacher_drops() -> None:
    teacher = EMATeacher(_student(dropout=0.9), momentum=0.9, drops=True).train()  # type: ignore[arg-type]
    image = torch.ones(4, 3, 8, 8)
    assert not torch.equal(teacher.network(image), teacher.network(image))
    assert torch.equal(teacher.eval().network(image), teacher.network(image))


def test_without_a_ramp_the_first_step_is_as_short_as_any() -> None:
    student = nn.Linear(1, 1, bias=False)
    nn.init.constant_(student.weight, 1.0)
    teacher = EMATeacher(student, momentum=0.75, ramp=False)  # type: ignore[arg-type]
    nn.init.constant_(student.weight, 5.0)
    teacher.update(student)
    assert float(teacher.network.weight) == 2.0  # type: ignore[arg-type]


def test_drop_path_of_a_timm_backbone_is_off_too() -> None:
    import timm

    body = timm.create_model("test_convnext", drop_path_rate=0.9, features_only=True)
    teacher = EMATeacher(body, momentum=0.9).train()
    image = torch.rand(2, 3, 64, 64)
    assert not torch.equal(body.train()(image)[-1], body(image)[-1]), "the student drops paths"
    assert torch.equal(teacher.network(image)[-1], teacher.network(image)[-1])


def test_teacher_labels_with_its_most_certain_class() -> None:
    torch.manual_seed(0)
    teacher = EMATeacher(build_segmenter(4, backbone="resnet10t", head_channels=8), momentum=0.9).eval()
    image = torch.rand(2, 3, 64, 64)
    confidence, label = teacher.label(image)
    probability = teacher.network(image, "target").logits.softmax(1)
    assert torch.equal(label, probability.argmax(1)) and torch.equal(confidence, probability.amax(1))
    assert not confidence.requires_grad


def test_what_made_an_image_learns_from_the_teacher_that_judges_it() -> None:
    torch.manual_seed(0)
    teacher = EMATeacher(build_segmenter(4, backbone="resnet10t", head_channels=8), momentum=0.9).train()
    before = {name: tensor.clone() for name, tensor in teacher.state_dict().items()}
    image = torch.rand(2, 3, 64, 64, requires_grad=True)
    judged = teacher.judge(image, "target").logits
    assert torch.equal(judged.detach(), teacher.aside(image, "target").logits)
    judged.sum().backward()
    assert image.grad is not None and image.grad.any()
    assert all(p.grad is None for p in teacher.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in teacher.state_dict().items())


@pytest.mark.parametrize("momentum", [-0.1, 1.0, 1.5])
def test_momentum_outside_its_range_is_refused(momentum: float) -> None:
    with pytest.raises(ValueError, match="momentum"):
        EMATeacher(_student(), momentum=momentum)
    with pytest.raises(ValueError, match="momentum"):
        DomainBias(3, 2, momentum=momentum)


def test_teacher_state_is_all_there_is_to_save() -> None:
    student = _student()
    teacher, other = EMATeacher(student, momentum=0.9), EMATeacher(_student(), momentum=0.9)
    for t in range(3):
        _move(student, t)
        teacher.update(student)
    other.load_state_dict(teacher.state_dict())
    _move(student, 9)
    teacher.update(student)
    other.update(student)
    assert all(torch.equal(a, b) for a, b in zip(teacher.parameters(), other.parameters(), strict=True))


STAGE = make_stage("dacs")


def test_what_is_frozen_stays_as_it_was() -> None:
    student = make_state(STAGE).method.student
    frozen = FrozenNetwork(student).train()
    image = torch.rand(2, 3, 64, 64)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    levels = frozen.levels(image, "source")
    assert not any(level.requires_grad for level in levels)
    assert all(torch.equal(tensor, before[name]) for name, tensor in frozen.state_dict().items())
    assert not any(parameter.requires_grad for parameter in frozen.parameters())
    with torch.no_grad():
        for parameter in student.parameters():
            parameter.add_(1)
    assert torch.equal(frozen.levels(image, "source")[-1], levels[-1])


def test_levels_are_those_of_the_output_and_the_head_is_not_run() -> None:
    frozen = FrozenNetwork(make_state(STAGE).method.student)
    image = torch.rand(2, 3, 64, 64)
    whole = frozen(image, "target").features
    frozen.network.net.head.register_forward_pre_hook(lambda *_: pytest.fail("the head was run"))
    for level, expected in zip(frozen.levels(image, "target"), whole, strict=True):
        assert torch.equal(level, expected)
    with pytest.raises(pytest.fail.Exception, match="the head was run"):
        frozen(image, "target")
