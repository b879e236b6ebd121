"""Parts that student/teacher methods share, each against what it says of itself."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy import CLASSES, SEED, make_batches, make_stage, make_state

from udaseg.components.cross_domain_mix import mix
from udaseg.components.feature_distance import thing_distance
from udaseg.components.masked_consistency import MIC, patch_mask
from udaseg.components.mixing import class_mask
from udaseg.losses.segmentation import cross_entropy
from udaseg.models.teacher import EMATeacher, FrozenNetwork
from udaseg.types import IGNORE, Batch, SegOutput

STAGE = make_stage("dacs")


class Says(nn.Module):
    """A network whose logits are chosen, and that keeps what it was shown."""

    def __init__(self, logits: Tensor) -> None:
        super().__init__()
        self.num_classes = logits.shape[1]
        self.register_buffer("logits", logits)
        self.register_buffer("mean", torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1))
        self.seen: list[Tensor] = []

    def forward(self, image: Tensor, domain: str = "target", index: Tensor | None = None) -> SegOutput:
        self.seen.append(image)
        return SegOutput(logits=self.logits, embedding=self.logits)


def half_sure() -> Tensor:
    """(2, K, 64, 64) logits: class 1 everywhere, confident in the left half of sample 0 alone."""
    logits = torch.zeros(2, CLASSES, 64, 64)
    logits[:, 1] = 1.0
    logits[0, 1, :, :32] = 9.0
    return logits


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


def test_masked_consistency_hides_patches_and_asks_for_the_whole_label() -> None:
    target = make_batches(STAGE)["target"]
    student = Says(torch.randn(2, CLASSES, 64, 64, generator=torch.Generator().manual_seed(0)))
    label = torch.randint(0, CLASSES, (2, 64, 64), generator=torch.Generator().manual_seed(1))
    weight = torch.rand(2, 64, 64, generator=torch.Generator().manual_seed(2))
    part = MIC(weight=0.7, block=16, ratio=0.5, jitter=0.0)
    ((term,),) = part.losses(student, target, label, weight, seed=SEED, reduction="all")  # type: ignore[arg-type]
    assert (term.name, term.weight) == ("masked_ce", 0.7)
    torch.testing.assert_close(term.value, cross_entropy(student.logits, label, weight, reduction="all"))
    shown = patch_mask(target.image, target.index, block=16, ratio=0.5, seed=SEED)
    hidden = student.seen[0].movedim(1, -1)[~shown]
    assert 0 < shown.float().mean() < 1
    assert torch.equal(hidden, student.mean[0, :, 0, 0].expand_as(hidden))
    assert (student.seen[0].movedim(1, -1)[shown] != student.mean[0, :, 0, 0]).any(1).float().mean() > 0.99


def test_masked_consistency_is_off_at_weight_0() -> None:
    target = make_batches(STAGE)["target"]
    student = Says(half_sure())
    nothing = torch.zeros(2, 64, 64)
    assert not list(MIC().losses(student, target, nothing.long(), nothing, seed=0, reduction="all"))  # type: ignore[arg-type]
    assert not student.seen


def test_things_are_held_near_where_they_were_and_stuff_is_free() -> None:
    state = make_state(STAGE)
    student = state.method.student.eval()
    beginning = FrozenNetwork(student)
    label = torch.zeros(1, 64, 64, dtype=torch.int64)
    label[:, :32, :32] = 2  # the one cell of stride 32 that is a thing
    label[:, :32, 32:56] = 1  # three quarters of a cell
    label[:, 32:, :20] = 1  # too few
    label[:, 60:] = IGNORE
    source = Batch(image=torch.rand(1, 3, 64, 64), index=torch.arange(1), label=label)
    moved = student.levels(source.image, "source")[-1].detach() + torch.tensor([[3.0, 4.0], [100.0, 100.0]])
    distance = thing_distance(moved.requires_grad_(), beginning, source, things=(1, 2), min_share=0.75)
    channels = moved.shape[1]
    torch.testing.assert_close(distance, torch.tensor((3.0 + 4.0) / 2 * channels**0.5))
    distance.backward()
    assert moved.grad is not None and moved.grad[:, :, 0].all() and not moved.grad[:, :, 1].any()
    none = thing_distance(moved, beginning, source, things=(3,), min_share=0.75)
    assert none.item() == 0


@pytest.mark.parametrize(("size", "detail"), [((48, 80), None), ((72, 96), (32, 32))])
def test_the_last_cells_reach_beyond_the_image(size: tuple[int, int], detail: tuple[int, int] | None) -> None:
    """No stride divides these sizes; HRDA's last level sees cells of 64 pixels."""
    stage = replace(STAGE, model=replace(STAGE.model, detail_crop=detail))
    student = make_state(stage).method.student.eval()
    beginning = FrozenNetwork(student)
    source = Batch(image=torch.rand(1, 3, *size), index=torch.arange(1), label=torch.ones(1, *size, dtype=torch.int64))
    feature = student.levels(source.image, "source")[-1].detach()
    cell = student.feature_stride
    assert feature.shape[-2:] == (-(-size[0] // cell), -(-size[1] // cell)) and cell == (32 if detail is None else 64)
    moved = feature.clone()
    moved[:, 0, 0, 0] += 3.0
    inside = max(1, size[0] // cell) * max(1, size[1] // cell)  # whole cells; the others are less than 3/4 image
    if detail is None:
        distance = thing_distance(moved, beginning, source, things=(1,), min_share=0.75)
        torch.testing.assert_close(distance, torch.tensor(3.0 / inside))
    else:
        assert torch.isfinite(thing_distance(moved, beginning, source, things=(1,), min_share=0.5))


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
