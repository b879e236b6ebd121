"""Checkpoints under the authors' names: what a file of theirs would hold gives the authors' own logits."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from authors import assert_like, deeplab_name, image, mmseg_name, weight
from torch import Tensor
from torchvision.models.segmentation import deeplabv3_resnet50, deeplabv3_resnet101

from pipelines.import_ import main
from udaseg.checkpoints.directory import load_model, read_card, read_weights
from udaseg.checkpoints.formats import FORMATS
from udaseg.checkpoints.importers import import_checkpoint, read_network
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.errors import CheckpointError
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import Segmenter

FILE = Path(os.environ.get("GOLDEN_NETWORKS") or Path(__file__).parents[1] / "assets" / "networks.json")
GOLDEN = json.loads(FILE.read_text())
SALT: int = GOLDEN["salt"]
CONTEXT: dict[str, Any] = {"backbone": "mit_b0", "head": "context_aware", "head_branches": (1, 6, 12, 18)}
DEEPLAB: dict[str, Any] = {"output_stride": 8, "head": "aspp"}
CAFFE: dict[str, Any] = DEEPLAB | {"backbone": "resnet101", "caffe": True}


def golden(family: str) -> tuple[Tensor, dict[str, Any]]:
    """The smallest image of a network of the authors', and what it returned."""
    sizes = {name: re.search(r"(\d+)x(\d+)", name) for name in GOLDEN["cases"] if name.split("/")[0] == family}
    found = {name: (int(size[1]), int(size[2])) for name, size in sizes.items() if size and "slide" not in name}
    name = min(found, key=lambda name: found[name])
    case = GOLDEN["cases"][name]
    return image((case["B"], 3, *found[name]), SALT), case


def theirs(settings: Mapping[str, Any], name: Callable[[str], str], classes: int = 19) -> dict[str, Tensor]:
    """A state under the authors' names, by their formula. Linear layers have two dimensions."""
    with torch.device("meta"):
        network = build_segmenter(classes, **settings)
    state = {}
    for key, tensor in network.state_dict().items():
        value = weight(name(key), torch.empty(tensor.shape), SALT)
        linear = re.search(r"embed_layers\.\d\.proj\.weight|\.se\.\d\.weight", name(key))
        state[name(key)] = value.flatten(1) if linear else value
    return state


def lhoyer(state: Mapping[str, Tensor], **other: Tensor) -> dict[str, Any]:
    """As DAFormer's line saves a run: the student, beside the teacher and the network pretrained on ImageNet."""
    wrapped = {f"{part}.{name}": tensor for part in ("model",) for name, tensor in state.items()}
    teacher = {f"{part}.{name}": torch.zeros(1) for part in ("ema_model", "imnet_model") for name in state}
    return {"meta": {"epoch": 1, "CLASSES": ["road"]}, "state_dict": wrapped | teacher | other}


def imported(tmp_path: Path, content: Any, *words: str) -> Path:
    torch.save(content, tmp_path / "theirs.pth")
    out = tmp_path / "model"
    assert main([str(tmp_path / "theirs.pth"), "--classes", "cityscapes", "--out", str(out), *words]) == 0
    return out


def with_detail_crop(directory: Path, size: tuple[int, int]) -> Segmenter:
    """An imported HRDA with another detail crop: that of the authors' is not in a file."""
    card = read_card(str(directory))
    assert card.model.detail_crop == (512, 512)
    settings = dataclasses.asdict(dataclasses.replace(card.model, detail_crop=size))
    network = build_segmenter(19, **settings)
    network.load_network(read_weights(str(directory)))
    return network.eval()


@torch.no_grad()
def test_daformer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, case = golden("DAFormer")
    out = imported(tmp_path, lhoyer(theirs(CONTEXT | {"head_channels": 256}, mmseg_name)), "--from", "daformer")
    network, card = load_model(str(out))
    assert_like(network(picture).logits, case["eval/logits"])
    assert (card.short_side, card.model.backbone, card.recipe, card.stage) == (512, "mit_b0", "import", "daformer")
    assert card.resample == "bilinear", "OpenCV's"
    assert card.window is None and "short side of 512 pixels, as a whole" in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.full
@pytest.mark.parametrize("format", ["hrda", "mic"])
def test_hrda_and_mic(tmp_path: Path, format: str) -> None:
    settings = CONTEXT | {"head_channels": 256, "detail_crop": (128, 128)}
    out = imported(tmp_path, lhoyer(theirs(settings, lambda key: mmseg_name(key, hrda=True))), "--from", format)
    picture, case = golden("HRDA")
    assert_like(with_detail_crop(out, (128, 128))(picture, detail="everywhere").logits, case["eval/logits"])


def test_hrda_is_evaluated_in_windows(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    settings = CONTEXT | {"head_channels": 32, "detail_crop": (128, 128)}
    state = theirs(settings, lambda key: mmseg_name(key, hrda=True))
    card = read_card(str(imported(tmp_path, lhoyer(state))))
    assert (card.stage, card.short_side, card.model.head_channels) == ("hrda", 1024, 32)
    assert (card.window, card.overlap) == ((1024, 1024), 0.5)
    shown = capsys.readouterr().out
    assert "format: hrda or mic" in shown
    assert "short side of 1024 pixels, in windows of 1024 x 1024" in shown
    out = str(tmp_path / "half")
    words = [str(tmp_path / "theirs.pth"), "--classes", "cityscapes", "--out", out, "--short-side", "512"]
    assert main(words) == 0
    assert read_card(out).short_side == 512


@torch.no_grad()
def test_deeplabv2_of_daformers_line_and_of_sepico(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    picture, case = golden("DLv2")
    state = theirs(DEEPLAB | {"backbone": "resnet50c"}, mmseg_name)
    projection = {"model.auxiliary_head.convs.0.conv.weight": torch.zeros(512, 2048, 1, 1)}
    network, card = load_model(str(imported(tmp_path, lhoyer(state, **projection))))
    assert_like(network(picture).logits, case["eval/logits"])
    assert card.short_side == 640  # SePiCo's
    assert "left out: auxiliary_head" in capsys.readouterr().out


@torch.no_grad()
@pytest.mark.full
def test_hrda_on_deeplabv2(tmp_path: Path) -> None:
    picture, case = golden("HRDA-DLv2")
    settings = DEEPLAB | {"backbone": "resnet50c", "detail_crop": (128, 128)}
    out = imported(tmp_path, lhoyer(theirs(settings, lambda key: mmseg_name(key, hrda=True))))
    assert_like(with_detail_crop(out, (128, 128))(picture, detail="everywhere").logits, case["eval/logits"])


def test_branches_that_were_never_trained_take_no_part() -> None:
    """AdaptSegNet's, by ADVENT's names: its heads return within their loop over the branches."""
    generator = torch.Generator().manual_seed(0)
    shape, drawn = (19, 2048, 3, 3), {}
    for branch, scale in enumerate((0.013, 0.008, 0.01, 0.01)):
        drawn[f"layer6.conv2d_list.{branch}.weight"] = scale * torch.randn(shape, generator=generator)
        drawn[f"layer6.conv2d_list.{branch}.bias"] = torch.zeros(19)
    drawn |= {"layer5.conv2d_list.0.weight": torch.zeros(19, 1024, 3, 3), "conv1.weight": torch.zeros(64, 3, 7, 7)}
    arrange = FORMATS["deeplabv2"].arrange
    two = {f"layer5.conv2d_list.{n}.{part}" for n in (0, 1) for part in ("weight", "bias")}
    assert set(arrange(drawn)) == {"conv1.weight", *two}
    drawn["layer6.conv2d_list.3.weight"] = 1.02 * drawn["layer6.conv2d_list.3.weight"]
    assert len(arrange(drawn)) == 9, "ADVENT's, all of which learn"


@torch.no_grad()
def test_deeplabv2_of_advent(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A plain state of before torch 1.6, with the auxiliary head on the third stage."""
    picture, case = golden("ADVENT")
    state = theirs(CAFFE, lambda key: deeplab_name(key, "layer6"))
    state |= {f"layer5.conv2d_list.{i}.weight": torch.zeros(19, 1024, 3, 3) for i in range(4)}
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    torch.save(state, tmp_path / "theirs.pth", _use_new_zipfile_serialization=False)
    words = [str(tmp_path / "theirs.pth"), "--classes", "cityscapes", "--out", str(tmp_path / "model")]
    assert main(words) == 0
    assert "format: deeplabv2" in capsys.readouterr().out
    network, card = load_model(str(tmp_path / "model"))
    assert_like(network(picture).logits, case["eval/main_upsampled_align_corners"])
    assert (card.short_side, card.model.input_form, card.model.align_corners) == (512, "caffe", True)
    assert card.resample == "bicubic"


@torch.no_grad()
@pytest.mark.full
def test_deeplabv2_of_dass_has_a_stem_per_domain(tmp_path: Path) -> None:
    picture, case = golden("DASS")
    state = theirs(CAFFE | {"per_domain": "stem"}, lambda key: deeplab_name(key, "layer5"))
    state |= {f"layer6.conv2d_list.{i}.weight": torch.zeros(19, 2048, 3, 3) for i in range(4)}
    network, card = load_model(str(imported(tmp_path, state)))
    assert card.short_side == 730  # as its authors evaluate
    for domain in ("source", "target"):
        assert_like(network(picture, domain).logits, case[f"eval/{domain}/logits"])


@torch.no_grad()
@pytest.mark.full
def test_deeplabv2_of_clan_and_of_dacs(tmp_path: Path) -> None:
    """The sum of CLAN's two heads is one head's with their weights' sum; of DACS's four branches two take part."""
    first = theirs(CAFFE, lambda key: deeplab_name(key, "layer5"))
    second = {k: v for k, v in theirs(CAFFE, lambda key: deeplab_name(key, "layer6")).items() if k[:6] == "layer6"}
    picture = golden("ADVENT")[0]

    def logits(state: Mapping[str, Tensor]) -> Tensor:
        torch.save({"model": dict(state), "config": {"dataset": "cityscapes"}}, tmp_path / "state.pth")
        found = import_checkpoint(str(tmp_path / "state.pth"), CITYSCAPES_CLASSES)
        network = build_segmenter(19, **dataclasses.asdict(found.card.model))
        network.load_network(found.network.state_dict())
        out: Tensor = network.eval()(picture).aux["coarse_logits"]
        return out

    def of(kept: str, branches: tuple[int, ...]) -> Tensor:
        """One head by itself, with its first branches."""
        settings = CAFFE | {"head_branches": branches, "input_form": "caffe", "align_corners": True}
        network = build_segmenter(19, **settings)
        both = first | second
        network.load_state_dict({k: both[deeplab_name(k, kept)] for k in network.state_dict()})
        out: Tensor = network.eval()(picture).aux["coarse_logits"]
        return out

    whole = of("layer5", (6, 12, 18, 24)) + of("layer6", (6, 12, 18, 24))
    torch.testing.assert_close(logits(first | second), whole, rtol=1e-4, atol=1e-4 * float(whole.abs().max()))
    two = of("layer5", (6, 12))
    dsp = {f"module.{name}": tensor for name, tensor in first.items()} | {
        "module.c1.weight": torch.zeros(256, 2048, 1, 1)
    }
    torch.testing.assert_close(logits(dsp), two, rtol=1e-4, atol=1e-4 * float(two.abs().max()))


@torch.no_grad()
@pytest.mark.full
def test_proda(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A file with a NumPy number. The network reads images of 0 to 1; the golden values are of normalised ones."""
    picture, case = golden("ProDA")
    settings = CAFFE | {"head": "aspp_gn", "head_channels": 256}
    state = theirs(settings, lambda key: deeplab_name(key, "layer5"))
    content = {"ResNet101": {"model_state": state}, "best_iou": np.float64(0.5)}
    network, card = load_model(str(imported(tmp_path, content, "--from", "proda")))
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    assert_like(network((picture - mean) / std).aux["coarse_logits"], case["eval/out"])
    assert (card.short_side, card.model.input_form, card.model.frozen_norm_affine) == (1024, "unit", False)
    assert not card.model.head_norm

    norm = torch.nn.BatchNorm2d(2048)  # between backbone and head in stages 2 and 3; this one adds 0.25
    norm.weight.mul_(2)
    norm.bias.fill_(0.5)
    norm.running_mean.fill_(0.25)  # type: ignore[union-attr]
    norm.running_var.fill_(4 - norm.eps)  # type: ignore[union-attr]
    later = {"ResNet101": {"model_state": state | {f"bn_pretrain.{k}": v for k, v in norm.state_dict().items()}}}
    torch.save(later, tmp_path / "stage2.pth")
    found = import_checkpoint(str(tmp_path / "stage2.pth"), CITYSCAPES_CLASSES)
    assert found.card.model.head_norm
    normed = build_segmenter(19, **dataclasses.asdict(found.card.model))
    normed.load_network(found.network.state_dict())
    level = network(picture).features[-1]
    logits = normed.eval()(picture).aux["coarse_logits"]
    torch.testing.assert_close(logits, network.net.head([level + 0.25])[0], rtol=1e-3, atol=1e-3)  # type: ignore[operator]


class Bomb:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_what_does_not_fit_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Each is refused in a line, and nothing is written."""
    daformer = theirs(CONTEXT | {"head_channels": 32}, mmseg_name)
    hrda = theirs(CONTEXT | {"head_channels": 32, "detail_crop": (128, 128)}, lambda k: mmseg_name(k, hrda=True))

    mobile = {f"{name}.weight": torch.zeros(1) for name in ("backbone.0.0", "classifier.0.convs.0.0")}

    def without(name: str) -> dict[str, Tensor]:
        return {key: tensor for key, tensor in daformer.items() if key != name}

    cases: list[tuple[Any, str, tuple[str, ...]]] = [
        (hrda, "daformer", ("daformer", "decode_head.embed_layers.", "this looks like hrda or mic")),
        (daformer, "deeplabv2", ("conv2d_list", "this looks like daformer or mic")),
        (daformer, "hrda", ("decode_head.head.", "this looks like daformer or mic")),
        (without("decode_head.conv_seg.bias"), "daformer", ("it lacks decode_head.conv_seg.bias",)),
        (without("backbone.patch_embed1.proj.weight"), "daformer", ("it lacks backbone.patch_embed1.proj.weight",)),
        (daformer | {"backbone.more": torch.zeros(1)}, "daformer", ("backbone.more has no counterpart",)),
        (
            daformer | {"backbone.norm1.weight": torch.zeros(5)},
            "daformer",
            ("backbone.norm1.weight has shape (5,), where (32,) is needed",),
        ),
        (daformer | {"backbone.norm1.weight": torch.full((32,), torch.nan)}, "daformer", ("NaN",)),
        (theirs(CONTEXT | {"head_channels": 32}, mmseg_name, 7), "mic", ("of 7 classes, but --classes has 19",)),
        (theirs(CONTEXT | {"head_channels": 32}, mmseg_name, 21), "mic", ("of 21 classes, but --classes has 19",)),
        (mobile, "", ("no checkpoint of deeplabv3", "MobileNetV3")),
        ({"some.weight": torch.zeros(1)}, "", ("some.weight", "none of the formats daformer, hrda, mic")),
        ({"state_dict": {"epoch": 3}}, "", ("'epoch' in it is no tensor",)),
        ([daformer], "", ("no tensors by name",)),
        (daformer | {"code": Bomb(tmp_path / "made")}, "daformer", ("not a file of tensors: it holds an object, ",)),
        ({"state_dict": daformer, "args": argparse.Namespace()}, "daformer", ("an object, argparse.Namespace, ",)),
    ]
    for content, format, words in cases:
        torch.save(content, tmp_path / "theirs.pth")
        given = ["--from", format] if format else []
        found = main([str(tmp_path / "theirs.pth"), "--classes", "cityscapes", "--out", str(tmp_path / "out"), *given])
        error = capsys.readouterr().err
        assert found == 2
        assert error.startswith(f"error: {tmp_path}")
        assert error.count("\n") == 1
        assert not [word for word in words if word not in error], error
        assert "weights_only" not in error
        assert not (tmp_path / "out").exists()
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("archive", [True, False])
def test_a_file_that_is_cut_short_is_refused(tmp_path: Path, archive: bool) -> None:
    file = tmp_path / "theirs.pth"
    torch.save({"state_dict": {"a.weight": torch.ones(50, 50)}}, file, _use_new_zipfile_serialization=archive)
    whole = file.read_bytes()
    for length in (0, 1, len(whole) // 2, len(whole) - 1):
        file.write_bytes(whole[:length])
        with pytest.raises(CheckpointError, match=r"theirs\.pth: not a file of tensors"):
            read_network(str(file))


def test_a_directory_that_holds_anything_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = imported(tmp_path, theirs(CONTEXT | {"head_channels": 32}, mmseg_name))
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    words = [str(tmp_path / "theirs.pth"), "--classes", "cityscapes"]
    assert main([*words, "--out", str(out)]) == 2
    assert "holds a model already" in capsys.readouterr().err
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert main([*words, "--out", str(tmp_path)]) == 2
    assert "holds 'model', 'theirs.pth'" in capsys.readouterr().err
    assert main([str(tmp_path / "absent.pth"), *words[1:], "--out", str(tmp_path / "new")]) == 2
    assert "absent.pth: no such file" in capsys.readouterr().err
    assert main([words[0], "--classes", "citiscapes", "--out", str(tmp_path / "new")]) == 2
    assert "citiscapes: no such file, nor is it cityscapes" in capsys.readouterr().err


@torch.no_grad()
@pytest.mark.parametrize(
    "build", [deeplabv3_resnet50, pytest.param(deeplabv3_resnet101, marks=pytest.mark.full)], ids=["50", "101"]
)
def test_deeplabv3_of_torchvision(build: Any, tmp_path: Path) -> None:
    """Logits of torchvision's own network, with statistics of its norms that are not 0 and 1."""
    with torch.device("meta"):
        original = build(weights=None, weights_backbone=None, num_classes=19, aux_loss=True)
    generator = torch.Generator().manual_seed(0)
    state = {}
    for name, tensor in original.state_dict().items():
        high, low = (
            (1.5, 0.5) if tensor.ndim < 2 else ((3 / tensor[0].numel()) ** 0.5, -((3 / tensor[0].numel()) ** 0.5))
        )
        state[name] = torch.zeros(tensor.shape, dtype=tensor.dtype)
        if tensor.is_floating_point():
            state[name].uniform_(low, high, generator=generator)
    torch.save({"model": state, "epoch": 3}, tmp_path / "theirs.pth")

    found = import_checkpoint(str(tmp_path / "theirs.pth"), CITYSCAPES_CLASSES)
    assert found.notes == ("format: deeplabv3, by the names of its tensors", "left out: aux_classifier")
    assert (found.card.short_side, found.card.model.head_branches) == (520, (12, 24, 36))
    network = build_segmenter(19, **dataclasses.asdict(found.card.model))
    network.load_network(found.network.state_dict())

    original.load_state_dict(state, assign=True)
    picture = image((1, 3, 97, 131), SALT)
    mean, std = (torch.tensor(v).view(1, 3, 1, 1) for v in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    expected = original.eval()((picture - mean) / std)["out"]
    assert float(expected.std()) > 0.1
    torch.testing.assert_close(network.eval()(picture).logits, expected, rtol=1e-4, atol=1e-4)


@torch.no_grad()
def test_segformer_in_both_namings(tmp_path: Path) -> None:
    """Against the head's formula written anew: the levels join coarsest first. No golden values of it are at hand."""
    settings = CONTEXT | {"head_branches": (), "head_channels": 32}
    with torch.device("meta"):
        ours = build_segmenter(19, **settings).state_dict()
    names = {"fuse.conv": "linear_fuse.conv", "fuse.bn": "linear_fuse.bn", "classify": "linear_pred"}
    names |= {f"project.{i}": f"linear_c{i + 1}.proj" for i in range(4)}
    state = {}
    for key, tensor in ours.items():
        name = key.removeprefix("net.").replace("head.", "decode_head.")
        for one, other in names.items():
            name = name.replace(one, other)
        value = weight(name, torch.empty(tensor.shape), SALT)
        state[name] = value.flatten(1) if ".proj.weight" in name and "decode" in name else value
    state["decode_head.conv_seg.weight"] = torch.zeros(
        19, 32, 1, 1
    )  # which mmseg's base class makes, and nothing reads
    network, card = load_model(str(imported(tmp_path, {"state_dict": state})))
    assert (card.stage, card.short_side, card.model.head_channels) == ("segformer", 1024, 32)
    assert (card.window, card.overlap) == ((1024, 1024), 0.25)

    picture = image((2, 3, 64, 96), SALT)
    out = network(picture)
    part = {name.removeprefix("decode_head."): tensor for name, tensor in state.items() if name.startswith("decode")}
    joined = torch.cat(
        [
            F.interpolate(
                F.conv2d(level, part[f"linear_c{i}.proj.weight"][:, :, None, None], part[f"linear_c{i}.proj.bias"]),
                size=out.features[0].shape[-2:],
                mode="bilinear",
                align_corners=False,
            )
            for i, level in reversed(list(enumerate(out.features, 1)))
        ],
        1,
    )
    fused = F.conv2d(joined, part["linear_fuse.conv.weight"])
    mean, var, scale, shift = (part[f"linear_fuse.bn.{k}"] for k in ("running_mean", "running_var", "weight", "bias"))
    fused = F.batch_norm(fused, mean, var, scale, shift).relu()
    expected = F.conv2d(fused, part["linear_pred.weight"], part["linear_pred.bias"])
    torch.testing.assert_close(out.aux["coarse_logits"], expected, rtol=1e-4, atol=1e-4)

    torch.save(transformers_names(state), tmp_path / "transformers.bin")
    other = import_checkpoint(str(tmp_path / "transformers.bin"), CITYSCAPES_CLASSES).network.state_dict()
    assert all(torch.equal(tensor, other[name]) for name, tensor in network.state_dict().items())


def transformers_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A state of mmseg's SegFormer as `SegformerForSemanticSegmentation` of transformers calls it."""
    rules = (
        (r"backbone\.patch_embed(\d)\.norm", r"backbone.patch_embed\1.layer_norm"),
        (r"backbone\.patch_embed(\d)\.", lambda m: f"segformer.encoder.patch_embeddings.{int(m[1]) - 1}."),
        (r"backbone\.block(\d)\.", lambda m: f"segformer.encoder.block.{int(m[1]) - 1}."),
        (r"backbone\.norm(\d)\.", lambda m: f"segformer.encoder.layer_norm.{int(m[1]) - 1}."),
        (r"(block\.\d\.\d+)\.norm(\d)\.", r"\1.layer_norm_\2."),
        (r"\.attn\.q\.", ".attention.self.query."),
        (r"\.attn\.norm\.", ".attention.self.layer_norm."),
        (r"\.attn\.sr\.", ".attention.self.sr."),
        (r"\.attn\.proj\.", ".attention.output.dense."),
        (r"\.mlp\.fc(\d)\.", r".mlp.dense\1."),
        (r"linear_c(\d)\.", lambda m: f"linear_c.{int(m[1]) - 1}."),
        (r"linear_fuse\.conv\.", "linear_fuse."),
        (r"linear_fuse\.bn\.", "batch_norm."),
        (r"linear_pred\.", "classifier."),
    )
    out: dict[str, Tensor] = {}
    for name, tensor in state.items():
        if name.startswith("decode_head.conv_seg"):
            continue
        for pattern, replacement in rules:
            name = re.sub(pattern, replacement, name)
        if ".attn.kv." in name:
            for part, half in zip(("key", "value"), tensor.chunk(2), strict=True):
                out[name.replace(".attn.kv.", f".attention.self.{part}.")] = half.clone()
        else:
            out[name] = tensor
    return out
