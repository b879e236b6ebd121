"""DACS: two graphs, and the weight of pasted and labelled pixels."""

from __future__ import annotations

from dataclasses import replace

import torch
from toy import collect, make_batches, make_stage, make_state

from udaseg.methods.dacs import DACS


def test_dacs_backpropagates_source_and_mixture_as_two_graphs() -> None:
    stage = make_stage("dacs")
    state = make_state(stage)
    terms = list(state.method.train().losses(make_batches(stage), 0, 10))
    assert [[loss.name for loss in losses] for losses in terms] == [["source_ce"], ["mixed_ce", "coverage"]]
    assert all(p.grad is None for p in state.method.teacher.parameters())


def test_dacs_without_a_confident_pixel_learns_from_the_pasted_source_alone() -> None:
    """q = 0 gives target pixels the weight 0, so what the teacher calls them cannot matter."""
    stage = replace(make_stage("dacs"), method=DACS.Config(threshold=1.0))
    batches = make_batches(stage)
    state = make_state(stage)
    first = collect(state, batches)
    with torch.no_grad():
        for parameter in state.method.teacher.network.net.head.parameters():
            parameter.neg_()
    second = collect(state, batches)
    assert float(first["coverage"].value) == 0
    assert first["mixed_ce"].value.item() == second["mixed_ce"].value.item() > 0
