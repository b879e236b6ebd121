"""I2I+CR: every term and its gradient against plain loops, and who learns from what."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from toy import collect_frozen, make_batches, make_stage, make_state

from udaseg.components.mixing import region_mask
from udaseg.errors import ConfigError
from udaseg.methods.i2i_cr import I2ICR
from udaseg.recipes import RECIPES
from udaseg.types import IGNORE, Batch

STAGE, MIXING = make_stage("i2i_cr_translation"), make_stage("i2i_cr")
OTHER = {"source": "target", "target": "source"}


def translating() -> I2ICR:
    """A method whose generators have left their beginning; norms are frozen and nothing is dropped."""
    method = make_state(STAGE).method.eval()
    torch.manual_seed(0)
    for generator in method.generators.values():
        nn.init.normal_(generator.last.weight, std=0.1)
    return method


def cross_entropy(logits: Tensor, label: Tensor) -> Tensor:
    """Mean over labelled pixels of -log of the probability of their class, class by class."""
    probability = logits.exp() / logits.exp().sum(1, keepdim=True)
    total = sum(-(probability[:, k].log() * (label == k)).sum() for k in range(logits.shape[1]))
    return total / (label != IGNORE).sum()


def test_each_term_of_the_translation_is_the_equation_with_its_gradient() -> None:
    method, batches = translating(), make_batches(STAGE)
    g, d, teacher = method.generators, method.discriminators, method.teacher.network
    found = {loss.name: loss for losses in method.losses(batches, 0, 10) for loss in losses}
    assert len(found) == 10
    weights = {name.partition("_")[2]: loss.weight for name, loss in found.items()}
    assert weights == {"ce": 1, "adversarial": 1, "semantic": 1, "cycle": 10, "discriminator": 0.5}
    for domain, look in OTHER.items():
        label_of_look, own = float(look == "target"), float(domain == "target")
        batch: Batch = batches[domain]
        image = g[look](batch.image)
        verdict = d[look](image)
        expected = {
            "ce": cross_entropy(method.student(batch.image, domain, batch.index).logits, batch.labels),
            "adversarial": ((verdict - label_of_look) ** 2).mean(),
            "semantic": cross_entropy(teacher(image, look).logits, batch.labels),
            "cycle": (g[domain](image) - batch.image).abs().sum() / image.numel(),
        }
        made = g[domain](batches[look].image).detach()  # an image of the other domain in this one's look
        told, foreign = d[domain](batch.image), d[domain](made)
        expected["discriminator"] = ((told - own) ** 2).mean() + ((foreign - (1 - own)) ** 2).mean()
        learners: dict[str, nn.Module] = {"ce": method.student, "discriminator": d[domain]}
        for kind, value in expected.items():
            loss = found[f"{domain}_{kind}"].value
            torch.testing.assert_close(loss, value, rtol=1e-4, atol=1e-6)
            parameters = list(learners.get(kind, g[look]).parameters())
            mine, theirs = (
                torch.autograd.grad(x, parameters, retain_graph=True, allow_unused=True) for x in (loss, value)
            )
            for a, b in zip(mine, theirs, strict=True):
                assert (a is None) == (b is None)
                if a is not None and b is not None:
                    torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-6)


def test_networks_generators_and_discriminators_learn_from_terms_of_their_own() -> None:
    method = translating()
    parts = {"student": method.student, "generators": method.generators, "discriminators": method.discriminators}
    for losses in method.losses(make_batches(STAGE), 0, 10):
        method.zero_grad(set_to_none=True)
        torch.stack([loss.value for loss in losses]).sum().backward()
        kind = losses[0].name.partition("_")[2]
        expected = {"ce": "student", "adversarial": "generators", "discriminator": "discriminators"}[kind]
        learnt = {n for n, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())}
        assert learnt == {expected}
        assert all(p.grad is None for p in method.teacher.parameters())


def test_the_generator_of_a_state_is_the_one_that_gives_the_target_s_look() -> None:
    method, image = translating(), make_batches(STAGE)["source"].image
    read = STAGE.method.translator(method.state_dict())
    assert torch.equal(read(image), method.generators["target"](image))
    assert not torch.equal(read(image), method.generators["source"](image))
    for state in ({}, make_state(make_stage("dacs")).method.state_dict()):
        with pytest.raises(RuntimeError, match="Missing"):
            STAGE.method.translator(state)


def test_consistency_learns_the_teacher_s_classes_of_both_images_of_a_mixture() -> None:
    """Without colours drawn, so that the mixture can be made by hand."""
    stage = replace(MIXING, method=replace(MIXING.method, jitter=0.0, blur_probability=0.0))
    state, batches = make_state(stage), make_batches(stage)
    method, target = state.method, batches["target"]
    found = collect_frozen(state, batches)
    confidence, label = method.teacher.network(target.image, "target").logits.softmax(1).max(1)
    region = region_mask(target.image, target.index, stride=1, seed=method.seed)
    image, mixed = target.image.clone(), label.clone()
    for b, i, j in region.nonzero().tolist():
        image[b, :, i, j], mixed[b, i, j] = target.image[1 - b, :, i, j], label[1 - b, i, j]
    assert 0 < region.float().mean() < 1 and not torch.equal(mixed, label), "or nothing is tested"
    quality = (confidence >= 0.3).float().mean()
    expected = quality * cross_entropy(method.student(image, "target", target.index).logits, mixed)
    torch.testing.assert_close(found["mixed_ce"].value, expected, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found["coverage"].value, quality)
    parameters = list(method.student.parameters())
    mine, theirs = (torch.autograd.grad(x, parameters) for x in (found["mixed_ce"].value, expected))
    for a, b in zip(mine, theirs, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    source = batches["source"]
    on_source = cross_entropy(method.student(source.image, "source", source.index).logits, source.labels)
    torch.testing.assert_close(found["source_ce"].value, on_source)


def test_consistency_needs_an_image_to_mix_with() -> None:
    with pytest.raises(ValueError, match=r"group_size is 1.*2 target images"):
        I2ICR.Config(phase="consistency").build(make_state(MIXING).method.student, seed=0)


def test_a_stage_is_translated_by_an_earlier_one_that_learns_to() -> None:
    recipe = RECIPES["i2i_cr_small"]()
    recipe.check()
    for name in ("source", "consistency", "elsewhere"):
        wrong = replace(recipe.stages[2], translated_by=name)
        with pytest.raises(ConfigError, match=rf"stages\.2\.translated_by is '{name}'.*there is translation"):
            replace(recipe, stages=(*recipe.stages[:2], wrong)).check()
