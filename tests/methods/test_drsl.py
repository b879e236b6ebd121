"""DRSL: which mode a cell is mapped to, and who learns from what."""

from __future__ import annotations

from dataclasses import replace

import torch
from draws import labels
from toy import METHODS, collect_frozen, make_batches, make_stage, make_state

from udaseg.methods.drsl import DRSL
from udaseg.types import IGNORE


def made(**settings: object) -> DRSL:
    config = replace(METHODS["drsl"], **settings)  # type: ignore[type-var]
    return make_state(replace(make_stage("drsl"), method=config)).method.eval()  # type: ignore[return-value]


def test_a_cell_is_mapped_to_a_mode_of_its_class_by_its_probability() -> None:
    method, count = made(modes=2, sigma=0.5), 3000
    cosine = torch.zeros(count, 4, 2, 1, 1)
    cosine[:, :, 0], cosine[:, :, 1] = 0.9, 0.6
    label = torch.arange(count).view(-1, 1, 1) % 4
    label[0] = IGNORE
    drawn = method._drawn_modes("source", cosine, label, torch.arange(count))
    assert int(drawn[0]) == 8
    assert torch.equal(drawn[1:] // 2, label[1:])
    # squared distances are 0.2 and 0.8; their difference over 2 * 0.25 is 1.2
    expected = 1 / (1 + torch.tensor(-1.2).exp())
    assert abs(float((drawn[1:] % 2 == 0).float().mean() - expected)) < 0.03
    again = method._drawn_modes("source", cosine[7:9], label[7:9], torch.arange(7, 9))
    assert torch.equal(again, drawn[7:9])


def test_source_and_target_of_a_pair_draw_apart() -> None:
    method, cosine, label = made(modes=2), torch.zeros(4, 4, 2, 5, 5), labels(4, 5, 5, classes=4)
    index = torch.arange(4)
    mine, theirs = (method._drawn_modes(domain, cosine, label, index) for domain in ("source", "target"))
    assert not torch.equal(mine, theirs)


def test_both_domains_teach_the_head_and_the_base_that_it_shares() -> None:
    method, batches = made(modes=1), make_batches(make_stage("drsl"), size=4)
    (found,) = ({loss.name: loss for loss in losses} for losses in method.losses(batches, 0, 10))
    for name in ("source_metric", "target_metric", "source_margin", "target_margin", "alignment"):
        assert found[name].value.item() > 0
        method.zero_grad(set_to_none=True)
        found[name].value.backward(retain_graph=True)
        assert any(p.grad is not None and p.grad.any() for p in method.metric.embed.parameters())
        assert any(p.grad is not None and p.grad.any() for p in method.student.net.backbone.parameters())
        assert (method.metric.proxies.grad is None) == (name == "alignment")


def test_without_pseudo_labels_the_target_teaches_nothing() -> None:
    batches = make_batches(make_stage("drsl"))
    hidden = replace(batches["target"], label=torch.full_like(batches["target"].labels, IGNORE))
    found = collect_frozen(make_state(make_stage("drsl")), batches | {"target": hidden})
    assert all(found[name].value.item() == 0 for name in found if name.startswith("target") or name == "alignment")
