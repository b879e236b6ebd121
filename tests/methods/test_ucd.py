"""UCD: what it asks for as the new classes come, and which cells it contrasts."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from networks import small_network
from toy import CPU, SEED, collect_frozen, make_batches, make_stage

from udaseg.methods.ucd import UCD
from udaseg.training.step import RunState, build_state, train_step

OLD, ALL = 2, 4


def begun(**settings: object) -> RunState:
    """UCD's stage on a network of the old classes alone."""
    stage = make_stage("ucd")
    stage = replace(stage, method=replace(stage.method, **settings))
    old = small_network(classes=OLD, seed=3)
    return build_state(stage, ALL, seed=SEED, init=old.state_dict(), device=CPU, bf16=False)


def test_a_network_that_has_just_grown_has_nothing_to_be_distilled() -> None:
    """Its distillation is the least possible: the entropy of the old classes over their number, without gradient."""
    state, batches = begun(), make_batches(make_stage("ucd"))
    loss = collect_frozen(state, batches)["distillation"]
    with torch.no_grad():
        before = small_network(classes=OLD, seed=3).eval()
        probability = before(batches["source"].image, "source").logits.softmax(1)
    entropy = -(probability * probability.log()).sum(1).mean()
    assert loss.value.item() == pytest.approx(entropy.item() / OLD, rel=1e-4)
    gradients = torch.autograd.grad(loss.value, [*state.method.student.net.head.parameters()])
    assert max(float(g.abs().max()) for g in gradients) < 1e-5


def test_cross_entropy_asks_for_new_classes_where_they_are_labelled_and_for_any_old_one_elsewhere() -> None:
    state, batches = begun(), make_batches(make_stage("ucd"))
    label = batches["source"].labels
    with torch.no_grad():
        probability = state.method.student.eval()(batches["source"].image, "source").logits.softmax(1)
    total = 0.0
    for y in range(ALL):
        here = probability[:, :OLD].sum(1) if y < OLD else probability[:, y]
        total -= float(here.log()[label == y].sum())
    assert collect_frozen(state, batches)["ce"].value.item() == pytest.approx(total / label.numel(), rel=1e-4)


def test_which_cells_are_contrasted_with_which() -> None:
    state, whole = begun(group_size=1, temperature=0.5), make_batches(make_stage("ucd"))["source"]
    source = replace(whole, image=whole.image[..., :32, :32], label=whole.labels[..., :32, :32])
    method = state.method.eval().requires_grad_(False)
    out, old = method.student(source.image, "source"), method.old(source.image, "source")
    joint = method._before(old.aux["coarse_logits"]).softmax(1)
    small = F.interpolate(source.labels[:, None].float(), size=out.embedding.shape[2:])[:, 0].long()
    values = []
    for b in range(2):
        cells = [(i, j) for i in range(small.shape[1]) for j in range(small.shape[2])]
        new = {c: int(small[b][c]) in (2, 3) for c in cells}
        cls = {c: int(small[b][c]) if new[c] else int(joint[b, :, c[0], c[1]].argmax()) for c in cells}
        kept = [c for c in cells if cls[c] != 0]  # 0 is the background
        mine, theirs = ({c: F.normalize(f.embedding[b, :, c[0], c[1]], dim=0) for c in kept} for f in (out, old))
        keys = [(c, mine[c]) for c in kept] + [(c, theirs[c]) for c in kept if not new[c]]
        for c in kept:
            s = torch.stack([mine[c] @ key for _, key in keys]) / 0.5
            negative = sum(s[k].exp() for k, (d, _) in enumerate(keys) if cls[d] != cls[c])
            positives = [k for k, (d, key) in enumerate(keys) if cls[d] == cls[c] and key is not mine[c]]
            terms = [
                (1.0 if new[c] else float(joint[b, :, c[0], c[1]] @ joint[b, :, keys[k][0][0], keys[k][0][1]]))
                * (s[k] - (s[k].exp() + negative).log())
                for k in positives
            ]
            if positives:
                values.append(float(-sum(terms) / len(positives)))
    expected = sum(values) / len(values)
    assert len(values) > 20
    assert collect_frozen(state, {"source": source})["contrast"].value.item() == pytest.approx(expected, rel=1e-4)


def test_the_copy_neither_learns_nor_gathers_statistics() -> None:
    state, stage = begun(), make_stage("ucd")
    before = {name: tensor.clone() for name, tensor in state.method.old.state_dict().items()}
    for step in range(2):
        train_step(state, make_batches(stage, step), stage, seed=SEED)
    assert all(torch.equal(tensor, before[name]) for name, tensor in state.method.old.state_dict().items())
    assert any(not torch.equal(p, before[f"network.{n}"]) for n, p in state.method.student.named_parameters())


@pytest.mark.parametrize(("settings", "name"), [({"old_classes": 4}, "old_classes"), ({"background": 2}, "background")])
def test_numbers_of_classes_that_cannot_be_are_refused(settings: dict[str, int], name: str) -> None:
    config = UCD.Config(**{"old_classes": OLD} | settings)
    with pytest.raises(ValueError, match=rf"method\.{name}"):
        config.build(small_network(classes=ALL), seed=0)
