"""PNE's part: which cells are anchors and keys, and who learns."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from draws import labels, normal

from udaseg.components.equal_contrast import PNE
from udaseg.losses.contrastive import positive_negative_equal_contrast
from udaseg.types import IGNORE, SegOutput


def test_wrong_cells_learn_from_the_right_ones_of_their_image() -> None:
    coarse, embedding, label = (
        normal(2, 3, 4, 5),
        normal(2, 6, 4, 5, seed=1).requires_grad_(),
        labels(2, 8, 10, classes=3),
    )
    out = SegOutput(logits=normal(2, 3, 8, 10), embedding=embedding, aux={"coarse_logits": coarse})
    part = PNE(weight=0.3, anchors=50, keys=50, temperature=0.5)  # more than there are: all of them
    (loss,) = part.losses(out, label, torch.arange(2), seed=0)
    small, predicted = label[:, ::2, ::2].flatten(1), coarse.argmax(1).flatten(1)
    unit = F.normalize(embedding, dim=1).flatten(2).transpose(1, 2)
    expected = positive_negative_equal_contrast(
        unit,
        small.where(small != predicted, IGNORE),
        unit.detach(),
        small.where(small == predicted, IGNORE),
        temperature=0.5,
    )
    assert loss.name == "equal_contrast" and loss.weight == 0.3
    assert loss.value.item() == pytest.approx(expected.item(), rel=1e-9) and loss.value.item() > 0
    mine, all_of_them = (torch.autograd.grad(v, embedding, retain_graph=True)[0] for v in (loss.value, expected))
    torch.testing.assert_close(mine, all_of_them)
    right = (small == predicted).view(2, 4, 5)
    assert not mine.movedim(1, -1)[right].any() and mine.movedim(1, -1)[~right].any()
    (fewer,) = PNE(weight=0.3, anchors=1, keys=2).losses(out, label, torch.arange(2), seed=0)
    assert 0 < int((torch.autograd.grad(fewer.value, embedding)[0] != 0).any(1).sum()) <= 2 * 3


def test_it_is_off_by_default() -> None:
    out = SegOutput(logits=normal(1, 3, 8, 8), embedding=normal(1, 4, 4, 4), aux={"coarse_logits": normal(1, 3, 4, 4)})
    assert not list(PNE().losses(out, labels(1, 8, 8, classes=3), torch.arange(1), seed=0))
