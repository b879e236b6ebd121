"""A head that learns more classes: the old ones are as likely as before, the new ones share the background's place."""

from __future__ import annotations

import math

import pytest
import torch
from networks import images, small_network

from udaseg.losses.distillation import as_before

OLD, ALL, BACKGROUND = 3, 5, 1


@pytest.mark.parametrize(
    "settings",
    [{"head": "aspp", "head_branches": (6, 12)}, {"head": "deeplabv3"}, {"head": "context_aware"}, {"head_pair": True}],
    ids=["aspp", "deeplabv3", "context_aware", "pair"],
)
def test_old_classes_are_as_likely_as_before_and_new_ones_as_the_background(settings: dict[str, object]) -> None:
    before, after = small_network(classes=OLD, seed=1, **settings).eval(), small_network(classes=ALL, **settings).eval()
    after.load_network(before.state_dict(), background=BACKGROUND)
    was, now = before(images()).logits.softmax(1), after(images()).logits
    torch.testing.assert_close(as_before(now, OLD, BACKGROUND).softmax(1), was)
    share = was[:, BACKGROUND] / (ALL - OLD + 1)
    for new in (BACKGROUND, 3, 4):
        torch.testing.assert_close(now.softmax(1)[:, new], share)


def test_old_weights_stay_and_new_ones_are_the_background_s() -> None:
    before, after = small_network(classes=OLD, seed=1), small_network(classes=ALL)
    state = before.state_dict()
    after.load_network(state, background=BACKGROUND)
    old, new = (n.net.head.classify for n in (before, after))  # type: ignore[union-attr]
    assert torch.equal(new.weight[:OLD], old.weight)  # type: ignore[union-attr]
    assert all(torch.equal(new.weight[c], old.weight[BACKGROUND]) for c in (3, 4))  # type: ignore[union-attr]
    assert torch.equal(new.bias[[0, 2]], old.bias[[0, 2]])  # type: ignore[union-attr]
    for c in (BACKGROUND, 3, 4):
        assert new.bias[c].item() == pytest.approx(old.bias[BACKGROUND].item() - math.log(3))  # type: ignore[union-attr]
    rest = {name for name in state if "classify" not in name}
    assert all(torch.equal(after.state_dict()[name], state[name]) for name in rest)
    assert len(state["net.head.classify.bias"]) == OLD, "the given state is left alone"


def test_hrda_s_attention_grows_by_the_background_s_shares() -> None:
    before, after = (small_network(classes=c, detail_crop=(32, 32)).eval() for c in (OLD, ALL))
    after.load_network(before.state_dict(), background=BACKGROUND)
    was, now = (n(images(), detail="everywhere").logits for n in (before, after))
    torch.testing.assert_close(as_before(now, OLD, BACKGROUND).softmax(1), was.softmax(1), rtol=1e-4, atol=1e-5)


def test_a_head_grows_only_where_it_may() -> None:
    state = small_network(classes=OLD).state_dict()
    with pytest.raises(ValueError, match="number of classes"):
        small_network(classes=ALL).load_network(state)
    with pytest.raises(ValueError, match="number of classes"):
        small_network(classes=2).load_network(state, background=0)
    same = small_network(classes=OLD, seed=2)
    same.load_network(state, background=0)
    assert torch.equal(same.state_dict()["net.head.classify.bias"], state["net.head.classify.bias"])
    biasless = {"head": "aspp_gn", "head_channels": 32}
    with pytest.raises(ValueError, match=r"no biases.*model\.head"):
        small_network(classes=ALL, **biasless).load_network(
            small_network(classes=OLD, **biasless).state_dict(), background=0
        )


def test_shapes_alone_say_whether_a_network_can_grow() -> None:
    shapes = {name: torch.empty(t.shape, device="meta") for name, t in small_network(classes=OLD).state_dict().items()}
    assert len(small_network(classes=ALL).matched(shapes, background=0)["net.head.classify.weight"]) == ALL
