"""What a log says of a run's pace."""

from __future__ import annotations

import pytest

from udaseg.training import speed as module
from udaseg.training.speed import Speed


def test_each_report_is_of_the_time_since_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    """By a clock that is set."""
    now = 0.0
    monkeypatch.setattr(module.time, "monotonic", lambda: now)
    speed = Speed(0, images=4)
    with speed.timing("wait"):
        now += 3
    now += 1
    assert speed.take(1)["data_wait"] == 3 / 4
    with speed.timing("host"):
        now += 1
    now += 1
    later = speed.take(3)
    assert later["data_wait"] == 0 and later["host_seconds"] == 1 / 2
    assert later["step_seconds"] == 1 and later["images_per_second"] == 4
