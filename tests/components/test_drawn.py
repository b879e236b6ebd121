"""What the host knows, on the device."""

from __future__ import annotations

import pytest
import torch

from udaseg.components.drawn import among
from udaseg.types import IGNORE


@pytest.mark.parametrize("classes", [(), (2,), tuple(range(3, 60))])
def test_labels_among_some_classes(classes: tuple[int, ...]) -> None:
    label = torch.tensor([[0, 2, 3], [59, 60, IGNORE]])
    expected = [[value in classes for value in row] for row in label.tolist()]
    assert among(label, classes).tolist() == among(label.byte(), classes).tolist() == expected
