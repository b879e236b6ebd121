"""What a log says of a run's pace."""

from __future__ import annotations

import time

import pytest

from udaseg.training.speed import Speed


def test_each_report_is_of_the_time_since_the_one_before() -> None:
    speed = Speed(0, images=4)
    with speed.timing("wait"):
        time.sleep(0.05)
    assert speed.take(1)["data_wait"] > 0.5
    with speed.timing("host"):
        time.sleep(0.05)
    later = speed.take(3)
    assert later["data_wait"] == 0 and later["host_seconds"] >= 0.025
    assert later["images_per_second"] == pytest.approx(4 / later["step_seconds"])
