"""What is streamed, as a method gets it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toy import make_columns

from udaseg.config import Data, Stream
from udaseg.data.confidence import encode_confidence
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
