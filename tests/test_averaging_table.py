"""The calculation of what averaging gradients costs, against rounds counted one by one, and the page that shows it."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.averaging import LAST_BACKWARD, Averaging, table

PAGE = Path(__file__).parents[1] / "docs" / "averaging.md"


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_a_ring_takes_its_rounds(workers: int) -> None:
    made = Averaging(parameters=1200, bits=1e6, round_seconds=0.01, bytes_each=2)
    holds = [{rank} for rank in range(workers)]  # whose gradients the part has that a worker is about to pass on
    seconds, part = 0.0, 1200 * 2 * 8 / workers
    while workers > 1 and not all(len(h) == workers for h in holds):
        holds = [holds[rank - 1] | {rank} for rank in range(workers)]
        seconds += part / 1e6 + 0.01
    assert made.seconds(workers) == pytest.approx(2 * seconds)  # to add them up, and to tell all


def test_a_step_waits_for_what_its_last_backward_pass_does_not_hide() -> None:
    made = Averaging(parameters=1e6, bits=32e6, round_seconds=0.0)  # a second to send all
    assert made.efficiency(1, 0.5) == 1
    assert made.efficiency(2, 1.0) == pytest.approx(1 / (1 + 1 - LAST_BACKWARD))
    assert made.efficiency(2, 4.0) == 1
    most = made.most_workers(4.0)
    assert made.efficiency(most, 4.0) >= 0.9 > made.efficiency(most + 1, 4.0) and most > 2
    assert made.most_workers(0.1) == 1


def test_the_page_shows_what_is_printed() -> None:
    page = PAGE.read_text()
    assert all(line in page for bytes_each in (4, 2) for line in table(bytes_each))
