"""Whole networks: what those of the authors returned on the CPU with weights and images made by formula.

tests/assets/networks.json holds the values and where they come from; GOLDEN_NETWORKS names another such file.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from authors import assert_like, deeplab_name, fill, image, mmseg_name, without_drop

from udaseg.models.build import build_segmenter
from udaseg.models.inference import predict
from udaseg.models.segmenter import Segmenter

FILE = Path(os.environ.get("GOLDEN_NETWORKS") or Path(__file__).parents[1] / "assets" / "networks.json")
GOLDEN = json.loads(FILE.read_text())
CASES: dict[str, dict[str, Any]] = GOLDEN["cases"]
SALT: int = GOLDEN["salt"]
CONTEXT: dict[str, Any] = {"backbone": "mit_b0", "head": "context_aware", "head_branches": (1, 6, 12, 18)}
DEEPLAB: dict[str, Any] = {"output_stride": 8, "head": "aspp"}
CAFFE: dict[str, Any] = DEEPLAB | {"backbone": "resnet101", "caffe": True, "align_corners": True}


def named(family: str) -> list[str]:
    return [name for name in CASES if name.split("/")[0] == family]


def picture(name: str) -> torch.Tensor:
    size = re.search(r"(\d+)x(\d+)", name)
    assert size is not None
    return image((CASES[name]["B"], 3, int(size[1]), int(size[2])), SALT)


def filled(network: Segmenter, name: Any, train: bool = False) -> Segmenter:
    fill(network, name, SALT)
    return without_drop(network, train)  # type: ignore[return-value]


@pytest.mark.parametrize("name", [*named("DAFormer"), *named("DLv2")])
def test_networks_of_daformers_line(name: str) -> None:
    case = CASES[name]
    settings = CONTEXT | {"head_channels": 256} if name.startswith("DAFormer") else DEEPLAB | {"backbone": "resnet50c"}
    network = filled(build_segmenter(19, **settings), mmseg_name)
    with torch.no_grad():
        out = network(picture(name))
        assert_like(out.aux["coarse_logits"], case["eval/coarse"])
        assert_like(out.logits, case["eval/logits"])
        if "eval/level4" in case:
            assert_like(out.features[0], case["eval/level1"])
            assert_like(out.features[3], case["eval/level4"])
        assert_like(without_drop(network, train=True)(picture(name)).logits, case["train/logits"])


@pytest.mark.parametrize("name", [name for name in named("HRDA") if "slide" not in name])
def test_hrda(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES[name]
    network = build_segmenter(19, head_channels=256, detail_crop=(128, 128), **CONTEXT)
    with torch.no_grad():
        out = filled(network, lambda key: mmseg_name(key, hrda=True))(picture(name))
        assert_like(out.aux["coarse_logits"], case["eval/coarse"])
        assert_like(out.logits, case["eval/logits"])
        for key in case:
            if key.startswith("train/"):
                top, _, left, _ = map(int, re.findall(r"\d+", key))
                at = torch.tensor([[top, left]] * case["B"])
                monkeypatch.setattr(type(network), "_random", lambda *_, at=at: at)
                filled(network, lambda key: mmseg_name(key, hrda=True), train=True)
                out = network(picture(name), "source", torch.arange(case["B"]))
                assert_like(out.aux["coarse_logits"], case[key]["fused"])


@pytest.mark.parametrize("name", named("HRDA-DLv2"))
def test_hrda_with_deeplab(name: str) -> None:
    network = build_segmenter(19, backbone="resnet50c", detail_crop=(128, 128), **DEEPLAB)
    with torch.no_grad():
        out = filled(network, lambda key: mmseg_name(key, hrda=True))(picture(name))
        assert_like(out.logits, CASES[name]["eval/logits"])


@pytest.mark.parametrize("name", [name for name in named("HRDA") if "slide" in name])
def test_hrda_in_windows(name: str) -> None:
    network = build_segmenter(19, head_channels=64, detail_crop=(128, 128), **CONTEXT)
    filled(network, lambda key: mmseg_name(key, hrda=True))
    probability = predict(network, picture(name), short_side=256, window=(256, 256), overlap=0.5)
    assert_like(probability, CASES[name]["probability"])
    assert int(probability.argmax(1).sum()) == CASES[name]["argmax_sum"]


@pytest.mark.parametrize("name", named("ADVENT"))
def test_deeplab_of_advent(name: str) -> None:
    network = build_segmenter(19, input_form="caffe", **CAFFE)
    with torch.no_grad():
        out = filled(network, lambda key: deeplab_name(key, "layer6"))(picture(name))
        assert_like(out.aux["coarse_logits"], CASES[name]["eval/main"])
        assert_like(out.logits, CASES[name]["eval/main_upsampled_align_corners"])
        out = without_drop(network, train=True)(picture(name))
        assert_like(out.aux["coarse_logits"], CASES[name]["train/main"])


@pytest.mark.parametrize("name", named("DASS"))
def test_deeplab_of_dass(name: str) -> None:
    network = build_segmenter(19, input_form="caffe", per_domain="stem", **CAFFE)
    filled(network, lambda key: deeplab_name(key, "layer5"))
    with torch.no_grad():
        for domain in ("source", "target"):
            out = network(picture(name), domain)
            assert_like(out.embedding, CASES[name][f"eval/{domain}/feature"])
            assert_like(out.logits, CASES[name][f"eval/{domain}/logits"])


@pytest.mark.parametrize("name", named("ProDA"))
def test_deeplab_of_proda(name: str) -> None:
    network = build_segmenter(19, head_channels=256, **CAFFE | {"head": "aspp_gn"})  # of normalised images
    with torch.no_grad():
        out = filled(network, lambda key: deeplab_name(key, "layer5"))(picture(name))
    assert_like(out.embedding, CASES[name]["eval/feat"])
    assert_like(out.aux["coarse_logits"], CASES[name]["eval/out"])
