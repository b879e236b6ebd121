"""Backbones and heads by name: shapes, sizes, weights, and what cannot be built."""

from __future__ import annotations

import functools
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from networks import BACKBONES, images, small_network

from udaseg.config import Model
from udaseg.models.backbones import for_caffe_input, timm_backbone
from udaseg.models.build import build_segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.recipes import RECIPES


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", ["aspp", "aspp_gn", "deeplabv3", "context_aware", "multilevel"])
def test_backbones_and_heads(backbone: str, head: str) -> None:
    network = small_network(backbone=backbone, head=head, head_channels=32).eval()
    out = network(images())
    assert out.logits.shape == (2, 5, 64, 96)
    assert out.embedding.shape[1] == network.embedding_channels == (20 if head == "aspp" else 32)
    assert [64 // f.shape[2] for f in out.features] == [4, 8, 16, 32]
    assert all(torch.isfinite(t).all() for t in (out.logits, out.embedding))


@pytest.mark.parametrize(
    ("backbone", "strides", "options"),
    [
        ("pvt_v2_b0", [4, 8, 16, 32], {}),
        ("swin_tiny_patch4_window7_224", [4, 8, 16, 32], {}),
        ("hiera_tiny_224", [4, 8, 16, 32], {"input_size": (64, 96)}),
        ("mit_b0", [4, 8, 16, 32], {}),
        ("test_vit", [16, 16, 16], {}),
        ("vit_small_patch14_dinov2", [14, 14, 14], {}),
        ("vit_small_patch16_dinov3", [16, 16, 16], {}),
    ],
)
def test_transformers(backbone: str, strides: list[int], options: dict[str, object]) -> None:
    """Levels are channels first, of the strides that the backbone says, and images of any size are taken."""
    network = small_network(backbone=backbone, head="context_aware", head_channels=32, **options).eval()
    features = network(images()).features
    assert [tuple(f.shape[2:]) for f in features] == [(-(-64 // s), -(-96 // s)) for s in strides]
    assert [f.shape[1] for f in features] == list(network.feature_channels)
    if not options:
        assert network(torch.rand(1, 3, 50, 71)).logits.shape == (1, 5, 50, 71)


def test_a_backbone_of_one_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"hiera_tiny_224.*model\.input_size"):
        small_network(backbone="hiera_tiny_224")


def test_padding_of_a_transformer_s_image_does_not_move_its_pixels() -> None:
    network, image = small_network(backbone="test_vit").eval(), images()[..., :60, :90]
    padded = network.mean.expand(2, 3, 64, 96).clone()
    padded[..., :60, :90] = image
    torch.testing.assert_close(network(image).logits, network(padded).logits[..., :60, :90])


def test_mix_transformers_have_neither_stem_nor_stride_to_set() -> None:
    with pytest.raises(ValueError, match=r"mit_b0.*stem"):
        small_network("stem", backbone="mit_b0")
    with pytest.raises(ValueError, match=r"mit_b0.*output_stride"):
        small_network(backbone="mit_b0", output_stride=8)
    with pytest.raises(ValueError, match=r"mit_b9.*mit_b0 to mit_b5"):
        small_network(backbone="mit_b9")


def test_a_mix_transformer_loads_a_local_file(tmp_path: Path) -> None:
    body = small_network(backbone="mit_b0", seed=1).net.backbone.state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in body.items()}, tmp_path / "mit.safetensors")
    loaded = small_network(backbone="mit_b0", weights=str(tmp_path / "mit.safetensors")).net.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in body.items())
    del body["block1.0.norm1.weight"]
    torch.save(body, tmp_path / "mit.pth")
    with pytest.raises(ValueError, match=r"mit\.pth has no tensor for block1\.0\.norm1\.weight"):
        small_network(backbone="mit_b0", weights=str(tmp_path / "mit.pth"))


def test_a_mix_transformers_file_of_another_size_is_refused(tmp_path: Path) -> None:
    torch.save(
        small_network(backbone="mit_b0").net.backbone.state_dict() | {"head.weight": torch.zeros(3)},
        tmp_path / "b0.pth",
    )
    with pytest.raises(
        ValueError, match=r"b0\.pth has patch_embed1\.proj\.weight of shape \(32, 3, 7, 7\), but mit_b1"
    ):
        small_network(backbone="mit_b1", weights=str(tmp_path / "b0.pth"))


def test_stochastic_depth_grows_with_depth_and_is_off_in_the_teacher() -> None:
    network = small_network(backbone="mit_b0", drop_path=0.3)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert rates[0] < rates[-1] == pytest.approx(0.3)
    teacher = EMATeacher(network, momentum=0.9).train()
    assert not any(m.training for m in teacher.modules() if type(m).__name__ == "DropPath")


# Of the released networks: DeepLabV2-R101 with 2 and 4 branches, DAFormer (85.15 M) and HRDA (85.69 M).
PARAMETERS = {
    "source_only": 43_901_068,
    "supervised": 43_901_068,
    "classwise": 85_155_283,
    "dacs": 43_200_614,
    "bcl": 44_126_412,
    "ldbe": 65_063_568,
    "stvm": 43_901_068,
    "dsp": 43_200_614,
    "camix": 43_200_614,
    "camix_synthia": 43_200_614,
    "camix_daformer": 85_155_283,
    "camix_daformer_synthia": 85_155_283,
    "rccr": 43_200_614,
    "rccr_synthia": 43_200_614,
    "ehtdi": 43_200_614,
    "ehtdi_edges": 43_200_614,
    "ehtdi_synthia": 43_200_614,
    "ehtdi_edges_synthia": 43_200_614,
    "sdca": 43_901_068,
    "spcl": 43_901_068,
    "proca": 43_901_068,
    "ucda": 43_901_068,
    "drsl": 43_901_068,
    "pne": 58_729_171,
    "daformer": 85_155_283,
    "crda": 85_155_283,
    "hrda": 85_685_990,
    "mic": 85_685_990,
    "cluda": 85_685_990,
    "sepico": 85_155_283,
    "sepico_bank": 85_155_283,
    "sepico_prototype": 85_155_283,
    "sepico_deeplab": 43_920_300,
    "sepico_deeplab_bank": 43_920_300,
    "sepico_deeplab_prototype": 43_920_300,
    "vfm": 305_748_499,
    "proda": 65_067_664,
    "proda_synthia": 65_067_664,
    "advent": 43_901_068,
    "minent": 43_901_068,
    "advent_synthia": 43_901_068,
    "cada": 43_901_068,
    "i2i_cr": 65_063_568,
    "i2i_cr_synthia": 65_063_568,
    "clan": 45_301_976,  # two heads
    "clan_synthia": 45_301_976,
    "tada": 43_200_614,
    "tada_coarse": 43_200_614,
    "tada_overlap": 43_200_614,
    "dacs_synthia": 43_200_614,
    "dsp_synthia": 43_200_614,
    "daformer_synthia": 85_155_283,
    "daformer_acdc": 85_155_283,
    "hrda_synthia": 85_685_990,
    "hrda_acdc": 85_685_990,
    "mic_synthia": 85_685_990,
    "mic_acdc": 85_685_990,
    "crda_synthia": 85_155_283,
    "sdca_synthia": 43_901_068,
    "proca_synthia": 43_901_068,
    "cluda_synthia": 85_685_990,
    "sepico_synthia": 85_155_283,
    "sepico_bank_synthia": 85_155_283,
    "sepico_prototype_synthia": 85_155_283,
    "sepico_deeplab_synthia": 43_920_300,
    "sepico_deeplab_bank_synthia": 43_920_300,
    "sepico_deeplab_prototype_synthia": 43_920_300,
    "ucd_first": 58_630_483,
    "ucd": 58_630_483,
}


@functools.cache
def number_of_parameters(model: Model) -> int:
    """Many recipes have the same network."""
    with torch.device("meta"):
        network = build_segmenter(19, **asdict(model))
    return sum(p.numel() for p in network.parameters())


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("_small") and name != "bcl_demo"])
def test_published_networks_have_the_right_size(name: str) -> None:
    model = replace(RECIPES[name]().stages[-1].model, pretrained=False)
    assert number_of_parameters(model) == PARAMETERS.get(name)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(backbone: str, stride: int) -> None:
    out = small_network(backbone=backbone, head="aspp", output_stride=stride).eval()(images())
    assert out.embedding.shape[2:] == (64 // stride, 96 // stride)


def test_an_unknown_backbone_is_named_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"resnet10tt"):
        small_network(backbone="resnet10tt")
    with pytest.raises(ValueError, match=r"mobilenetv3_tiny.*did you mean mobilenetv3"):
        small_network(backbone="mobilenetv3_tiny")


def test_a_backbone_without_stages_of_its_own_is_refused_per_domain() -> None:
    with pytest.raises(ValueError, match="stem"):
        small_network("stem", backbone="test_vit")


def test_a_backbone_that_cannot_be_built_so_says_with_what() -> None:
    with pytest.raises(ValueError, match=r"test_vit.*output_stride"):
        small_network(backbone="test_vit", output_stride=8)


def test_head_branches_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="branches"):
        small_network(head="aspp", head_branches=())
    with pytest.raises(ValueError, match="multiple of 32"):
        small_network(head="aspp_gn", head_channels=16)


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.weights.*absent\.pth"):
        small_network(weights=str(tmp_path / "absent.pth"))
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"nothing.like.it": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.safetensors has no tensor for conv1\.0\.weight of resnet10t"):
        small_network(weights=str(foreign))


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_local_weights_are_what_the_backbone_starts_from(tmp_path: Path, suffix: str) -> None:
    import timm

    torch.manual_seed(3)
    state = timm.create_model("resnet10t").state_dict()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(state, file)
    network = small_network(weights=str(file))
    assert torch.equal(network.net.backbone.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


def test_that_a_classifier_s_weights_are_left_over_is_no_news(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    import timm

    file = tmp_path / "weights.safetensors"
    safetensors.torch.save_file(timm.create_model("test_efficientnet").state_dict(), file)
    small_network(backbone="test_efficientnet", weights=str(file))
    assert not caplog.records


def test_the_files_that_deeplabv2_starts_from_are_read(tmp_path: Path) -> None:
    """Names begin with Scale., no batch norm counts its batches, a classifier comes along; torch 1.5 wrote it."""
    import timm

    torch.manual_seed(4)
    state = timm.create_model("resnet26").state_dict()
    state = {name: tensor for name, tensor in state.items() if not name.endswith("num_batches_tracked")}
    state = {name: tensor for name, tensor in state.items() if not name.startswith("fc.")}
    caffe = {f"Scale.{name}": tensor for name, tensor in state.items()}
    caffe["Scale.layer5.conv2d_list.0.weight"] = torch.zeros(21, 2048, 3, 3)
    torch.save(caffe, tmp_path / "caffe.pth", _use_new_zipfile_serialization=False)
    network = small_network(backbone="resnet26", weights=str(tmp_path / "caffe.pth"))
    loaded = network.net.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
    assert "state_dict" not in network.net.backbone.pretrained_cfg


def test_weights_of_another_shape_or_no_weights_at_all_are_refused(tmp_path: Path) -> None:
    import timm

    file = tmp_path / "weights.pth"
    state = timm.create_model("resnet10t").state_dict()
    torch.save({"state_dict": state | {"layer3.0.conv1.weight": torch.zeros(3, 3, 1, 1)}}, file)
    with pytest.raises(
        ValueError, match=r"model\.weights.*weights\.pth does not fit resnet10t.*layer3\.0\.conv1\.weight"
    ):
        small_network(weights=str(file))
    torch.save({"epoch": 3}, file)
    with pytest.raises(ValueError, match=r"weights\.pth has 'epoch', which is no tensor"):
        small_network(weights=str(file))
    file.write_bytes(b"not a file of torch")
    with pytest.raises(ValueError, match=r"weights\.pth is no file of tensors"):
        small_network(weights=str(file))


def test_weights_brought_to_caffe_s_input_see_the_same_image() -> None:
    """In BGR of 0 to 255 less its mean."""
    torch.manual_seed(0)
    parts, _ = timm_backbone("resnet18", False, None, None, {})
    image = torch.rand(1, 3, 8, 8)
    mean, std = (torch.tensor(x).view(1, 3, 1, 1) for x in (parts.mean, parts.std))
    before = parts.body.conv1((image - mean) / std)
    for_caffe_input(parts, "resnet18")
    torch.testing.assert_close(parts.body.conv1((255 * (image - mean)).flip(1)), before, rtol=1e-4, atol=1e-5)
