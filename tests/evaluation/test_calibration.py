"""How far confidence is what it says."""

from __future__ import annotations

import numpy as np
import pytest


def test_reliability_counts_are_those_of_a_loop_and_add_up() -> None:
    from udaseg.evaluation.calibration import calibration_error, reliability_counts

    rng = np.random.default_rng(0)
    confidence = np.concatenate([rng.random(500), [0.0, 1.0]]).astype(np.float32)
    correct = rng.random(502) < confidence
    expected = np.zeros((20, 3))
    for c, right in zip(confidence, correct, strict=True):
        expected[min(int(c * 20), 19)] += [1, right, c]
    np.testing.assert_allclose(reliability_counts(confidence, correct), expected, atol=1e-4)
    halves = reliability_counts(confidence[:200], correct[:200]) + reliability_counts(confidence[200:], correct[200:])
    np.testing.assert_allclose(halves, expected, atol=1e-4)
    loop = sum(abs(row[1] / row[0] - row[2] / row[0]) * row[0] for row in expected if row[0]) / 502
    assert calibration_error(expected) == pytest.approx(loop)
    assert calibration_error(np.zeros((20, 3))) is None
