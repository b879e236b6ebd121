from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from udaseg.checkpoints.directory import ModelCard, load_model, read_card, save_model
from udaseg.config import Model
from udaseg.data.classes import Classes
from udaseg.errors import CheckpointError
from udaseg.models.build import build_segmenter
from udaseg.models.segmenter import PerDomain, Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.recipes import RECIPES

BACKBONES = ["resnet10t", "mobilenetv3_small_050", "convnext_atto"]


def small(per_domain: PerDomain = "nothing", *, classes: int = 5, seed: int = 0, **options: object) -> Segmenter:
    torch.manual_seed(seed)
    settings = {"backbone": "resnet10t", "head_channels": 16, "per_domain": per_domain} | options
    return build_segmenter(classes, **settings)  # type: ignore[arg-type]


def images(seed: int = 0) -> Tensor:
    return torch.rand(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))


# --- shapes ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("head", ["aspp", "aspp_gn", "context_aware", "multilevel"])
def test_backbones_and_heads(backbone: str, head: str) -> None:
    network = small(backbone=backbone, head=head, head_channels=32).eval()
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
    network = small(backbone=backbone, head="context_aware", head_channels=32, **options).eval()
    features = network(images()).features
    assert [tuple(f.shape[2:]) for f in features] == [(-(-64 // s), -(-96 // s)) for s in strides]
    assert [f.shape[1] for f in features] == list(network.feature_channels)
    if not options:
        assert network(torch.rand(1, 3, 50, 71)).logits.shape == (1, 5, 50, 71)


def test_a_backbone_of_one_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"hiera_tiny_224.*model\.input_size"):
        small(backbone="hiera_tiny_224")


def test_padding_of_a_transformer_s_image_does_not_move_its_pixels() -> None:
    network, image = small(backbone="test_vit").eval(), images()[..., :60, :90]
    padded = nn.functional.pad(image, (0, 6, 0, 4), mode="replicate")
    torch.testing.assert_close(network(image).logits, network(padded).logits[..., :60, :90])


def test_mix_transformers_have_neither_stem_nor_stride_to_set() -> None:
    with pytest.raises(ValueError, match=r"mit_b0.*stem"):
        small("stem", backbone="mit_b0")
    with pytest.raises(ValueError, match=r"mit_b0.*output_stride"):
        small(backbone="mit_b0", output_stride=8)
    with pytest.raises(ValueError, match=r"mit_b9.*mit_b0 to mit_b5"):
        small(backbone="mit_b9")


def test_a_mix_transformer_loads_a_local_file(tmp_path: Path) -> None:
    body = small(backbone="mit_b0", seed=1).net.backbone.state_dict()
    safetensors.torch.save_file({k: v.contiguous() for k, v in body.items()}, tmp_path / "mit.safetensors")
    loaded = small(backbone="mit_b0", weights=str(tmp_path / "mit.safetensors")).net.backbone.state_dict()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in body.items())
    del body["block1.0.norm1.weight"]
    torch.save(body, tmp_path / "mit.pth")
    with pytest.raises(ValueError, match=r"mit\.pth has no tensor for block1\.0\.norm1\.weight"):
        small(backbone="mit_b0", weights=str(tmp_path / "mit.pth"))


def test_stochastic_depth_grows_with_depth_and_is_off_in_the_teacher() -> None:
    network = small(backbone="mit_b0", drop_path=0.3)
    rates = [m.drop_prob for m in network.modules() if type(m).__name__ == "DropPath"]
    assert rates[0] < rates[-1] == pytest.approx(0.3)
    teacher = EMATeacher(network, momentum=0.9).train()
    assert not any(m.training for m in teacher.modules() if type(m).__name__ == "DropPath")


def test_the_context_aware_head_joins_levels_before_it_looks_around() -> None:
    """One level that is constant: what is left of the dilated branches is a function of the place's neighbourhood."""
    head = small(head="context_aware", head_channels=8, head_branches=(1, 6)).net.head.eval()
    levels = [torch.zeros(1, c, 64 // s, 96 // s) for c, s in zip((64, 128, 256, 512), (4, 8, 16, 32), strict=True)]
    before = head(levels)[1]
    levels[3][0, :, 0, 0] = 5.0  # the coarsest level, upsampled eightfold: cells 0..11 along each axis
    moved = (head(levels)[1] - before).abs().sum(1)[0] > 1e-7
    assert moved[0, 0] and not moved[:, 20:].any(), "reach: 12 cells of upsampling, 6 of dilation, 1 of fusion"
    assert moved[:, 13:19].any()


# Of the released networks: DeepLabV2-R101 with 2 and 4 branches, DAFormer (85.15 M) and HRDA (85.69 M).
PARAMETERS = {
    "source_only": 43_901_068,
    "supervised": 43_901_068,
    "dacs": 43_200_614,
    "bcl": 44_126_412,
    "ldbe": 65_063_568,
    "dsp": 43_200_614,
    "sdca": 43_901_068,
    "daformer": 85_155_283,
    "hrda": 85_685_990,
    "mic": 85_685_990,
    "cluda": 85_685_990,
    "vfm": 305_748_499,
}


@pytest.mark.parametrize("name", [name for name in RECIPES if not name.endswith("_small") and name != "bcl_demo"])
def test_published_networks_have_the_right_size(name: str) -> None:
    model = replace(RECIPES[name]().stages[-1].model, pretrained=False)
    with torch.device("cpu" if "mit" in model.backbone else "meta"):  # smp reads numbers off a tensor as it builds
        network = build_segmenter(19, **asdict(model))
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[name]


def test_logits_have_the_size_of_an_image_that_no_stride_divides() -> None:
    assert small().eval()(torch.rand(1, 3, 65, 71)).logits.shape == (1, 5, 65, 71)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("stride", [8, 16, 32])
def test_output_stride(backbone: str, stride: int) -> None:
    out = small(backbone=backbone, head="aspp", output_stride=stride).eval()(images())
    assert out.embedding.shape[2:] == (64 // stride, 96 // stride)


@pytest.mark.parametrize("branches", [(6, 12, 18, 24), (6, 12)])
def test_aspp_sums_its_branches_and_sets_them_side_by_side(branches: tuple[int, ...]) -> None:
    network = small(head="aspp", head_branches=branches).eval()
    out = network(images())
    assert network.embedding_channels == 5 * len(branches)
    maps = out.embedding.unflatten(1, (len(branches), 5)).sum(1)
    expected = nn.functional.interpolate(maps, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.logits, expected)


def test_projection_changes_the_embedding_alone() -> None:
    plain, projected = small().eval(), small(projection=7).eval()
    projected.load_state_dict(plain.state_dict(), strict=False)
    assert projected.embedding_channels == 7
    a, b = plain(images()), projected(images())
    assert b.embedding.shape[1] == 7 and b.embedding.shape[2:] == a.embedding.shape[2:]
    assert torch.equal(a.logits, b.logits)


def test_images_are_normalised_by_the_backbone_s_own_mean_and_deviation() -> None:
    network = small().eval()
    grey = network.mean.expand(1, 3, 64, 64)
    features = network(grey).features[-1]
    assert torch.equal(features, network.net.backbone(torch.zeros(1, 3, 64, 64))[-1])


def test_bf16_gives_float32_outputs_close_to_full_precision() -> None:
    network = small().eval()
    full = network(images())
    network.bf16 = True
    half = network(images())
    assert half.logits.dtype == half.embedding.dtype == torch.float32
    assert not torch.equal(half.logits, full.logits)
    torch.testing.assert_close(half.logits, full.logits, rtol=0.1, atol=0.1)


# --- per domain -----------------------------------------------------------------------------------------------------


def _perturb_target(network: Segmenter) -> None:
    with torch.no_grad():
        for parameter in network.target_parameters.values():
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_domains_start_equal_and_then_part(backbone: str, per_domain: PerDomain) -> None:
    network = small(per_domain, backbone=backbone).eval()
    source, target = network(images(), "source"), network(images(), "target")
    assert torch.equal(source.logits, target.logits)
    _perturb_target(network)
    assert torch.equal(network(images(), "source").logits, source.logits)
    assert not torch.equal(network(images(), "target").logits, target.logits)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stem_of_its_own_ends_with_the_first_stage(backbone: str) -> None:
    """Everything that the level of reduction 4 depends on is doubled, and nothing after it."""
    network = small("stem", backbone=backbone)
    level = network(images(), "target").features[0]
    assert level.shape[2] == 64 // 4
    shared = [p for p in network.net.backbone.parameters() if p.requires_grad]
    own = list(network.target_parameters.values())
    level.sum().backward()
    assert all(p.grad is None for p in shared)
    assert all(p.grad is not None for p in own)


def test_gradients_reach_the_parts_of_the_domain_that_was_asked_for() -> None:
    network = small("stem")
    names = [name.replace("/", ".") for name in network.target_parameters]
    stem = [network.net.get_parameter(name) for name in names]
    network(images(), "target").logits.square().mean().backward()
    assert all(p.grad is None for p in stem)
    assert all(p.grad is not None for p in network.target_parameters.values())
    assert any(p.grad.any() for p in network.target_parameters.values() if p.grad is not None)
    network.zero_grad(set_to_none=True)
    network(images(), "source").logits.square().mean().backward()
    assert all(p.grad is not None for p in stem)
    assert all(p.grad is None for p in network.target_parameters.values())


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_whose_statistics_a_domain_moves(per_domain: PerDomain) -> None:
    network = small(per_domain).train()
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    network(images() + 1, "target")
    moved = {name for name, buffer in network.named_buffers() if not torch.equal(buffer, before[name])}
    assert moved
    late = "net.head.fuse.0.running_mean"
    stem_of_source = "net.backbone.bn1.running_mean"
    assert (late in moved) == (per_domain != "stem+statistics")
    assert (stem_of_source in moved) == (per_domain == "nothing")
    assert ("target_buffers.backbone/bn1/running_mean" in moved) == (per_domain != "nothing")


def test_frozen_norm_affine_freezes_the_target_s_copies_too() -> None:
    network = small("stem", frozen_norm_affine=True)
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    assert "net.backbone.bn1.weight" in frozen and "target_parameters.backbone/bn1/weight" in frozen
    assert all(p.ndim == 1 and "backbone" in name for name, p in frozen.items())
    in_groups = [id(p) for group in network.parameter_groups() for p in group]
    assert sorted(in_groups) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_parameter_groups_split_backbone_and_head() -> None:
    network = small("stem", projection=7)
    backbone, head = network.parameter_groups()
    assert {id(p) for p in network.target_parameters.values()} <= {id(p) for p in backbone}
    assert network.net.projection is not None
    expected = {id(p) for part in (network.net.head, network.net.projection) for p in part.parameters()}
    assert {id(p) for p in head} == expected


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_state_dict_names_every_tensor_once(per_domain: PerDomain) -> None:
    state = small(per_domain).state_dict()
    floats = [tensor for tensor in state.values() if tensor.numel()]
    assert len({tensor.data_ptr() for tensor in floats}) == len(floats)
    assert any("target_" in name for name in state) == (per_domain != "nothing")


# --- loading --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_load_network_of_the_same_kind(per_domain: PerDomain) -> None:
    theirs, mine = small(per_domain, seed=1).eval(), small(per_domain, seed=2).eval()
    _perturb_target(theirs)
    mine.load_network(theirs.state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images(), domain).logits)


@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_a_shared_network_becomes_both_domains(per_domain: PerDomain) -> None:
    theirs, mine = small(seed=1).eval(), small(per_domain, seed=2).eval()
    mine.load_network(theirs.state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images()).logits)


@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_a_network_per_domain_becomes_that_of_its_target(per_domain: PerDomain) -> None:
    theirs, mine = small(per_domain, seed=1), small(seed=2).eval()
    _perturb_target(theirs)
    theirs.train()(images() + 1, "target")  # its own statistics
    mine.load_network(theirs.eval().state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images(), "target").logits)


def test_loading_leaves_the_given_state_alone() -> None:
    state = small("stem").state_dict()
    names = list(state)
    small().load_network(state)
    assert list(state) == names


def test_another_network_is_refused_by_the_name_of_a_tensor() -> None:
    with pytest.raises(ValueError, match="number of classes"):
        small(classes=5).load_network(small(classes=6).state_dict())
    with pytest.raises(ValueError, match=r"lacks net\.projection"):
        small(projection=7).load_network(small().state_dict())
    with pytest.raises(ValueError, match=r"net\.projection.*lacks"):
        small().load_network(small(projection=7).state_dict())


# --- errors of building ---------------------------------------------------------------------------------------------


def test_an_unknown_backbone_is_named_with_its_neighbours() -> None:
    with pytest.raises(ValueError, match=r"resnet10tt"):
        small(backbone="resnet10tt")
    with pytest.raises(ValueError, match=r"mobilenetv3_tiny.*did you mean mobilenetv3"):
        small(backbone="mobilenetv3_tiny")


def test_a_backbone_without_stages_of_its_own_is_refused_per_domain() -> None:
    with pytest.raises(ValueError, match="stem"):
        small("stem", backbone="test_vit")


def test_a_backbone_that_cannot_be_built_so_says_with_what() -> None:
    with pytest.raises(ValueError, match=r"test_vit.*output_stride"):
        small(backbone="test_vit", output_stride=8)


def test_head_branches_must_not_be_empty() -> None:
    with pytest.raises(ValueError, match="branches"):
        small(head="aspp", head_branches=())
    with pytest.raises(ValueError, match="multiple of 32"):
        small(head="aspp_gn", head_channels=16)


def test_missing_and_foreign_weights_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model\.weights.*absent\.pth"):
        small(weights=str(tmp_path / "absent.pth"))
    foreign = tmp_path / "foreign.safetensors"
    safetensors.torch.save_file({"nothing.like.it": torch.zeros(3)}, foreign)
    with pytest.raises(ValueError, match=r"foreign\.safetensors has no tensor for conv1\.0\.weight of resnet10t"):
        small(weights=str(foreign))


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
    network = small(weights=str(file))
    assert torch.equal(network.net.backbone.state_dict()["layer4.0.conv1.weight"], state["layer4.0.conv1.weight"])


# --- model directories ----------------------------------------------------------------------------------------------

_CLASSES = Classes(names=("road", "car", "sky"), palette=((1, 2, 3), (4, 5, 6), (7, 8, 9)), raw_to_train={7: 0, 26: 1})


def _saved(directory: Path, per_domain: PerDomain = "stem") -> tuple[Segmenter, ModelCard]:
    model = Model(backbone="resnet10t", head="aspp", head_branches=(6, 12), per_domain=per_domain)
    card = ModelCard(model=model, classes=_CLASSES, short_side=128, recipe="bcl", stage="round-1", step=7)
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head="aspp", head_branches=(6, 12), per_domain=per_domain)
    _perturb_target(network)
    network.train()(images(), "source")
    save_model(directory, network, card)
    return network.eval(), card


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_a_saved_model_is_the_same_network(tmp_path: Path, per_domain: PerDomain) -> None:
    network, card = _saved(tmp_path, per_domain)
    loaded, read = load_model(str(tmp_path))
    assert read == card
    assert not loaded.training
    for domain in ("source", "target"):
        assert torch.equal(loaded(images(), domain).logits, network(images(), domain).logits)


def test_a_directory_that_is_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model directory"):
        read_card(str(tmp_path))


def test_a_damaged_model_is_refused(tmp_path: Path) -> None:
    network, card = _saved(tmp_path)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_model(str(tmp_path))
    save_model(tmp_path, network, replace(card, model=replace(card.model, head_branches=(6,))))
    with pytest.raises(CheckpointError, match="lacks"):
        load_model(str(tmp_path))
    for text in ("{}", "nonsense", "[]", '{"model": 3}'):
        (tmp_path / "model.json").write_text(text)
        with pytest.raises(CheckpointError, match="not a model card"):
            load_model(str(tmp_path))
