"""CADA: who learns from what, and whose context predictions have."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import nn
from toy import make_batches, make_stage, make_state

from udaseg.losses.adversarial import binary_cross_entropy


def gradients(module: nn.Module) -> bool:
    return any(p.grad is not None and bool(p.grad.any()) for p in module.parameters())


def test_the_networks_and_their_adversaries_learn_from_terms_of_their_own() -> None:
    stage = make_stage("cada")
    method = make_state(stage).method.train()
    for losses in method.losses(make_batches(stage), 0, 10):
        method.zero_grad(set_to_none=True)
        torch.stack([loss.value for loss in losses]).sum().backward()
        judging = [kind for kind in method.discriminators if losses[0].name.startswith(f"{kind}_discriminator")]
        assert {k: gradients(d) for k, d in method.discriminators.items()} == {
            k: k in judging for k in method.discriminators
        }
        learners = (method.student, method.attention, method.context_classifier)
        assert {gradients(module) for module in learners} == {not judging}


def test_each_domain_s_prediction_has_the_other_s_context_of_its_own_pair() -> None:
    stage = make_stage("cada")
    method, batches = make_state(stage).method.eval(), make_batches(stage)
    first = {loss.name: loss.value for loss in next(method.losses(batches, 0, 10))}
    swapped = replace(batches["target"], image=batches["target"].image.flip(0))
    other = {loss.name: loss.value for loss in next(method.losses(batches | {"target": swapped}, 0, 10))}
    assert torch.equal(first["source_ce"], other["source_ce"]), "the network itself sees one image"
    assert first["context_ce"] != other["context_ce"], "the source's context is the target's"

    outs = {d: method.student(b.image, d, b.index) for d, b in batches.items()}
    attended = method.attention(outs["target"].features[-1], outs["source"].features[-1])
    coarse, _ = method.context_classifier([attended])
    up = torch.nn.functional.interpolate(coarse, size=(64, 64), mode="bilinear")
    verdict = method.discriminators["context"](up.softmax(1))
    torch.testing.assert_close(first["context_adversarial"], binary_cross_entropy(verdict, "source"))
