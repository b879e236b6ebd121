"""Heads: what each joins, sums and sets side by side."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import images, small_network
from torch import Tensor, nn

from udaseg.models.heads import ASPPGroupNormHead, ContextAwareHead, DeepLabV3Head, draw
from udaseg.types import HeadName


def test_the_context_aware_head_joins_levels_before_it_looks_around() -> None:
    """One level that is constant: what is left of the dilated branches is a function of the place's neighbourhood."""
    head = small_network(head="context_aware", head_channels=8, head_branches=(1, 6)).net.head.eval()
    levels = [torch.zeros(1, c, 64 // s, 96 // s) for c, s in zip((64, 128, 256, 512), (4, 8, 16, 32), strict=True)]
    before = head(levels)[1]
    levels[3][0, :, 0, 0] = 5.0  # the coarsest level, upsampled eightfold: cells 0..11 along each axis
    moved = (head(levels)[1] - before).abs().sum(1)[0] > 1e-7
    assert moved[0, 0] and not moved[:, 20:].any(), "reach: 12 cells of upsampling, 6 of dilation, 1 of fusion"
    assert moved[:, 13:19].any()


@pytest.mark.parametrize("branches", [(6, 12, 18, 24), (6, 12)])
def test_aspp_sums_its_branches_and_sets_them_side_by_side(branches: tuple[int, ...]) -> None:
    network = small_network(head="aspp", head_branches=branches).eval()
    out = network(images())
    assert network.embedding_channels == 5 * len(branches)
    maps = out.embedding.unflatten(1, (len(branches), 5)).sum(1)
    expected = nn.functional.interpolate(maps, size=(64, 96), mode="bilinear", align_corners=False)
    torch.testing.assert_close(out.logits, expected)


def test_prodas_features_are_what_dropout_has_left() -> None:
    """Whole channels are zero in training; in evaluation the embedding is the same, and so are logits in both."""
    level = torch.randn(2, 64, 5, 7, generator=torch.Generator().manual_seed(0))
    outputs: dict[tuple[bool, bool], tuple[Tensor, Tensor]] = {}
    for after in (False, True):
        for training in (False, True):
            torch.manual_seed(1)
            head = ASPPGroupNormHead([64], 3, branches=(2,), channels=32, embedding_after_dropout=after, dropout=0.5)
            outputs[after, training] = head.train(training)([level])
    before, left = outputs[False, True][1], outputs[True, True][1]
    dropped = left.abs().sum((2, 3)) == 0
    assert 0.2 < float(dropped.float().mean()) < 0.8
    torch.testing.assert_close(left, torch.where(dropped[..., None, None], 0.0, 2 * before))
    for training in (False, True):
        assert torch.equal(outputs[False, training][0], outputs[True, training][0])
    assert torch.equal(outputs[False, False][1], outputs[True, False][1])
    with pytest.raises(ValueError, match=r"model\.embedding_after_dropout is of the head aspp_gn"):
        small_network(head="aspp", embedding_after_dropout=True)


@pytest.mark.parametrize("head", ["aspp", "multilevel"])
def test_a_pair_of_heads_adds_its_logits_and_sets_them_side_by_side(head: str) -> None:
    network = small_network(head=head, head_pair=True).eval()
    pair, levels = network.net.head, network.levels(images(), "target")
    first, second = pair.first(levels)[0], pair.second(levels)[0]
    out = network(images())
    torch.testing.assert_close(out.embedding, torch.cat([first, second], 1))
    torch.testing.assert_close(out.aux["coarse_logits"], first + second)
    assert network.embedding_channels == 10 and not torch.equal(first, second)
    weights = pair.weights()
    norms = {"aspp": 0, "multilevel": 4 * 16}[head]  # scale and shift of two batch norms
    assert [len(w) for w in weights] == [
        sum(p.numel() for p in h.parameters()) - norms for h in (pair.first, pair.second)
    ]
    assert all(w.requires_grad for w in weights)


def test_hrda_takes_no_pair_of_heads() -> None:
    with pytest.raises(ValueError, match=r"model\.head_pair"):
        small_network(head_pair=True, detail_crop=(64, 64))


def spread(convolution: nn.Module) -> float:
    """Deviation of a convolution's weights about 0."""
    assert isinstance(convolution, nn.Conv2d)
    return float(convolution.weight.detach().square().mean().sqrt())


def kaiming(convolution: nn.Module) -> float:
    """sqrt(2 / fan out), what follows a convolution being a ReLU."""
    assert isinstance(convolution, nn.Conv2d)
    return float((2 / (convolution.out_channels * convolution.weight[0, 0].numel())) ** 0.5)


@pytest.mark.parametrize("branches", [(1, 6, 12), ()], ids=["daformer", "segformer"])
def test_the_context_aware_head_is_drawn_as_mmcv_does(branches: tuple[int, ...]) -> None:
    options = {"head": "context_aware", "head_channels": 64, "head_branches": branches, "detail_crop": (64, 64)}
    network = small_network(head_init="mmseg", **options)
    for head in (network.net.head, network.net.attention):
        assert isinstance(head, ContextAwareHead)
        drawn = [module for part in (head.branches, head.fuse) for module in part.modules()]
        drawn = [module for module in drawn if isinstance(module, nn.Conv2d)]
        assert [spread(module) for module in drawn] == pytest.approx([kaiming(module) for module in drawn], rel=0.05)
        assert spread(head.classify) == pytest.approx(0.01, rel=0.15)
        assert not head.classify.bias.any()  # type: ignore[union-attr]
        assert all(layer.bias.any() for layer in head.project)  # type: ignore[union-attr]
    plain = small_network(**options)
    for mine, theirs in zip(network.net.head.project, plain.net.head.project, strict=True):  # type: ignore[union-attr, arg-type]
        assert spread(mine) == pytest.approx(spread(theirs), rel=0.1), "linear layers there, as torch draws them"


@pytest.mark.parametrize(("init", "biased"), [("mmseg", False), ("torch", True), ("deeplab", True)])
def test_deeplabv2_is_drawn_from_a_normal_distribution(init: str, biased: bool) -> None:
    """Of deviation 0.01. The biases are 0 in DAFormer's line and torch's in ADVENT's."""
    network = small_network(head="aspp", head_init=init, detail_crop=(64, 64))
    for head in (network.net.head, network.net.attention):
        for branch in head.branches:  # type: ignore[union-attr]
            assert spread(branch) == pytest.approx(0.01, rel=0.05)
            assert bool(branch.bias.any()) == biased


def test_deeplabv3_is_drawn_as_mmseg_does() -> None:
    head = DeepLabV3Head([64], 5, channels=32)
    before = spread(head.context.convs[1][0])
    draw(head, "mmseg")
    drawn = [head.context.convs[0][0], head.context.convs[1][0], head.context.convs[4][1], head.fuse[0]]
    drawn.append(head.context.project[0])
    assert [spread(module) for module in drawn] == pytest.approx([kaiming(module) for module in drawn], rel=0.08)
    assert before != pytest.approx(spread(drawn[1]), rel=0.08)
    assert spread(head.classify) == pytest.approx(0.01, rel=0.2) and not head.classify.bias.any()  # type: ignore[union-attr]


def test_prodas_head_is_drawn_from_a_normal_distribution() -> None:
    """All convolutions but those of the channel attention, which are linear layers there."""
    head = ASPPGroupNormHead([64], 7, channels=64)
    attention = head.bottleneck[0].state_dict()
    kept = {name: tensor.clone() for name, tensor in attention.items()}
    draw(head, "deeplab")
    drawn = [*(branch[0] for branch in head.branches), head.bottleneck[1], head.classify]  # type: ignore[index]
    assert [spread(module) for module in drawn] == pytest.approx([0.01] * len(drawn), rel=0.1)
    assert not head.bottleneck[1].bias.any() and head.branches[0][0].bias.any()  # type: ignore[union-attr, index, operator]
    assert all(torch.equal(tensor, kept[name]) for name, tensor in attention.items())
    for name, init in (("aspp_gn", "mmseg"), ("context_aware", "deeplab")):
        with pytest.raises(ValueError, match=rf"model\.head_init '{init}' is not of a"):
            small_network(head=name, head_channels=32, head_init=init)


def test_the_mean_of_deeplabv3_is_not_rounded_to_bfloat16() -> None:
    """Its norm divides by the spread over a few images, of which bfloat16 is a tenth where they are much alike."""
    torch.manual_seed(0)
    head = DeepLabV3Head([32], 5, channels=16)
    alike = torch.randn(1, 32, 1, 1).abs() + 1
    level = (alike * (1 + 0.02 * torch.randn(4, 32, 1, 1)) + 0.1 * torch.randn(4, 32, 6, 6)).bfloat16()
    found: list[Tensor] = []
    head.context.convs[-1].register_forward_hook(lambda _module, _inputs, output: found.append(output.float()))
    head.train()
    head([level.float()])
    with torch.autocast("cpu", torch.bfloat16):
        head([level])
    exact, rounded = (norm.detach() for norm in found)
    assert float((rounded - exact).norm() / exact.norm()) < 0.02


@pytest.mark.parametrize("name", ["context_aware", "multilevel"])
def test_levels_are_joined_in_single_precision(name: HeadName, monkeypatch: pytest.MonkeyPatch) -> None:
    """On a GPU an upsampled map's gradient is added up in its type, where bfloat16 has lost two hundredths of it."""
    seen, real = [], nn.functional.interpolate

    def interpolate(x: Tensor, **named: Any) -> Tensor:
        seen.append(x.dtype)
        return real(x, **named)

    network = small_network(head=name, head_channels=8, bf16=True)
    monkeypatch.setattr(nn.functional, "interpolate", interpolate)
    network(images())
    assert len(seen) > 3 and set(seen) == {torch.float32}


def test_the_context_aware_head_drops_what_it_classifies_while_it_trains() -> None:
    torch.manual_seed(0)
    head = ContextAwareHead([4, 8], 3, branches=(), channels=64, dropout=0.5).train()
    levels = [torch.randn(2, 4, 8, 8), torch.randn(2, 8, 4, 4)]
    logits, embedding = head(levels)
    assert not torch.allclose(logits, head.classify(embedding))
    logits, embedding = head.eval()(levels)
    torch.testing.assert_close(logits, head.classify(embedding))
