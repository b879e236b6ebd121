"""BCL: both contrasts, its two variants, and the bias between domains."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from toy import SEED, collect, losses_where_all_is_known, make_batches, make_stage, make_state, warm_up

from udaseg.methods.bcl import BCL, DomainBias
from udaseg.training.step import train_step
from udaseg.types import IGNORE, Batch


@pytest.mark.parametrize("name", ["bcl", "bcl_paper"])
@pytest.mark.parametrize("term", ["forward_contrast", "backward_contrast"])
def test_each_contrast_teaches_the_stems_of_both_domains(name: str, term: str) -> None:
    """Prototypes are not detached: either term moves anchors and keys."""
    stage = make_stage(name)
    state = make_state(stage)
    warm_up(state.method.student)
    collect(state, make_batches(stage))[term].value.backward()
    student = state.method.student
    for key, parameter in student.target_parameters.items():
        own, shared = parameter.grad, student.net.get_parameter(key.replace("/", ".")).grad
        assert own is not None and shared is not None
        if key.startswith("backbone/conv1") and parameter.ndim == 4:  # layer1's branch begins as zero
            assert own.abs().max() > 0 and shared.abs().max() > 0


@pytest.mark.parametrize(("term", "domain"), [("source_ce", "source"), ("target_entropy", "target")])
def test_a_term_of_one_domain_leaves_the_other_s_stem_alone(term: str, domain: str) -> None:
    stage = make_stage("bcl")
    state = make_state(stage)
    collect(state, make_batches(stage))[term].value.backward()
    student = state.method.student
    own = [p.grad is not None for p in student.target_parameters.values()]
    shared = [student.net.get_parameter(k.replace("/", ".")).grad is not None for k in student.target_parameters]
    assert (all(own), any(own)) == ((domain == "target"),) * 2
    assert (all(shared), any(shared)) == ((domain == "source"),) * 2


def _sparse(batches: dict[str, Batch]) -> dict[str, Batch]:
    label = batches["target"].label
    assert label is not None
    label = label.clone()
    label[:, :, 24:] = IGNORE
    return batches | {"target": replace(batches["target"], label=label)}


def _values(config: BCL.Config, batches: dict[str, Batch]) -> dict[str, float]:
    stage = replace(make_stage("bcl"), method=config)
    return {name: float(loss.value.detach()) for name, loss in collect(make_state(stage), batches).items()}


def test_paper_differs_from_released_where_transfers_are_confident() -> None:
    stage = make_stage("bcl")
    batches = _sparse(make_batches(stage))
    released = _values(BCL.Config(), batches)
    paper = _values(BCL.Config(variant="paper", transfer_threshold=0.3), batches)
    assert paper["coverage"] > released["coverage"] > 0
    for name in ("forward_contrast", "backward_contrast"):
        assert paper[name] != released[name]
    for name in ("source_ce", "target_ce", "source_entropy", "target_entropy"):
        assert paper[name] == released[name], "static labels are what the cross-entropy reads"
    hybrid = _values(BCL.Config(variant="paper", transfer_threshold=0.3, target_ce="hybrid"), batches)
    assert hybrid["target_ce"] != paper["target_ce"]


def test_paper_is_released_where_no_transfer_is_confident() -> None:
    batches = _sparse(make_batches(make_stage("bcl")))
    assert _values(BCL.Config(variant="paper", transfer_threshold=1.0), batches) == _values(BCL.Config(), batches)


def test_calibration_learns_with_the_paper_s_variant_alone() -> None:
    for name, learns in [("bcl", False), ("bcl_paper", True)]:
        stage = make_stage(name)
        state = make_state(stage)
        train_step(state, make_batches(stage), stage, seed=SEED)
        assert bool(state.method.domain_bias.bias.any()) == learns


def test_calibration_learns_only_classes_that_both_domains_hold() -> None:
    stage = replace(make_stage("bcl"), method=BCL.Config(variant="paper", transfer_threshold=1.0))
    batches = make_batches(stage)
    labels = {domain: torch.full_like(batch.label, 0) for domain, batch in batches.items() if batch.label is not None}
    labels["source"][:, 32:], labels["target"][:, 32:] = 1, 2
    state = make_state(stage)
    collect(state, {domain: replace(batch, label=labels[domain]) for domain, batch in batches.items()})
    assert state.method.domain_bias.bias.any(1).tolist() == [True, False, False, False]


def test_bcl_weighs_its_terms_as_configured() -> None:
    stage = make_stage("bcl")
    weights = {name: loss.weight for name, loss in collect(make_state(stage), make_batches(stage)).items()}
    assert weights == {
        "source_ce": 1.0,
        "target_ce": 0.3,
        "source_entropy": 0.4,
        "target_entropy": pytest.approx(0.12),
        "forward_contrast": 0.2,
        "backward_contrast": 0.2,
        "coverage": 0,
    }


def test_soft_labels_of_a_mixed_image_leave_what_is_pasted_at_full_weight() -> None:
    weights = {"plain": None, "sure": torch.ones(2, 64, 64), "unsure": torch.zeros(2, 64, 64)}
    ce = {name: losses_where_all_is_known("bcl_mix", w)["target_ce"].value.item() for name, w in weights.items()}
    assert ce["sure"] == ce["plain"] and 0 < ce["unsure"] < ce["plain"]


def _prototypes(seed: int, batch: int = 3, classes: int = 4, channels: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    rng = np.random.default_rng(seed)
    source, target = (torch.from_numpy(rng.standard_normal((batch, classes, channels))).float() for _ in range(2))
    shared = torch.from_numpy(rng.random((batch, classes)) < 0.5)
    shared[:, 0] = False
    return source, target, shared


def test_domain_bias_is_the_loop_over_pairs_and_classes() -> None:
    bank, expected = DomainBias(4, 5, momentum=0.7), np.zeros((4, 5))
    for seed in range(4):
        source, target, shared = _prototypes(seed)
        for c in range(4):
            differences = [(target[b, c] - source[b, c]).numpy() for b in range(3) if shared[b, c]]
            if differences:
                expected[c] = 0.7 * expected[c] + 0.3 * np.mean(differences, axis=0)
        bank.update(source, target, shared)
    np.testing.assert_allclose(bank.bias.numpy(), expected, rtol=1e-5, atol=1e-6)
    assert not bank.bias[0].any(), "a class that is never shared has no bias"


def test_calibration_moves_prototypes_and_is_detached() -> None:
    bank = DomainBias(4, 5, momentum=0.0)
    source, target, _ = _prototypes(0)
    everything = torch.ones(1, 4, dtype=torch.bool)
    bank.update(source[:1], target[:1], everything)
    moved = bank.calibrated(source[:1].requires_grad_())
    torch.testing.assert_close(moved, target[:1])
    assert not moved.requires_grad


def test_domain_bias_lies_in_the_state() -> None:
    assert list(DomainBias(2, 3, momentum=0.9).state_dict()) == ["bias"]
