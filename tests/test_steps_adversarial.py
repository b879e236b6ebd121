"""Whole steps of ADVENT and CLAN: what the authors' own code returned on given logits, with given discriminators."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from authors import assert_like, fill, norm
from steps import CASES, GOLDEN, PLANES, near, norm_of, number_after, shape_in, waves_in
from torch import Tensor, nn

from udaseg.losses.adversarial import self_information
from udaseg.methods import clan as clan_module
from udaseg.methods.advent import ADVENT
from udaseg.methods.clan import CLAN
from udaseg.models.discriminator import Discriminator
from udaseg.models.heads import ASPPHead, HeadPair
from udaseg.types import IGNORE, Batch, Loss, SegOutput

CLASSES = 19


class Given(nn.Module):
    """A student that answers with given outputs, one after the other."""

    num_classes, feature_channels, align_corners, embedding_channels = CLASSES, (8, 8), True, 2 * CLASSES

    def __init__(self, *outputs: SegOutput, head: nn.Module | None = None) -> None:
        super().__init__()
        self.left = list(outputs)
        self.net = nn.Module()
        self.net.head, self.net.projection = head, None

    def forward(self, *_: object) -> SegOutput:
        return self.left.pop(0)

    def upsampled(self, coarse: Tensor, image: Tensor) -> Tensor:
        return coarse


class Passed(nn.Module):
    """An auxiliary head whose logits are given as the level that it reads."""

    def forward(self, features: tuple[Tensor, ...]) -> tuple[Tensor, Tensor]:
        return features[-1], features[-1]


def given_batches(inputs: str, shape: tuple[int, ...]) -> dict[str, Batch]:
    """The label of the source, "y=Y(shape,K),y[,:rows]=255", and images that nothing reads."""
    classes, rows = re.findall(r"y=Y\(\([^)]*\),(\d+)\),y\[:?,:(\d+)\]=255", inputs)[0]
    label = PLANES.ids((shape[0], *shape[2:]), int(classes))
    label[:, : int(rows)] = IGNORE
    image, index = torch.zeros(shape[0], 3, *shape[2:]), torch.arange(shape[0])
    source = Batch(image=image, index=index, label=label, stream="source")
    return {"source": source, "target": Batch(image=image, index=index, stream="target")}


def fill_discriminator(network: Discriminator, name: Callable[[str], str]) -> None:
    salt = re.findall(r"salt (\d+)", GOLDEN["discriminator_weights"])[0]
    fill(network, name, int(salt))


def run(method: Any, batches: dict[str, Batch], step: int, total_steps: int) -> dict[str, Loss]:
    """All terms of a step by name; the gradient of each graph is taken as the loop does."""
    found = {}
    for losses in method.losses(batches, step, total_steps):
        torch.stack([loss.weight * loss.value for loss in losses]).sum().backward()
        found |= {loss.name: loss for loss in losses}
    return found


def weighted(loss: Loss) -> float:
    return loss.weight * loss.value.item()


def test_a_step_of_advent() -> None:
    case = CASES["ADVENT/step"]
    shape = shape_in(case["inputs"], "logits")
    planes = waves_in(case["inputs"], shape)
    outputs = [
        SegOutput(
            logits=planes[f"{d}_main"], embedding=planes[f"{d}_main"], features=(planes[f"{d}_aux"], torch.empty(0))
        )
        for d in ("src", "trg")
    ]
    method = ADVENT(ADVENT.Config(), Given(*outputs))  # type: ignore[arg-type]
    method.auxiliary = Passed()  # type: ignore[assignment]
    verdicts: list[Tensor] = []
    for level, theirs in (("main", "main"), ("auxiliary", "aux")):
        fill_discriminator(method.discriminators[level], lambda key, prefix=theirs: f"{prefix}.{key}")  # type: ignore
    method.discriminators["main"].register_forward_hook(lambda _, __, out: verdicts.append(out))
    found = run(method, given_batches(case["inputs"], shape), 0, 1)

    assert weighted(found["source_ce"]) + weighted(found["auxiliary_ce"]) == near(case["seg"])
    for level, theirs in (("main", "main"), ("auxiliary", "aux")):
        assert found[f"{level}_adversarial"].value.item() == near(case[f"adv_{theirs}"])
        for domain in ("source", "target"):
            assert weighted(found[f"{level}_discriminator_{domain}"]) == near(case[f"d_{theirs}_{domain}/2"])
        gradient = norm(method.discriminators[level].parameters())
        assert gradient == near(case["grad_l2"][f"d_{theirs}"])
    for name, plane in planes.items():
        assert norm_of(plane) == near(case["grad_l2"][name]), name
    assert_like(verdicts[0], case["d_main_out"])  # on the target, for the network


def test_the_entropy_of_minent() -> None:
    case = CASES["MinEnt/entropy"]
    found = re.search(r"softmax\((3T\(\(([\d,]+)\),.*\))\)", case["inputs"])
    assert found is not None
    logits = waves_in(f"logits={found[1]}", ())["logits"]
    out = SegOutput(logits=logits, embedding=logits, features=(logits.detach(), torch.empty(0)))
    source = replace(out, logits=logits.detach())
    method = ADVENT(ADVENT.Config(variant="minent"), Given(source, out))  # type: ignore[arg-type]
    method.auxiliary = Passed()  # type: ignore[assignment]
    size = (1, *logits.shape[2:])
    batch = Batch(image=torch.zeros(1, 3, *size[1:]), index=torch.arange(1), label=torch.zeros(size, dtype=torch.int64))
    entropies = list(method.losses({"source": batch, "target": batch}, 0, 1))[1]
    assert [loss.name for loss in entropies] == ["main_entropy", "auxiliary_entropy"]
    assert [loss.value.item() for loss in entropies] == near([case["value"]] * 2)
    entropies[0].value.backward()
    assert norm_of(logits) == near(case["grad_l2"]["logits"])


def clan(case: dict[str, Any], **settings: Any) -> tuple[CLAN, dict[str, Tensor], dict[str, Loss]]:
    """CLAN's step on what a case states, with other settings."""
    inputs = case["inputs"]
    shape = shape_in(inputs, "logits")
    planes = waves_in(inputs, shape)
    pair = HeadPair(ASPPHead([1], CLASSES), ASPPHead([1], CLASSES), CLASSES)
    outputs = [
        SegOutput(logits=planes[f"{d}1"] + planes[f"{d}2"], embedding=torch.cat([planes[f"{d}1"], planes[f"{d}2"]], 1))
        for d in ("s", "t")
    ]
    config = CLAN.Config(epsilon=number_after(inputs, "alpha"), local_weight=number_after(inputs, "beta"))
    step, total, preheat = map(int, re.findall(r"iteration (\d+) of (\d+).*preheat (\d+)", inputs)[0])
    config = replace(config, **({"preheat_steps": preheat} | settings))
    method = CLAN(config, Given(*outputs, head=pair))  # type: ignore[arg-type]
    pair.weights = lambda: (planes["w5"], planes["w6"])  # type: ignore[method-assign]
    parts = ["conv1", "conv2", "conv3", "conv4", "classifier"]
    fill_discriminator(method.discriminator, lambda key: f"clan.{parts[int(key[0]) // 2]}.{key[2:]}")
    return method, planes, run(method, given_batches(inputs, shape), step, total)


def test_a_step_of_clan(monkeypatch: pytest.MonkeyPatch) -> None:
    case = CASES["CLAN/step"]
    maps: list[Tensor] = []
    disagreement = clan_module.disagreement

    def watched(*logits: Tensor) -> Tensor:
        maps.append(disagreement(*logits))
        return maps[-1]

    monkeypatch.setattr(clan_module, "disagreement", watched)
    method, planes, found = clan(case)
    assert weighted(found["first_ce"]) + weighted(found["second_ce"]) == near(case["seg"])
    assert weighted(found["adversarial"]) == near(case["adv"])
    assert weighted(found["weight_discrepancy"]) == near(case["weight_discrepancy"])
    assert weighted(found["discriminator_source"]) == near(case["d_source"])
    assert weighted(found["discriminator_target"]) == near(case["d_target"])
    assert_like(maps[0], case["weight_map"])
    for name, expected in case["grad_l2"].items():
        gradient = norm(method.discriminator.parameters()) if name == "D" else norm_of(planes[name])
        assert gradient == near(expected), name


def test_before_its_preheat_ends_clan_weighs_all_pixels_alike() -> None:
    case = CASES["CLAN/step"]
    step = int(re.findall(r"iteration (\d+)", case["inputs"])[0])
    _, _, found = clan(case, preheat_steps=step)
    assert weighted(found["adversarial"]) == near(case["adv_before_preheat"])


def test_with_the_paper_s_weights_the_network_learns_by_other_gradients() -> None:
    """The loss is that of the authors' code; the heads no longer learn to agree for its sake."""
    case = CASES["CLAN/step"]
    _, planes, found = clan(case, disagreement="paper")
    assert weighted(found["adversarial"]) == near(case["adv"])
    assert norm_of(planes["t1"]) != pytest.approx(case["grad_l2"]["t1"], rel=1e-3)


def test_self_information_sums_to_the_entropy() -> None:
    logits = 3 * PLANES.waves((1, CLASSES, 4, 6), 0.61)
    probability = logits.softmax(1)
    entropy = torch.distributions.Categorical(probs=probability.movedim(1, -1)).entropy()
    torch.testing.assert_close(self_information(logits).sum(1), entropy / torch.tensor(CLASSES).log())
