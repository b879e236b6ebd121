"""Whole networks: what those of the authors returned on the CPU with weights and images made by formula.

tests/assets/networks.json holds the values and where they come from; GOLDEN_NETWORKS names another such file.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import assert_like, deeplab_name, fill, image, mmseg_name, norm, without_drop
from torch import Tensor

from udaseg.losses.segmentation import output_cross_entropy
from udaseg.models.build import build_segmenter
from udaseg.models.inference import predict
from udaseg.models.segmenter import Segmenter
from udaseg.types import IGNORE

FILE = Path(os.environ.get("GOLDEN_NETWORKS") or Path(__file__).with_name("assets") / "networks.json")
GOLDEN = json.loads(FILE.read_text())
CASES: dict[str, dict[str, Any]] = GOLDEN["cases"]
SALT: int = GOLDEN["salt"]
CONTEXT: dict[str, Any] = {"backbone": "mit_b0", "head": "context_aware", "head_branches": (1, 6, 12, 18)}
DEEPLAB: dict[str, Any] = {"output_stride": 8, "head": "aspp"}
CAFFE: dict[str, Any] = DEEPLAB | {"backbone": "resnet101", "caffe": True, "align_corners": True}


def mmseg_hrda(key: str) -> str:
    return mmseg_name(key, hrda=True)


def filled(network: Segmenter, name: Callable[[str], str], *, train: bool = False) -> Segmenter:
    fill(network, name, SALT)
    return without_drop(network, train)  # type: ignore[return-value]


def evaluated(network: Segmenter, picture: Tensor, **named: Any) -> Any:
    with torch.no_grad():
        return network(picture, detail="everywhere", **named)


def daformer(case: dict[str, Any], picture: Tensor) -> None:
    _of_daformers_line(case, picture, CONTEXT | {"head_channels": 256})


def deeplab(case: dict[str, Any], picture: Tensor) -> None:
    _of_daformers_line(case, picture, DEEPLAB | {"backbone": "resnet50c"})


def _of_daformers_line(case: dict[str, Any], picture: Tensor, settings: dict[str, Any]) -> None:
    network = filled(build_segmenter(19, **settings), mmseg_name)
    out = evaluated(network, picture)
    assert_like(out.aux["coarse_logits"], case["eval/coarse"])
    assert_like(out.logits, case["eval/logits"])
    if "eval/level4" in case:
        assert_like(out.features[0], case["eval/level1"])
        assert_like(out.features[3], case["eval/level4"])
    assert_like(evaluated(without_drop(network, train=True), picture).logits, case["train/logits"])  # type: ignore[arg-type]
    if "train/bottleneck.bn.running_mean" in case:
        assert_like(network.net.head.fuse.bn.running_mean, case["train/bottleneck.bn.running_mean"])  # type: ignore[union-attr, arg-type]


def hrda(case: dict[str, Any], picture: Tensor) -> None:
    network = build_segmenter(19, head_channels=256, detail_crop=(128, 128), **CONTEXT)
    out = evaluated(filled(network, mmseg_hrda), picture)
    assert_like(out.aux["coarse_logits"], case["eval/coarse"])
    assert_like(out.logits, case["eval/logits"])
    size = (len(picture), *picture.shape[-2:])
    i = torch.arange(picture[:, 0].numel())
    label = ((i * 7 + i // 997) % 19).view(size)
    label[:, :10] = IGNORE
    weight = (0.9 * i.double()).sin().abs().float().view(size)
    for key in (key for key in case if key.startswith("train/")):
        top, _, left, _ = map(int, re.findall(r"\d+", key))
        at = torch.tensor([[top, left]] * len(picture))
        filled(network, mmseg_hrda, train=True)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(type(network), "_random", lambda *_, at=at: at)
            out = network(picture, "source", torch.arange(len(picture)))
        assert_like(out.aux["coarse_logits"], case[key]["fused"])
        network.zero_grad()
        loss = output_cross_entropy(out, label, weight, reduction="all")
        loss.backward()
        expected = case[key]["loss_fused_x.9"] + case[key]["loss_hr_x.1"]
        assert float(loss.detach()) == pytest.approx(expected, rel=1e-4)
        for part, theirs in {"backbone": "backbone", "head": "head", "attention": "scale_attention"}.items():
            found = norm(getattr(network.net, part).parameters())
            assert found == pytest.approx(case[key]["grad_l2"][theirs], rel=1e-3), part  # in single precision


def hrda_in_windows(case: dict[str, Any], picture: Tensor) -> None:
    network = build_segmenter(19, head_channels=64, detail_crop=(128, 128), **CONTEXT)
    side = picture.shape[2]
    window = {"short_side": side, "window": (side, side), "overlap": 0.5}
    probability = predict(filled(network, mmseg_hrda), picture, **window)  # type: ignore[arg-type]
    assert_like(probability, case["probability"])
    assert int(probability.argmax(1).sum()) == case["argmax_sum"]


def hrda_deeplab(case: dict[str, Any], picture: Tensor) -> None:
    network = build_segmenter(19, backbone="resnet50c", detail_crop=(128, 128), **DEEPLAB)
    assert_like(evaluated(filled(network, mmseg_hrda), picture).logits, case["eval/logits"])


def advent(case: dict[str, Any], picture: Tensor) -> None:
    """Without its second head, which training alone reads."""
    network = filled(build_segmenter(19, input_form="caffe", **CAFFE), lambda key: deeplab_name(key, "layer6"))
    out = evaluated(network, picture)
    assert_like(out.aux["coarse_logits"], case["eval/main"])
    assert_like(out.logits, case["eval/main_upsampled_align_corners"])
    out = evaluated(without_drop(network, train=True), picture)  # type: ignore[arg-type]
    assert_like(out.aux["coarse_logits"], case["train/main"])
    last = network.net.backbone.layer4[2].bn3  # type: ignore[union-attr, index]
    assert_like(last.running_mean, case["train/layer4.2.bn3.running_mean"])


def dass(case: dict[str, Any], picture: Tensor) -> None:
    network = build_segmenter(19, input_form="caffe", per_domain="stem", **CAFFE)
    filled(network, lambda key: deeplab_name(key, "layer5"))
    for domain in ("source", "target"):
        out = evaluated(network, picture, domain=domain)
        assert_like(out.embedding, case[f"eval/{domain}/feature"])
        assert_like(out.logits, case[f"eval/{domain}/logits"])


def proda(case: dict[str, Any], picture: Tensor) -> None:
    """Of normalised images, as the case has it; ProDA itself feeds them as they are (`input_form="unit"`)."""
    network = build_segmenter(19, head_channels=256, **CAFFE | {"head": "aspp_gn"})
    out = evaluated(filled(network, lambda key: deeplab_name(key, "layer5")), picture)
    assert_like(out.embedding, case["eval/feat"])
    assert_like(out.aux["coarse_logits"], case["eval/out"])


BUILT: dict[str, Callable[[dict[str, Any], Tensor], None]] = {
    "HRDA/slide": hrda_in_windows,
    "HRDA-DLv2/": hrda_deeplab,
    "HRDA/": hrda,
    "DAFormer/": daformer,
    "DLv2/": deeplab,
    "ADVENT/": advent,
    "DASS/": dass,
    "ProDA/": proda,
}
"""What a case's name begins with -> how it is compared."""


@pytest.mark.parametrize("name", CASES)
def test_a_network_is_the_authors(name: str) -> None:
    compare = next(compare for start, compare in BUILT.items() if name.startswith(start))
    size = re.search(r"(\d+)x(\d+)", name)
    assert size is not None
    case = CASES[name]
    compare(case, image((case["B"], 3, int(size[1]), int(size[2])), SALT))
