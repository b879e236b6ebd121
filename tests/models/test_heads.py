"""Heads: what each joins, sums and sets side by side."""

from __future__ import annotations

import pytest
import torch
from networks import images, small_network
from torch import nn


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
