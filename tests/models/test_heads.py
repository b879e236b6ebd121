"""Heads: what each joins, sums and sets side by side."""

from __future__ import annotations

import pytest
import torch
from networks import images, small_network
from torch import Tensor, nn

from udaseg.models.heads import ASPPGroupNormHead


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
