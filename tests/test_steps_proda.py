"""ProDA's steps on given networks, against what the authors' own code returned on the same planes, made by formula."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from authors import assert_like
from steps import CASES, PLANES, near, norm_of, number_after, shape_in
from torch import Tensor, nn
from torch.nn.functional import interpolate

from udaseg.components.prototypes import class_means
from udaseg.components.rand_augment import StrongView
from udaseg.methods import proda as proda_module
from udaseg.methods.proda import ProDA
from udaseg.types import IGNORE, Batch, Loss, SegOutput

STAGE1, DISTILLATION, VECTORS = (
    CASES[f"ProDA/{name}"] for name in ("stage1 step", "distillation step", "mean vectors")
)
LOGITS, _, FEATURES = STAGE1["inputs"].partition("; features ")
MAPS, FEATURE_MAPS = (shape_in(text, "T(") for text in (LOGITS, FEATURES))
"""Shapes of the networks' logits and features."""
IMAGE = tuple(int(n) for n in re.findall(r"images (\d+)x(\d+)", LOGITS)[0])
CLASSES, CHANNELS, CELLS = MAPS[1], FEATURE_MAPS[1], MAPS[2:]
REGULARISER, CONSISTENCY = (number_after(STAGE1["where"], word) for word in ("--regular_w", "--proto_consistW"))


def wave(text: str, name: str, channels: int) -> Tensor:
    """What a case names as "name=3T(a,b)" or "name=3T((shape),a,b)"; without a shape it is one of the networks'."""
    found = re.search(rf"{name}=(?:softmax\()?(\d*)T\((?:\(([\d,]+)\),)?([-.\d]+)(?:,([-.\d]+))?\)", text)
    assert found is not None, name
    factor, shape, a, b = found.groups()
    size = tuple(map(int, shape.split(","))) if shape else (MAPS[0], channels, *CELLS)
    return int(factor or 1) * PLANES.waves(size, float(a), float(b or 0))


def labels(text: str, name: str) -> Tensor:
    """What a case names as "name=Y((shape),classes,m),...[:,:rows]=250": these rows have no label."""
    found = re.search(rf"{name}=Y\(\(([\d,]+)\),(\d+)(?:,(\d+))?\),\w*\[:,:(\d+)\]", text)
    assert found is not None, name
    label = PLANES.ids(tuple(map(int, found[1].split(","))), int(found[2]), int(found[3] or 7))
    label[:, : int(found[4])] = IGNORE
    return label


class Given(nn.Module):
    """A student whose outputs are given, one after the other."""

    num_classes, embedding_channels, align_corners = CLASSES, CHANNELS, True

    def __init__(self) -> None:
        super().__init__()
        self.left: list[tuple[Tensor, Tensor]] = []

    def forward(self, *_: object) -> SegOutput:
        logits, feature = self.left.pop(0)
        full = interpolate(logits, size=IMAGE, mode="bilinear", align_corners=True)
        return SegOutput(logits=full, embedding=feature, aux={"coarse_logits": logits})


def still(image: Tensor, *_: object, **__: object) -> StrongView:
    """A view that is the image."""
    return StrongView(image, torch.eye(3)[:2].expand(len(image), -1, -1), torch.zeros(len(image), 4))


@pytest.fixture
def given(monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """All planes of the first case; those of the student want gradients."""
    monkeypatch.setattr(proda_module, "rand_augment", still)
    planes = {f"logits {name}": wave(LOGITS, name, CLASSES) for name in ("weak", "strong")}
    planes["logits source"] = wave(LOGITS, "source logits", CLASSES)
    planes |= {f"feature {name}": wave(FEATURES, name, CHANNELS) for name in ("weak", "strong")}
    for plane in planes.values():
        plane.requires_grad_()
    planes["ema logits"] = wave(FEATURES, "EMA logits", CLASSES)
    planes["ema feature"] = wave(FEATURES, "EMA feature", CHANNELS)
    return planes


def given_batch(stream: str, **planes: Tensor) -> Batch:
    return Batch(image=torch.zeros(MAPS[0], 3, *IMAGE), index=torch.arange(MAPS[0]), stream=stream, **planes)


def step(method: ProDA, target: Batch) -> dict[str, Loss]:
    """All terms of a step by name; the gradient of each graph's weighted sum is taken."""
    source = given_batch("source", label=labels(FEATURES, "y"))
    found: dict[str, Loss] = {}
    for part in method.losses({"source": source, "target": target}, 1, 100):
        torch.stack([loss.weight * loss.value for loss in part if loss.weight]).sum().backward()
        found |= {loss.name: loss for loss in part}
    return found


def total(losses: dict[str, Loss], *names: str) -> float:
    return sum(losses[name].weight * float(losses[name].value.detach()) for name in names)


def test_a_step_of_denoising(given: dict[str, Tensor]) -> None:
    config = ProDA.Config(uniform_weight=REGULARISER, consistency_weight=CONSISTENCY)
    method: Any = ProDA(config, Given(), seed=0)  # type: ignore[arg-type]
    nothing = torch.zeros(MAPS[0], CHANNELS, *CELLS)
    method.student.left = [
        (given["logits source"], nothing),
        (given["logits weak"], given["feature weak"]),
        (given["logits strong"], given["feature strong"]),
    ]
    seen = SegOutput(
        logits=given["ema logits"], embedding=given["ema feature"], aux={"coarse_logits": given["ema logits"]}
    )
    method.teacher.forward = lambda *_: seen
    method.prototypes.value.copy_(wave(FEATURES, "prototypes", CHANNELS))
    method.prototypes.count.fill_(1)
    before = method.prototypes.value.clone()
    stored = wave(FEATURES, "soft label p0", CLASSES).softmax(1)
    losses = step(method, given_batch("target", distribution=interpolate(stored, size=IMAGE, mode="nearest")))

    own = ("target_ce", "target_rce", "target_uniform")
    assert total(losses, *own) == near(STAGE1["loss_CTS"])
    assert float(losses["prototype_consistency"].value.detach()) == near(STAGE1["loss_consist"])
    assert total(losses, *own, "prototype_consistency") == near(STAGE1["loss"])
    for name, expected in STAGE1["grad_l2"].items():
        assert norm_of(given[name]) == near(expected), name
    assert_like(method.prototypes.value - before, STAGE1["prototype_change"])
    changed = (method.prototypes.value != before).any(1)
    assert int(changed.sum()) == STAGE1["prototypes_updated"]


def test_means_of_the_classes_of_an_image(given: dict[str, Tensor]) -> None:
    least = int(number_after(VECTORS["inputs"], ">="))
    means, present = class_means(given["ema feature"], given["ema logits"].argmax(1), CLASSES, min_cells=least)
    assert present.nonzero()[:, 1].tolist() == VECTORS["ids"]
    assert_like(means[present], VECTORS["vectors"])


def test_a_step_of_distillation(given: dict[str, Tensor]) -> None:
    method: Any = ProDA(ProDA.Config(phase="distil"), Given(), seed=0)  # type: ignore[arg-type]
    method.student.left = [
        (given["logits source"], given["feature weak"]),
        (given["logits strong"], given["feature strong"]),
    ]
    teacher = wave(DISTILLATION["inputs"], "teacher logits", CLASSES).softmax(1)
    label = labels(DISTILLATION["inputs"], "pseudo-label")
    losses = step(method, given_batch("target", label=label, distribution=teacher))
    assert total(losses, "source_ce") == near(DISTILLATION["loss_source"])
    assert total(losses, "target_ce", "distillation") == near(DISTILLATION["loss_target"])
    for name, expected in DISTILLATION["grad_l2"].items():
        assert norm_of(given[f"logits {name}"]) == near(expected), name
