"""Phases that are done stay done, under the same settings alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from udaseg.errors import ConfigError
from udaseg.jobs.journal import Journal


def test_a_journal_repeats_no_phase_and_goes_on_with_the_same_settings_alone(tmp_path: Path) -> None:
    out, calls = str(tmp_path), []

    def work(n: int) -> dict:
        calls.append(n)
        return {"n": (n,)}

    first = Journal(out, "demo", {"seed": 1, "size": (2, 3)}, resume=False)
    assert first.phase("a", work, 1) == {"n": [1]} == first.phase("a", work, 2)
    again = Journal(out, "demo", {"seed": 1, "size": (2, 3)}, resume=True)
    assert again.phase("a", work, 3) == {"n": [1]} and again.phase("b", work, 4) == {"n": [4]}
    assert calls == [1, 4] and set(again.seconds()) == {"a", "b"}
    with pytest.raises(ConfigError, match="go on with it by --resume"):
        Journal(out, "demo", {"seed": 1, "size": (2, 3)}, resume=False)
    with pytest.raises(ConfigError, match=r"other settings \(seed\)"):
        Journal(out, "demo", {"seed": 2, "size": (2, 3)}, resume=True)
