"""Two ranks that hold half the batch each equal one process that holds all of it.

Batch norm normalises per rank, so it is frozen here, and there is no dropout.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from equal_ranks import GLOBAL, assert_ranks_equal_one, narrow_stage, share, train_some
from torch import Tensor, nn
from toy import METHODS, SEED, flat, make_batches, make_stage, make_state
from two_ranks import WORLD_SIZE, TwoRanks

from udaseg.components.pseudo_label import confident_share
from udaseg.distributed import average_batch_norm, mean_over_ranks, rank, sum_over_ranks, world_size
from udaseg.errors import TrainingError
from udaseg.losses.contrastive import bidirectional_contrast
from udaseg.losses.segmentation import cross_entropy
from udaseg.methods.bcl import DomainBias
from udaseg.training.averaging import GradientAverage
from udaseg.training.step import train_step
from udaseg.types import IGNORE, Loss

BY_A_RECIPE = (
    "supervised",
    "adabn",
    "crda",
    "bcl",
    "sdca",
    "daformer",
    "mic",
    "vfm",
    "cluda",
    "ldbe_enhancement",
    "dsp",
    "proda_distil",
    "spcl",
    "proca",
    "sepico",
    "camix",
    "rccr",
    "ehtdi",
)
"""What a recipe's own contract tests."""


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ("oracle", "bcl_teacher", *BY_A_RECIPE)])
def test_a_method_on_two_ranks_equals_one(name: str, two_ranks: TwoRanks) -> None:
    ranks = two_ranks.run(train_some, name)
    state, gradients, logs = train_some(None, name)
    start = flat(make_state(narrow_stage(name)).method.state_dict())
    assert any(not np.array_equal(start[key], state[key]) for key in state if "student" in key)
    for key in gradients:
        assert np.array_equal(ranks[0][1][key], ranks[1][1][key]), f"ranks differ in the gradient of {key}"
    assert_ranks_equal_one(ranks, (state, gradients, logs))
    if name == "dacs":
        assert logs["coverage"] > 0
    if "paper" in name:
        assert state["domain_bias.bias"].any()


@pytest.mark.parametrize("name", ["supervised", "adabn", "dacs", "bcl_paper"])
def test_ranks_stay_equal_while_batch_norm_trains(name: str, two_ranks: TwoRanks) -> None:
    """Also in the statistics that a network keeps for the target: what is saved is the state of both."""
    (first, *_), (second, *_) = two_ranks.run(train_some, name, False)
    for key in first:
        assert np.array_equal(first[key], second[key]), f"ranks differ in {key}"


# --- the parts ------------------------------------------------------------------------------------------------------


def _logits_and_labels() -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(0)
    logits, label = torch.from_numpy(rng.standard_normal((4, 3, 6, 6))), torch.from_numpy(rng.integers(0, 3, (4, 6, 6)))
    label[0], label[1, 1:], label[3, :, 4:] = IGNORE, IGNORE, IGNORE
    return logits, label, torch.from_numpy(rng.random((4, 6, 6))) * (torch.arange(6) > 1)


def _cross_entropy(rank: int | None, reduction: Any, weighted: bool) -> tuple[float, np.ndarray]:
    logits, label, weight = _logits_and_labels()
    half = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    z = logits[half].requires_grad_()
    value = cross_entropy(z, label[half], weight[half] if weighted else None, reduction=reduction)
    value.backward()
    assert z.grad is not None
    return float(value.detach()), z.grad.numpy()


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("reduction", ["valid", "all", "nonzero"])
def test_mean_over_ranks_of_cross_entropy_is_the_joint_one(reduction: str, weighted: bool, two_ranks: TwoRanks) -> None:
    value, gradient = _cross_entropy(None, reduction, weighted)
    (first, first_gradient), (second, second_gradient) = two_ranks.run(_cross_entropy, reduction, weighted)
    assert (first + second) / 2 == pytest.approx(value, rel=1e-12)
    np.testing.assert_allclose(np.concatenate([first_gradient, second_gradient]) / 2, gradient, rtol=1e-12)


def _no_label_here(rank: int, empty: int) -> float:
    logits, label, _ = _logits_and_labels()
    label = torch.full_like(label, IGNORE) if rank == empty else label
    return float(cross_entropy(logits, label))


def test_a_rank_without_labels_contributes_nothing(two_ranks: TwoRanks) -> None:
    whole = float(cross_entropy(*_logits_and_labels()[:2]))
    for empty in range(WORLD_SIZE):
        values = two_ranks.run(_no_label_here, empty)
        assert values[empty] == 0 and values[1 - empty] / 2 == pytest.approx(whole)


def _contrast(rank: int | None) -> tuple[float, float]:
    rng = np.random.default_rng(0)
    fs, ft = (torch.from_numpy(rng.standard_normal((4, 5, 3, 3))) for _ in range(2))
    ys, yt = (torch.from_numpy(rng.integers(0, 3, (4, 9, 9))) for _ in range(2))
    yt[0], yt[3] = IGNORE, 1
    half = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
    forward, backward = bidirectional_contrast(fs[half], ys[half], ft[half], yt[half], num_classes=4)
    return float(forward), float(backward)


def test_mean_over_ranks_of_the_contrast_is_the_joint_one(two_ranks: TwoRanks) -> None:
    np.testing.assert_allclose(np.mean(two_ranks.run(_contrast), axis=0), _contrast(None), rtol=1e-6)


def _share(rank: int | None) -> float:
    confidence = torch.linspace(0, 1, 64).view(4, 4, 4) ** 2
    return float(confident_share(confidence if rank is None else confidence[2 * rank : 2 * rank + 2], 0.4))


def test_confident_share_is_over_all_ranks(two_ranks: TwoRanks) -> None:
    assert two_ranks.run(_share) == [pytest.approx(_share(None))] * 2


def _bias(rank: int | None) -> np.ndarray:
    rng, bank = np.random.default_rng(0), DomainBias(4, 3, momentum=0.8)
    for _ in range(3):
        source, target = (torch.from_numpy(rng.standard_normal((4, 4, 3))).float() for _ in range(2))
        shared = torch.from_numpy(rng.random((4, 4)) < 0.4)
        half = slice(None) if rank is None else slice(2 * rank, 2 * rank + 2)
        bank.update(source[half], target[half], shared[half])
    return bank.bias.numpy()


def test_domain_bias_is_of_the_pairs_of_all_ranks(two_ranks: TwoRanks) -> None:
    first, second = two_ranks.run(_bias)
    assert np.array_equal(first, second)
    np.testing.assert_allclose(first, _bias(None), rtol=1e-5, atol=1e-6)


# --- dist -----------------------------------------------------------------------------------------------------------


def _disagreed(rank_given: int) -> float:
    """What is said of a bias that has a gradient on the first rank alone."""
    layer = nn.Linear(2, 2)
    layer.weight.grad = torch.ones(2, 2)
    if rank_given == 0:
        layer.bias.grad = torch.ones(2)
    return GradientAverage(layer.parameters()).finish().item()


def _tell(rank_given: int) -> dict[str, Any]:
    value = torch.tensor([1.0 + rank()], requires_grad=True)
    total, mean = sum_over_ranks(value), mean_over_ranks(value)
    torch.manual_seed(rank_given)
    norm = nn.BatchNorm1d(2)
    network = nn.Sequential(nn.Linear(2, 2), norm, nn.Linear(2, 1).double(), nn.Linear(1, 1))
    assert norm.running_mean is not None
    network[0].weight.grad = torch.full((2, 2), float(rank_given))
    network[2].weight.grad = torch.full((1, 2), 10.0 * rank_given, dtype=torch.float64)
    network[3].requires_grad_(False)
    norm.running_mean.fill_(rank_given)
    reached = GradientAverage(network.parameters()).finish().item()
    average_batch_norm(network)
    return {
        "ranks": (rank(), world_size()),
        "total": total.item(),
        "mean": mean.item(),
        "kept": value.item(),
        "detached": not (total.requires_grad or mean.requires_grad),
        "gradients": [None if p.grad is None else p.grad.tolist() for p in network.parameters()],
        "reached": (reached, _disagreed(rank_given)),
        "statistics": norm.running_mean.tolist(),
    }


def test_what_ranks_tell_each_other(two_ranks: TwoRanks) -> None:
    first, second = two_ranks.run(_tell)
    assert first.pop("ranks") == (0, 2) and second.pop("ranks") == (1, 2)
    assert first.pop("kept") == 1 and second.pop("kept") == 2
    assert first == second
    assert (first["total"], first["mean"], first["detached"]) == (3, 1.5, True)
    assert first["statistics"] == [0.5, 0.5]
    weight, bias, gamma, beta, double, double_bias, *frozen = first["gradients"]
    assert weight == [[0.5, 0.5], [0.5, 0.5]] and double == [[5, 5]] and frozen == [None, None]
    assert bias is gamma is beta is double_bias is None, "what has no gradient is left to the optimiser as it is"
    assert first["reached"] == (1, -1)


def test_alone_every_function_is_the_identity() -> None:
    value = torch.tensor([2.0])
    assert (rank(), world_size()) == (0, 1)
    assert sum_over_ranks(value).item() == mean_over_ranks(value).item() == 2
    assert sum_over_ranks(value) is not value


def _disagrees_later(rank_given: int) -> list[str]:
    """What two steps say, in the second of which the last parameter has no gradient on the second rank."""
    stage = make_stage("supervised")
    state, said = make_state(stage), []

    def losses(_batches: Any, step: int, _total: int) -> Iterator[tuple[Loss, ...]]:
        reached = state.parameters(0)[: -1 if (rank_given, step) == (1, 1) else None]
        yield (Loss("ce", torch.stack([parameter.square().mean() for parameter in reached]).sum()),)

    state.method.losses = losses  # type: ignore[method-assign]
    for _ in range(2):
        try:
            train_step(state, {}, stage, seed=SEED)
            said.append("")
        except TrainingError as error:
            said.append(str(error))
    return said


def test_ranks_that_disagree_later_which_parameters_have_a_gradient_are_told(two_ranks: TwoRanks) -> None:
    """Their buckets, which the first step has taught when to begin, begin in other orders."""
    for first, second in two_ranks.run(_disagrees_later):
        assert first == "" and "step 1: workers disagree which parameters of optimiser 0" in second


def _poisoned(rank_given: int, which: int) -> str:
    stage = make_stage("supervised")
    state, batches = make_state(stage), share(make_batches(stage, size=GLOBAL), rank_given)
    if rank_given == which:
        batches = {n: replace(b, image=torch.full_like(b.image, torch.nan)) for n, b in batches.items()}
    try:
        train_step(state, batches, stage, seed=SEED)
    except TrainingError as error:
        return str(error)
    return ""


def test_what_is_not_finite_on_one_rank_stops_both(two_ranks: TwoRanks) -> None:
    for which in range(WORLD_SIZE):
        assert all("step 0" in message for message in two_ranks.run(_poisoned, which))
