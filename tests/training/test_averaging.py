"""Gradients are averaged over ranks while backward passes still compute, and are the same as if they were not."""

from __future__ import annotations

import pytest
import torch
from equal_ranks import assert_ranks_equal_one, train_some
from torch import Tensor, nn
from two_ranks import RankPool, TwoRanks

from udaseg.distributed import sum_over_ranks, world_size
from udaseg.training.averaging import GradientAverage

Graph = tuple[int, ...]
"""The layers whose output a backward pass begins at."""


def _steps(rank: int, steps: list[list[Graph]], bf16: bool) -> tuple[list[int], list[list[float]], float]:
    """Buckets of four that were under way before each step's end, the last step's gradients, and the largest error."""
    torch.manual_seed(0)
    layers = nn.ModuleList(nn.Linear(3, 3, bias=False) for _ in range(4))
    average = GradientAverage(layers.parameters(), bf16=bf16, bucket_bytes=1)
    under_way, worst = [], 0.0
    for step, graphs in enumerate(steps):
        x = torch.randn(5, 3, generator=torch.Generator().manual_seed(10 * step + rank))
        for layer in layers:
            layer.weight.grad = None
        average.begin()
        own = [torch.zeros(3, 3) for _ in layers]
        for graph in graphs:
            loss = _chain(layers, graph, x)
            for kept, gradient in zip(
                own, torch.autograd.grad(loss, layers.parameters(), allow_unused=True), strict=True
            ):
                kept += 0 if gradient is None else gradient
            _chain(layers, graph, x).backward()
        under_way.append(average.under_way)
        assert average.finish() == 1
        assert not any(bucket.flat.numel() for bucket in average._buckets), "a copy of all gradients stays"
        for number, (layer, kept) in enumerate(zip(layers, own, strict=True)):
            mean = sum_over_ranks(kept) / world_size()
            if not any(number in graph for graph in graphs):
                assert layer.weight.grad is None
                continue
            assert isinstance(layer.weight.grad, Tensor)
            worst = max(worst, float((layer.weight.grad - mean).abs().max() / mean.abs().max().clamp_min(1e-6)))
    found = [layer.weight.grad for layer in layers]
    return under_way, [[] if gradient is None else gradient.flatten().tolist() for gradient in found], worst


def _chain(layers: nn.ModuleList, graph: Graph, x: Tensor) -> Tensor:
    for number in graph:
        x = layers[number](x).tanh()
    return x.square().sum()


ALL = (0, 1, 2, 3)


@pytest.mark.parametrize(
    ("steps", "before_the_end"),
    [
        ([[ALL], [ALL], [ALL]], [0, 4, 4]),
        ([[ALL, (0, 1)], [ALL, (0, 1)]], [0, 4]),
        ([[ALL], [ALL, ALL], [ALL, ALL]], [0, 4, 4]),  # more graphs than expected: exchanged again
        ([[ALL, ALL], [ALL], [ALL]], [0, 0, 4]),  # fewer: nothing is whole before the end
        ([[(0, 1)], [(0, 1)], [ALL]], [0, 4, 4]),  # layers without a gradient have none, until they have one
        ([[(3,)], [(0,)]], [0, 0]),
    ],
)
def test_averages_are_the_means_whatever_graphs_a_step_has(
    steps: list[list[Graph]], before_the_end: list[int], two_ranks: TwoRanks
) -> None:
    first, second = two_ranks.run(_steps, steps, False)
    assert first[0] == second[0] == before_the_end
    assert first[1] == second[1] and max(first[2], second[2]) < 1e-6


def test_gradients_in_bfloat16_are_rounded_and_equal_on_all_ranks(two_ranks: TwoRanks) -> None:
    first, second = two_ranks.run(_steps, [[ALL], [ALL]], True)
    assert first[1] == second[1] and 1e-5 < first[2] < 2e-2


@pytest.mark.full
@pytest.mark.parametrize("name", ["dacs", "sdca"])
def test_four_ranks_equal_one(name: str) -> None:
    four = RankPool(4)
    try:
        ranks = four.run(train_some, name)
    finally:
        four.close()
    assert_ranks_equal_one(ranks, train_some(None, name))
