"""Attention across domains against loops over positions and channels."""

from __future__ import annotations

import pytest
import torch
from draws import normal

from udaseg.models.cross_attention import CrossDomainAttention


def test_every_position_attends_to_every_position_of_the_other_image_and_every_channel_to_every_channel() -> None:
    torch.manual_seed(0)
    attention = CrossDomainAttention(6, 16).double()
    own, other = normal(2, 6, 3, 4), normal(2, 6, 3, 4, seed=1)
    out = attention(own, other)
    assert out.shape == (2, 16, 3, 4)
    mine, theirs = attention.reduce(own), attention.reduce(other)
    expected = torch.zeros_like(out)
    for b in range(2):
        cells, keys = mine[b].flatten(1), theirs[b].flatten(1)  # (16, 12)
        query, key, value = (
            layer(x[b : b + 1]).flatten(2)[0]
            for layer, x in ((attention.query, mine), (attention.key, theirs), (attention.value, theirs))
        )
        by_position = torch.stack(
            [value @ (key.T @ query[:, n] / 2**0.5).softmax(0) for n in range(12)], 1
        )  # of 2 = 16 / 8 channels
        by_channel = torch.stack([(keys @ cells[c] / 12**0.5).softmax(0) @ keys for c in range(16)])
        total = cells
        for context, gate in ((by_position, attention.position_gate), (by_channel, attention.channel_gate)):
            share = (gate.weight[0, :, 0, 0] @ torch.cat([cells, context]) + gate.bias).sigmoid()
            total = total + share * context
        expected[b] = total.unflatten(1, (3, 4))
    torch.testing.assert_close(out, expected)
    assert not torch.allclose(attention(own, own), out)


def test_what_cannot_attend_is_refused() -> None:
    with pytest.raises(ValueError, match=r"\(3, 4\) and \(3, 5\).*data\.crop"):
        CrossDomainAttention(6, 16)(torch.zeros(1, 6, 3, 4), torch.zeros(1, 6, 3, 5))
    with pytest.raises(ValueError, match="multiple of 8"):
        CrossDomainAttention(6, 12)
