"""Whole steps: what the authors' own code returned on the same weights, images and masks, made by formula.

Of DACS and DAFormer's line, on given logits and on whole networks; other systems have a file of their own.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kornia
import pyarrow as pa
import pytest
import torch
from authors import assert_like, fill, image, mmseg_name, norm, without_drop
from steps import CASES, PLANES, near
from torch import Tensor, nn

from udaseg.components import cross_domain_mix, masked_consistency
from udaseg.components import feature_distance as distance_module
from udaseg.components.augment import BLUR_KERNEL, jitter_hsv
from udaseg.components.feature_distance import feature_distance
from udaseg.components.masked_consistency import MIC
from udaseg.data.index import open_index
from udaseg.data.manifest import MANIFEST, write_dataset
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.dacs import DACS
from udaseg.methods.daformer import DAFormer
from udaseg.models.build import build_segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.types import IGNORE, Batch, Loss, SegOutput

plane, ids = PLANES.waves, PLANES.ids
SIZE = (2, 19, 24, 32)


# --- steps on given logits ------------------------------------------------------------------------------------------


class Given(nn.Module):
    """A student whose outputs are given, one after the other."""

    num_classes, feature_stride, embedding_channels, feature_channels = 19, 4, 19, (32,)

    def __init__(self, *logits: Tensor, feature: Tensor | None = None) -> None:
        super().__init__()
        self.left, self.feature = list(logits), feature
        self.mean = torch.zeros(1, 3, 1, 1)

    def forward(self, *_: object, **named: object) -> SegOutput:
        logits = self.left.pop(0)
        features = () if self.feature is None else (self.feature,)
        return SegOutput(logits=logits, embedding=logits, features=features, aux={"coarse_logits": logits})


@pytest.fixture
def fixed(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The mask of ClassMix is given, and nothing is jittered."""
    mask = ids((2, 24, 32), 2, 3) == 1
    monkeypatch.setattr(cross_domain_mix, "class_mask", lambda *_, **__: mask)
    for module in (cross_domain_mix, masked_consistency):
        monkeypatch.setattr(module, "strong", lambda x, *_, **__: x)
    yield


def given_batches() -> dict[str, Batch]:
    label = ids((2, 24, 32), 19)
    label[:, :3] = IGNORE
    index = torch.arange(2)
    source = Batch(image=torch.zeros(2, 3, 24, 32), index=index, label=label, stream="source")
    return {"source": source, "target": Batch(image=torch.zeros(2, 3, 24, 32), index=index, stream="target")}


def given_logits(*numbers: tuple[float, float]) -> list[Tensor]:
    return [(3 * plane(SIZE, a, b)).requires_grad_() for a, b in numbers]


def run(method: Any, batches: dict[str, Batch], step: int = 0) -> tuple[dict[str, Loss], float]:
    """All terms of a step by name and their weighted sum, whose gradient is taken."""
    losses = {loss.name: loss for part in method.losses(batches, step, 100) for loss in part}
    total = torch.stack([loss.weight * loss.value for loss in losses.values() if loss.weight]).sum()
    total.backward()
    return losses, float(total.detach())


def taught(method: Any) -> None:
    """Its teacher's logits are given."""
    confidence, label = (100 * plane(SIZE, 0.47, 1)).softmax(1).max(1)
    method.teacher.label = lambda *_: (confidence, label)


def test_a_step_of_dacs(fixed: None) -> None:
    case = CASES["DACS/step"]
    source, mixed = given_logits((0.29, 0), (0.61, 2))
    method = DACS(DACS.Config(threshold=0.8), Given(), seed=0)  # type: ignore[arg-type]
    method.student.left = [source, mixed]  # type: ignore[assignment]
    taught(method)
    losses, total = run(method, given_batches())
    assert total == near(case["value"])
    assert float(losses["source_ce"].value) == near(case["source_ce"])
    assert float(losses["mixed_ce"].value) == near(case["mixed_ce"])
    assert float(losses["coverage"].value) == near(case["q"])
    assert source.grad is not None and float(source.grad.norm()) == near(case["grad_l2"]["zs"])
    assert mixed.grad is not None and float(mixed.grad.norm()) == near(case["grad_l2"]["zm"])


@pytest.mark.parametrize(("name", "border"), [("MIC/step", (2, 5)), ("MIC/step, no border", (0, 0))])
def test_a_step_of_mic(name: str, border: tuple[int, int], fixed: None, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    source, mixed, masked = given_logits((0.29, 0), (0.61, 2), (0.83, 0.5))
    feature = plane((2, 32, 6, 8), 0.37).requires_grad_()
    frozen, things = plane((2, 32, 6, 8), 0.53, 1), plane((2, 1, 6, 8), 0.9)[:, 0] > 0
    monkeypatch.setattr(distance_module, "thing_distance", lambda x, *_, **__: feature_distance(x, frozen, things))
    config = DAFormer.Config(threshold=0.8, ignore_top=border[0], ignore_bottom=border[1], mic=MIC(weight=1.0))
    method = DAFormer(config, Given(), seed=0)  # type: ignore[arg-type]
    method.student.left, method.student.feature = [source, mixed, masked], feature  # type: ignore[assignment]
    taught(method)
    losses, total = run(method, given_batches())
    assert total == near(case["value"])
    for ours in ("source_ce", "mixed_ce", "masked_ce"):
        assert float(losses[ours].value) == near(case[ours])
    assert 0.005 * float(losses["feature_distance"].value) == near(case["feature_distance_x_.005"])
    assert float(losses["coverage"].value) == near(case["q"])
    for theirs, plane_ in {"zs": source, "zm": mixed, "zk": masked, "fs": feature}.items():
        assert plane_.grad is not None and float(plane_.grad.norm()) == near(case["grad_l2"][theirs]), theirs


def test_the_loss_of_hrda() -> None:
    case = CASES["HRDA/loss"]
    fused = (3 * plane(SIZE, 0.29)[:, :, ::4, ::4]).requires_grad_()
    crop = (3 * plane(SIZE, 0.61, 2)[:, :, :3, :4]).requires_grad_()
    at = torch.tensor([[8, 8], [8, 8]])
    up = {"mode": "bilinear", "align_corners": False}
    label = given_batches()["source"].labels
    weight = (3 * plane(SIZE, 0.83, 0.5)[:, 0]).abs()
    out = SegOutput(
        logits=nn.functional.interpolate(fused, size=(24, 32), **up),  # type: ignore[arg-type]
        embedding=fused,
        aux={"detail_logits": nn.functional.interpolate(crop, size=(12, 16), **up), "detail_at": at},  # type: ignore[arg-type]
    )
    loss = output_cross_entropy(out, label, weight, reduction="all")
    loss.backward()
    assert float(loss) == near(case["value"])
    assert fused.grad is not None and float(fused.grad.norm()) == near(case["grad_l2"]["fused"])
    assert crop.grad is not None and float(crop.grad.norm()) == near(case["grad_l2"]["crop"])


# --- whole networks -------------------------------------------------------------------------------------------------


def whole_step(
    monkeypatch: pytest.MonkeyPatch, *, salt: int, size: int, hrda: bool, mic: bool
) -> tuple[DAFormer, dict[str, Loss], Tensor]:
    """The second step of a method of DAFormer's line on whole networks; its terms, and the teacher's logits."""
    settings: dict[str, Any] = {
        "backbone": "mit_b0", "head": "context_aware", "head_branches": (1, 6, 12, 18), "head_channels": 64,
        "detail_crop": (128, 128) if hrda else None,
    }  # fmt: skip
    student = build_segmenter(19, **settings)
    config = DAFormer.Config(
        threshold=0.15,
        ignore_top=5,
        ignore_bottom=20,
        teacher_moves="before",
        mic=MIC(weight=1.0 if mic else 0.0),
    )
    method = config.build(student, seed=0)
    assert method.beginning is not None
    networks = (method.student, method.teacher.network, method.beginning.network)
    for number, network in enumerate(networks):
        fill(network, lambda key: mmseg_name(key, hrda), salt + number)
    without_drop(method.double(), train=True)  # in single precision the gradients' norms are 6e-4 apart
    method.teacher.updates.fill_(1)
    if hrda:
        box = torch.tensor([[64, 40], [64, 40]])
        monkeypatch.setattr(type(student), "_random", lambda *_: box)
    rows, columns, samples = torch.meshgrid(*(torch.arange(n) for n in (size, size, 2)), indexing="ij")
    k = 96 if hrda else 48
    label = ((6 + columns // k + 4 * (rows // k) + samples) % 19).permute(2, 0, 1)
    label = label.contiguous()
    label[:, :10] = IGNORE
    mask = ((columns // 24 + rows // 20 + samples) % 2 == 0).permute(2, 0, 1)
    shown = ((columns // 32 + 2 * (rows // 32) + samples) % 3 == 0).permute(2, 0, 1)
    monkeypatch.setattr(cross_domain_mix, "class_mask", lambda *_, **__: mask)
    monkeypatch.setattr(masked_consistency, "patch_mask", lambda *_, **__: shown)
    for module in (cross_domain_mix, masked_consistency):
        monkeypatch.setattr(module, "strong", lambda x, *_, **__: x)
    seen: list[Tensor] = []
    forward = method.teacher.forward

    def watched(*arguments: Any) -> SegOutput:
        out = forward(*arguments)
        seen.append(out.logits)
        return out

    monkeypatch.setattr(method.teacher, "forward", watched)
    index = torch.arange(2)
    batches = {
        "source": Batch(image=image((2, 3, size, size), salt + 10).double(), index=index, label=label, stream="source"),
        "target": Batch(image=image((2, 3, size, size), salt + 20).double(), index=index, stream="target"),
    }
    losses, _ = run(method, batches, step=1)
    return method, losses, seen[0]


@pytest.mark.parametrize("mic", [False, True], ids=["DAFormer", "MIC"])
def test_a_whole_step_of_daformer(mic: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["whole MIC(DAFormer) step" if mic else "whole DAFormer step"]
    method, losses, teacher_logits = whole_step(monkeypatch, salt=case["salt"], size=128, hrda=False, mic=mic)
    assert_like(teacher_logits, case["teacher_logits"])
    assert int(teacher_logits.argmax(1).sum()) == case["pseudo_label_sum"]
    assert float(losses["coverage"].value) == near(case["q"])
    expected = case["losses"]
    assert float(losses["source_ce"].value) == near(expected["decode.loss_seg"])
    assert 0.005 * float(losses["feature_distance"].value) == near(expected["src.loss_imnet_feat_dist"])
    assert float(losses["mixed_ce"].value) == near(expected["mix.decode.loss_seg"])
    if mic:
        assert float(losses["masked_ce"].value) == near(expected["masked.decode.loss_seg"])
    net = method.student.net
    assert norm(net.backbone.parameters()) == near(case["grad_l2"]["backbone"])  # type: ignore[union-attr]
    assert norm(net.head.parameters()) == near(case["grad_l2"]["head"])  # type: ignore[union-attr]


def test_a_whole_step_of_mic_on_hrda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The teacher sees all overlapping crops as one batch, whose statistics its batch norms take."""
    case = CASES["whole MIC(HRDA) step"]
    method, losses, teacher_logits = whole_step(monkeypatch, salt=case["salt"], size=256, hrda=True, mic=True)
    assert_like(teacher_logits, case["teacher_logits"])
    assert int(teacher_logits.argmax(1).sum()) == case["pseudo_label_sum"]
    assert float(losses["coverage"].value) == near(case["q"])
    expected = case["losses"]
    assert float(losses["source_ce"].value) == near(expected["decode.loss_seg"] + expected["decode.hr.loss_seg"])
    assert 0.005 * float(losses["feature_distance"].value) == near(expected["src.loss_imnet_feat_dist"])
    for ours in ("mix", "masked"):
        both = expected[f"{ours}.decode.loss_seg"] + expected[f"{ours}.decode.hr.loss_seg"]
        assert float(losses["mixed_ce" if ours == "mix" else "masked_ce"].value) == near(both)
    net = method.student.net
    for part, theirs in {"backbone": "backbone", "head": "head", "attention": "scale_attention"}.items():
        assert norm(getattr(net, part).parameters()) == near(case["grad_l2"][theirs]), part


# --- parts ----------------------------------------------------------------------------------------------------------


def numbers(text: str, word: str) -> list[float]:
    """The numbers that follow a word, of samples 0 and 1."""
    found = re.search(rf"{word} ([-.\d]+),([-.\d]+)", text)
    assert found is not None, word
    return [float(found[1]), float(found[2])]


def jitter_case() -> dict[str, Any]:
    return CASES["DACS line/colour jitter"]


@pytest.mark.parametrize("order", [key for key in jitter_case() if key.startswith("[")])
def test_colour_jitter_as_the_line_pins_it(order: str) -> None:
    inputs = jitter_case()["inputs"]
    words = ("brightness", "contrast", "saturation", "hue")
    factors = [torch.tensor(numbers(inputs, word)) for word in words]
    salt = int(re.findall(r"image salt (\d+)", inputs)[0])
    out = jitter_hsv(image((2, 3, 24, 32), salt), *factors, [json.loads(order)] * 2)
    assert_like(out, jitter_case()[order])


def test_the_blur_is_that_of_the_line() -> None:
    """Ours has a kernel of 7 pixels, the authors' one of a tenth of the side: at most 4e-4 apart."""
    case = CASES["DACS line/blur"]
    salt = int(re.findall(r"image salt (\d+)", jitter_case()["inputs"])[0])
    sigma = float(re.findall(r"sigma ([.\d]+)", case["inputs"])[0])
    picture = image(tuple(case["shape"]), salt)
    out = kornia.filters.gaussian_blur2d(picture, BLUR_KERNEL, (sigma, sigma))
    for place, entry in case["entries"].items():
        assert float(out.flatten()[int(place)]) == pytest.approx(entry, abs=4e-4)


@pytest.mark.parametrize(("line", "moves"), [("DACS", "after"), ("DAFormer", "before")])
def test_the_teacher_that_a_step_uses(line: str, moves: str) -> None:
    """A weight s_t of the student before step t, and the teacher's that labels in it."""
    case = CASES[f"EMA/{line} teacher used at step t"]
    alphas = [key for key in case if key.startswith("alpha ")]
    assert alphas
    for key in alphas:
        assert _teachers(float(key.removeprefix("alpha ")), moves, len(case[key])) == pytest.approx(
            case[key], rel=1e-4, abs=1e-6
        )


def _teachers(momentum: float, moves: str, steps: int) -> list[float]:
    weights = plane((8,), 1.3)
    student = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        student.weight.fill_(weights[0])
        teacher = EMATeacher(student, momentum=momentum)  # type: ignore[arg-type]
        used = []
        for t in range(steps):
            student.weight.fill_(weights[t])
            if moves == "before":
                teacher.update(student)
            used.append(float(teacher.network.weight))  # type: ignore[arg-type]
            if moves == "after":
                student.weight.fill_(weights[t + 1])  # the optimisers have stepped
                teacher.update(student)
    return used


def test_probabilities_of_rare_class_sampling(tmp_path: Path) -> None:
    case, rows = CASES["DAFormer/RCS probabilities"], []
    found = re.search(r"\((\d+) \+ \((\d+)\*(\d+)\*\(i\+1\)\*\(c\+1\)\) % (\d+)\)", case["inputs"])
    assert found is not None
    least, salt, prime, most = map(int, found.groups())
    for i in range(5):
        pixels = [
            (least + (salt * prime * (i + 1) * (c + 1)) % most) * (20 if c < 3 else 1) if (i + c) % 3 else 0
            for c in range(19)
        ]
        uris = {"image_uri": f"{i}.png", "label_uri": f"{i}.png", "height": 1, "width": sum(pixels)}
        rows.append({"image_id": str(i), **uris, "class_pixels": pixels, "dataset": "x", "split": "train"})
    write_dataset(str(tmp_path), pa.Table.from_pylist(rows, schema=MANIFEST), CITYSCAPES_CLASSES)
    for temperature, expected in case["probability at T"].items():
        probability, _ = open_index(str(tmp_path)).rare_classes("train", float(temperature), 1)
        assert probability == pytest.approx([expected[str(c)] for c in range(19)], rel=1e-4)


TESTED = (
    *("whole ", "DACS/", "MIC/", "HRDA/", "EMA/", "DAFormer/", "DACS line/"),
    *("ADVENT/", "MinEnt/", "CLAN/"),
    *("ProDA/", "SePiCo/", "RCCR/", "EHTDI/", "CAMix/"),
)


def test_no_case_is_left_out() -> None:
    assert not [name for name in CASES if not name.startswith(TESTED)]
