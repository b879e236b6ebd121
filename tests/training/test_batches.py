"""What is streamed, as a method gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import CPU, make_columns

from udaseg.config import Data, Stream
from udaseg.data.confidence import encode_confidence, encode_distribution
from udaseg.training.batches import to_batches


@pytest.mark.parametrize("flip", [0.0, 1.0])
def test_soft_labels_weigh_as_much_as_they_are_certain(flip: float) -> None:
    columns = make_columns()
    sure = np.linspace(0, 1, columns["target_label"].size).reshape(columns["target_label"].shape)
    columns["target_confidence"] = encode_confidence(sure)
    data = Data(target=Stream(labels="soft"), crop=(64, 64), flip=flip)
    target = to_batches(columns, data, seed=0, device=torch.device("cpu"))["target"]
    label = columns["target_label"]
    if flip:
        sure, label = sure[..., ::-1], label[..., ::-1]
    assert target.weight is not None
    np.testing.assert_allclose(target.weight.numpy(), sure, atol=2e-4)  # a step of the code
    assert np.array_equal(target.labels.numpy(), label)


def target_of(stream: dict[str, float], rotation: float = 0.0) -> torch.Tensor:
    """The images of a target's stream with such settings."""
    data = Data(crop=(64, 64), source=None, target=Stream(labels="none", **stream), flip=0.0, rotation=rotation)  # type: ignore[arg-type]
    return to_batches(make_columns(), data, seed=0, device=CPU)["target"].image


@pytest.mark.parametrize("how", [{"blur": 1.0}, {"grey": 1.0}, {"jitter": 0.5, "jitter_probability": 1.0}])
def test_each_change_of_colours_is_made_without_the_others(how: dict[str, float]) -> None:
    assert not torch.equal(target_of({}), target_of(how))


def test_jitter_of_no_image_changes_none() -> None:
    torch.testing.assert_close(target_of({"jitter": 0.5, "jitter_probability": 0.0}), target_of({}))


def test_images_are_rotated() -> None:
    assert not torch.equal(target_of({}), target_of({}, rotation=20.0))


def test_source_and_target_are_flipped_each_for_itself() -> None:
    columns = make_columns(size=64)
    columns["target_image"] = columns["source_image"]
    data = Data(crop=(64, 64), source=Stream(labels="true"), target=Stream(labels="none"), flip=0.5)
    batches = to_batches(columns, data, seed=0, device=CPU)
    assert not torch.equal(batches["source"].image, batches["target"].image)


def test_priors_are_the_shares_that_were_stored() -> None:
    columns = make_columns()
    shares = np.random.default_rng(0).dirichlet(np.ones(3), (len(columns["index"]), 8, 8)).transpose(0, 3, 1, 2)
    columns["target_prior"] = encode_distribution(shares)
    data = Data(crop=(64, 64), target=Stream(labels="none", prior=True), flip=0.0)
    prior = to_batches(columns, data, seed=0, device=CPU)["target"].prior
    assert prior is not None
    np.testing.assert_allclose(prior.numpy(), shares, atol=2e-4)
