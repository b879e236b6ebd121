"""Consistency of pixels' relations: which pixels, whose, and when."""

from __future__ import annotations

import pytest
import torch
from draws import normal
from toy import SEED, collect, make_batches, make_stage, make_state

from udaseg.components.relation_consistency import CRDA
from udaseg.types import SegOutput


class Teacher:
    """Its logits are given."""

    def __init__(self, logits: torch.Tensor) -> None:
        self.logits, self.seen = logits, []

    def __call__(self, image: torch.Tensor) -> SegOutput:
        self.seen.append(image)
        return SegOutput(logits=self.logits, embedding=self.logits)


def relations(part: CRDA, student: torch.Tensor, teacher: Teacher, index: torch.Tensor) -> list[float]:
    image = torch.zeros(len(student), 3, 4, 6)
    return [float(loss.value) for loss in part.losses(student, teacher, image, index, seed=SEED)]  # type: ignore[arg-type]


def test_all_pixels_of_an_image_that_has_no_more() -> None:
    student, logits = normal(1, 3, 4, 6), normal(1, 3, 4, 6, seed=1)
    mine, theirs = (x.flatten(2)[0] / x.flatten(2)[0].norm(dim=0) for x in (student, logits))
    expected = (mine.T @ mine - theirs.T @ theirs).square().mean()
    teacher = Teacher(logits)
    (found,) = relations(CRDA(weight=1.0), student, teacher, torch.arange(1))
    assert found == pytest.approx(float(expected), rel=1e-9)
    assert len(teacher.seen) == 1


def test_a_sample_s_pixels_are_its_own_and_the_same_of_both_networks() -> None:
    student, index = normal(2, 3, 4, 6), torch.tensor([5, 9])
    part = CRDA(weight=1.0, pixels=7)
    assert relations(part, student, Teacher(2 * student), index) == [pytest.approx(0, abs=1e-12)]
    other = normal(2, 3, 4, 6, seed=1)
    (both,) = relations(part, student, Teacher(other), index)
    each = [relations(part, student[i : i + 1], Teacher(other[i : i + 1]), index[i : i + 1])[0] for i in (0, 1)]
    assert both == pytest.approx(sum(each) / 2, rel=1e-9)
    (again,) = relations(part, student[:1], Teacher(other[:1]), index[1:])
    assert again != each[0], "another sample draws others"


def test_it_is_a_term_of_the_mixture_at_its_weight_and_off_at_0() -> None:
    teacher = Teacher(normal(1, 3, 4, 6))
    assert not relations(CRDA(), teacher.logits, teacher, torch.arange(1)) and not teacher.seen
    for name in ("dacs", "crda"):
        stage = make_stage(name)
        losses = collect(make_state(stage), make_batches(stage))
        assert ("relation_consistency" in losses) == (name == "crda")
    assert losses["relation_consistency"].weight == 0.5
