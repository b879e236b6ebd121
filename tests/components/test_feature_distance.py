"""The distance of things' features, each against a loop."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from draws import labels, normal
from toy import make_stage, make_state

from udaseg.components.feature_distance import feature_distance, majority_label, thing_distance
from udaseg.models.teacher import FrozenNetwork
from udaseg.types import IGNORE, Batch


def test_feature_distance_is_the_loop_over_the_mask() -> None:
    a, b = normal(2, 3, 4, 4), normal(2, 3, 4, 4, seed=1)
    mask = normal(2, 4, 4, seed=2) > 0
    found = [float((a[n, :, i, j] - b[n, :, i, j]).norm()) for n, i, j in mask.nonzero().tolist()]
    assert feature_distance(a, b, mask).item() == pytest.approx(sum(found) / len(found), rel=1e-9)
    a.requires_grad_()
    nothing = feature_distance(a, b, torch.zeros_like(mask))
    nothing.backward()
    assert nothing.item() == 0 and a.grad is not None and not a.grad.any()


def test_equal_features_have_a_finite_gradient() -> None:
    a = normal(1, 3, 2, 2).requires_grad_()
    feature_distance(a, a.detach(), torch.ones(1, 2, 2, dtype=torch.bool)).backward()
    assert a.grad is not None and a.grad.isfinite().all()


def test_majority_label_counts_each_window() -> None:
    label = labels(2, 8, 12, classes=3, ignored=0.3)
    label[0, :4, :4] = 1
    found = majority_label(label, 4, num_classes=3, min_share=0.4)
    assert found.shape == (2, 2, 3)
    for n, i, j in np.ndindex(2, 2, 3):
        window = label[n, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]
        counts = [int((window == c).sum()) for c in (0, 1, 2, IGNORE)]
        best = int(np.argmax(counts))
        expected = IGNORE if best == 3 or counts[best] < 0.4 * 16 else best
        assert found[n, i, j] == expected
    assert found[0, 0, 0] == 1


STAGE = make_stage("dacs")


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
