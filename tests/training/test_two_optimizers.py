"""A method with a discriminator: two optimisers, each with its own rate, schedule, clip norm and state."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from equal_ranks import assert_ranks_equal_one, train_stage
from torch import Tensor, nn
from torch.func import functional_call
from torch.optim import Optimizer
from toy import CLASSES, SEED, changed, flat, make_batches, make_stage, make_state, snapshot
from two_ranks import TwoRanks

from udaseg.config import Optim, Stage
from udaseg.distributed import mean_over_ranks
from udaseg.errors import TrainingError
from udaseg.losses.segmentation import output_cross_entropy
from udaseg.methods.base import Method, build_optimizer
from udaseg.models.segmenter import Segmenter
from udaseg.training.step import RunState, train_step
from udaseg.types import Batch, Loss


class Adversarial(Method):
    """Predictions on the target are to look like those on the source to a discriminator, which learns to tell them."""

    mean_verdict: Tensor

    @dataclass(frozen=True, kw_only=True)
    class Config:
        judged: bool = True
        """Whether the discriminator has a loss of its own."""

        def build(self, student: Segmenter, *, seed: int) -> Adversarial:
            return Adversarial(self, student)

    def __init__(self, config: Config, student: Segmenter) -> None:
        super().__init__()
        self.config, self.student = config, student
        self.discriminator = nn.Sequential(nn.Conv2d(CLASSES, 8, 4, 2, 1), nn.LeakyReLU(0.2), nn.Conv2d(8, 1, 4, 2, 1))
        self.register_buffer("mean_verdict", torch.zeros(()))

    def losses(self, batches: Mapping[str, Batch], step: int, total_steps: int) -> Iterator[tuple[Loss, ...]]:
        source, target = batches["source"], batches["target"]
        out = {d: self.student(batch.image, d, batch.index) for d, batch in (("source", source), ("target", target))}
        seen = {domain: o.logits.softmax(1) for domain, o in out.items()}
        weights = {name: parameter.detach() for name, parameter in self.discriminator.named_parameters()}
        verdict = functional_call(self.discriminator, weights, (seen["target"],))
        yield (
            Loss("source_ce", output_cross_entropy(out["source"], source.labels)),
            Loss("adversarial", F.softplus(-verdict).mean(), 0.1),
        )
        verdicts = {domain: self.discriminator(p.detach()) for domain, p in seen.items()}
        self.mean_verdict.lerp_(mean_over_ranks(verdicts["target"].mean()).to(self.mean_verdict), 0.5)
        if self.config.judged:
            value = F.softplus(-verdicts["source"]).mean() + F.softplus(verdicts["target"]).mean()
            yield (Loss("discriminator", value),)

    def optimizers(self, optim: Optim) -> list[Optimizer]:
        return [
            build_optimizer(self.student, optim),
            torch.optim.Adam(self.discriminator.parameters(), lr=1e-3, betas=(0.9, 0.99)),
        ]

    def schedule(self, number: int, optim: Optim) -> Optim:
        return optim if number == 0 else replace(optim, power=2.0, warmup_steps=4, clip=1e-3)


def adversarial(judged: bool = True, **optim: object) -> Stage:
    return replace(make_stage("supervised", **optim), method=Adversarial.Config(judged=judged))


def rates(state: RunState, number: int) -> list[float]:
    return [group["lr"] for group in state.optimizers[number].param_groups]


def test_each_optimiser_has_its_own_schedule() -> None:
    stage = adversarial(power=1.0, warmup_steps=0)
    state = make_state(stage)
    for step in range(6):
        train_step(state, make_batches(stage, step), stage, seed=SEED)
        assert rates(state, 0) == pytest.approx([5e-3 * (1 - step / stage.steps), 1e-2 * (1 - step / stage.steps)])
        own = replace(stage.optim, power=2.0, warmup_steps=4).lr_factor(step, stage.steps)
        assert rates(state, 1) == [1e-3 * own]
        assert own != stage.optim.lr_factor(step, stage.steps)


def test_each_optimiser_has_its_own_clip_norm() -> None:
    """The second one's gradients are cut to its norm, the first one's stay as they are, and theirs is what is told."""
    stage = adversarial(clip=0.0)
    state = make_state(stage)
    norm = train_step(state, make_batches(stage), stage, seed=SEED)["grad_norm"]

    def length(module: nn.Module) -> float:
        return math.sqrt(sum(float(p.grad.square().sum()) for p in module.parameters() if p.grad is not None))

    assert length(state.method.student) == pytest.approx(norm, rel=1e-4) and norm > 1e-2
    assert length(state.method.discriminator) == pytest.approx(1e-3, rel=1e-3)


def test_the_student_s_loss_leaves_the_discriminator_alone_and_the_other_way_round() -> None:
    stage = adversarial()
    state, batches = make_state(stage), make_batches(stage)
    student, discriminator = state.method.student, state.method.discriminator
    first, second = state.method.train().losses(batches, 0, 10)
    first[1].value.backward(retain_graph=True)
    assert all(p.grad is None for p in discriminator.parameters())
    assert any(p.grad is not None and p.grad.any() for p in student.parameters())
    student.zero_grad(set_to_none=True)
    second[0].value.backward()
    assert all(p.grad is not None for p in discriminator.parameters())
    assert all(p.grad is None for p in student.parameters())


def test_a_discriminator_on_two_ranks_equals_one(two_ranks: TwoRanks) -> None:
    stage = adversarial()
    ranks = two_ranks.run(train_stage, stage)
    one = train_stage(None, stage)
    start = flat(make_state(stage).method.state_dict())
    assert all(np.any(start[name] != value) for name, value in one[0].items() if "discriminator" in name)
    assert_ranks_equal_one(ranks, one)


def test_both_optimisers_resume_exactly(tmp_path: Path) -> None:
    stage = adversarial(name="adamw", lr=1e-3)
    whole, resumed = make_state(stage), make_state(stage, seed=99)
    for step in range(2):
        train_step(whole, make_batches(stage, step), stage, seed=SEED)
    whole.save(tmp_path / "state.pt")
    resumed.load(tmp_path / "state.pt")
    assert resumed.method.mean_verdict == whole.method.mean_verdict != 0
    for step in range(2, 5):
        logs = [train_step(state, make_batches(stage, step), stage, seed=SEED) for state in (whole, resumed)]
        assert logs[0] == logs[1]
        assert [rates(whole, n) for n in (0, 1)] == [rates(resumed, n) for n in (0, 1)]
    assert not changed(snapshot(whole.method), resumed.method)
    mine, theirs = (_moments(state.optimizers[1]) for state in (whole, resumed))
    assert mine and all(torch.equal(mine[key], theirs[key]) for key in mine)


def _moments(optimizer: Optimizer) -> dict[tuple[int, str], Tensor]:
    state: dict[int, dict[str, Any]] = optimizer.state_dict()["state"]
    return {(n, name): torch.as_tensor(value) for n, values in state.items() for name, value in values.items()}


def test_an_optimiser_without_any_gradient_names_its_parameters() -> None:
    stage = adversarial(judged=False)
    state, before = make_state(stage), snapshot(make_state(stage).method.student)
    with pytest.raises(TrainingError, match=r"optimiser 1.*discriminator\.0\.weight, discriminator\.0\.bias"):
        train_step(state, make_batches(stage), stage, seed=SEED)
    assert state.step == 0
    assert not {n for n in changed(before, state.method.student) if "running" not in n and "num_batches" not in n}


def test_an_optimiser_with_frozen_parameters_names_them() -> None:
    stage = adversarial()
    state = make_state(stage)
    state.method.discriminator[2].requires_grad_(False)
    with pytest.raises(TrainingError, match=r"optimiser 1.*frozen.*discriminator\.2\.weight, discriminator\.2\.bias"):
        train_step(state, make_batches(stage), stage, seed=SEED)


def _without_gradient(rank: int) -> str:
    stage = adversarial(judged=False)
    try:
        train_step(make_state(stage), make_batches(stage), stage, seed=SEED)
    except TrainingError as error:
        return str(error)
    return ""


def test_an_optimiser_without_any_gradient_ends_both_ranks(two_ranks: TwoRanks) -> None:
    assert all("discriminator.0.weight" in message for message in two_ranks.run(_without_gradient))
