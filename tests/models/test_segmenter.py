"""The network around a backbone and a head: what it keeps per domain, and what it loads."""

from __future__ import annotations

import pytest
import torch
from networks import BACKBONES, images, perturb_target, small_network

from udaseg.models.segmenter import PerDomain


def test_logits_have_the_size_of_an_image_that_no_stride_divides() -> None:
    assert small_network().eval()(torch.rand(1, 3, 65, 71)).logits.shape == (1, 5, 65, 71)


def test_projection_changes_the_embedding_alone() -> None:
    plain, projected = small_network().eval(), small_network(projection=7).eval()
    projected.load_state_dict(plain.state_dict(), strict=False)
    assert projected.embedding_channels == 7
    a, b = plain(images()), projected(images())
    assert b.embedding.shape[1] == 7 and b.embedding.shape[2:] == a.embedding.shape[2:]
    assert torch.equal(a.logits, b.logits)


def test_images_are_normalised_by_the_backbone_s_own_mean_and_deviation() -> None:
    network = small_network().eval()
    grey = network.mean.expand(1, 3, 64, 64)
    features = network(grey).features[-1]
    assert torch.equal(features, network.net.backbone(torch.zeros(1, 3, 64, 64))[-1])


def test_bf16_gives_float32_outputs_close_to_full_precision() -> None:
    network = small_network().eval()
    full = network(images())
    network.bf16 = True
    half = network(images())
    assert half.logits.dtype == half.embedding.dtype == torch.float32
    assert not torch.equal(half.logits, full.logits)
    torch.testing.assert_close(half.logits, full.logits, rtol=0.1, atol=0.1)


@pytest.mark.parametrize("backbone", BACKBONES)
@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_domains_start_equal_and_then_part(backbone: str, per_domain: PerDomain) -> None:
    network = small_network(per_domain, backbone=backbone).eval()
    source, target = network(images(), "source"), network(images(), "target")
    assert torch.equal(source.logits, target.logits)
    perturb_target(network)
    assert torch.equal(network(images(), "source").logits, source.logits)
    assert not torch.equal(network(images(), "target").logits, target.logits)


@pytest.mark.parametrize("backbone", BACKBONES)
def test_stem_of_its_own_ends_with_the_first_stage(backbone: str) -> None:
    """Everything that the level of reduction 4 depends on is doubled, and nothing after it."""
    network = small_network("stem", backbone=backbone)
    level = network(images(), "target").features[0]
    assert level.shape[2] == 64 // 4
    shared = [p for p in network.net.backbone.parameters() if p.requires_grad]
    own = list(network.target_parameters.values())
    level.sum().backward()
    assert all(p.grad is None for p in shared)
    assert all(p.grad is not None for p in own)


def test_gradients_reach_the_parts_of_the_domain_that_was_asked_for() -> None:
    network = small_network("stem")
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
    network = small_network(per_domain).train()
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
    network = small_network("stem", frozen_norm_affine=True)
    frozen = {name: p for name, p in network.named_parameters() if not p.requires_grad}
    assert "net.backbone.bn1.weight" in frozen and "target_parameters.backbone/bn1/weight" in frozen
    assert all(p.ndim == 1 and "backbone" in name for name, p in frozen.items())
    in_groups = [id(p) for group in network.parameter_groups() for p in group]
    assert sorted(in_groups) == sorted(id(p) for p in network.parameters() if p.requires_grad)


def test_parameter_groups_split_backbone_and_head() -> None:
    network = small_network("stem", projection=7)
    backbone, head = network.parameter_groups()
    assert {id(p) for p in network.target_parameters.values()} <= {id(p) for p in backbone}
    assert network.net.projection is not None
    expected = {id(p) for part in (network.net.head, network.net.projection) for p in part.parameters()}
    assert {id(p) for p in head} == expected


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_state_dict_names_every_tensor_once(per_domain: PerDomain) -> None:
    state = small_network(per_domain).state_dict()
    floats = [tensor for tensor in state.values() if tensor.numel()]
    assert len({tensor.data_ptr() for tensor in floats}) == len(floats)
    assert any("target_" in name for name in state) == (per_domain != "nothing")


@pytest.mark.parametrize("per_domain", ["nothing", "stem", "stem+statistics"])
def test_load_network_of_the_same_kind(per_domain: PerDomain) -> None:
    theirs, mine = small_network(per_domain, seed=1).eval(), small_network(per_domain, seed=2).eval()
    perturb_target(theirs)
    mine.load_network(theirs.state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images(), domain).logits)


@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_a_shared_network_becomes_both_domains(per_domain: PerDomain) -> None:
    theirs, mine = small_network(seed=1).eval(), small_network(per_domain, seed=2).eval()
    mine.load_network(theirs.state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images()).logits)


@pytest.mark.parametrize("per_domain", ["stem", "stem+statistics"])
def test_a_network_per_domain_becomes_that_of_its_target(per_domain: PerDomain) -> None:
    theirs, mine = small_network(per_domain, seed=1), small_network(seed=2).eval()
    perturb_target(theirs)
    theirs.train()(images() + 1, "target")  # its own statistics
    mine.load_network(theirs.eval().state_dict())
    for domain in ("source", "target"):
        assert torch.equal(mine(images(), domain).logits, theirs(images(), "target").logits)


def test_loading_leaves_the_given_state_alone() -> None:
    state = small_network("stem").state_dict()
    names = list(state)
    small_network().load_network(state)
    assert list(state) == names


def test_another_network_is_refused_by_the_name_of_a_tensor() -> None:
    with pytest.raises(ValueError, match="number of classes"):
        small_network(classes=5).load_network(small_network(classes=6).state_dict())
    with pytest.raises(ValueError, match=r"lacks net\.projection"):
        small_network(projection=7).load_network(small_network().state_dict())
    with pytest.raises(ValueError, match=r"net\.projection.*lacks"):
        small_network().load_network(small_network(projection=7).state_dict())
