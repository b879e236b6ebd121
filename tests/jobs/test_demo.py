"""The whole demo at a tiny size, on a real Ray."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest

from pipelines.demo import main
from udaseg.config import Recipe
from udaseg.errors import ConfigError, TrainingError
from udaseg.jobs import demo as job
from udaseg.jobs.demo import demo
from udaseg.recipes import RECIPES

TINY = {
    "steps": 4,
    "checkpoint_every": 2,
    "log_every": 1,
    "data.short_side": 64,
    "data.crop": (64, 64),
    "model.head_channels": 16,
}
run_tiny = partial(demo, train_images=12, val_images=4, size=(64, 128), recipes=TINY)
SECTIONS = ("headline", "classes", "examples", "curves", "confusion", "losses", "pseudo-labels", "time", "settings")


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, ray_session: None) -> Iterator[SimpleNamespace]:
    """A finished demo: its directory, the gap it returned and what it printed."""
    out = tmp_path_factory.mktemp("demo") / "out"
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        gap = run_tiny(out)
    yield SimpleNamespace(out=out, gap=gap, printed=printed.getvalue().splitlines())
    shutil.rmtree(out)


def test_last_line_is_the_gap(done: SimpleNamespace) -> None:
    assert re.fullmatch(r"gap closed (-?\d+\.\d\d|nan)", done.printed[-1])
    assert done.printed[-2] == f"report: {done.out / 'report.html'}"
    shown = float(done.printed[-1].split()[-1])
    assert shown == pytest.approx(done.gap, abs=0.00501, nan_ok=True)


def test_report_is_whole(done: SimpleNamespace) -> None:
    page = (done.out / "report.html").read_text()
    assert all(f'id="{section}"' in page for section in SECTIONS)
    assert f"<h1>{done.printed[-1]}</h1>" in page
    assert str(done.out.parent) not in page


def test_all_networks_train_as_long_and_every_checkpoint_is_scored(done: SimpleNamespace) -> None:
    phases = json.loads((done.out / "demo.json").read_text())["phases"]
    steps = {network: [step for step, _ in points] for network, points in phases["evaluate"]["result"].items()}
    scored = list(range(2, 4 * len(RECIPES["classwise_small"]().stages) + 1, 2))
    assert steps == dict.fromkeys(("source-only", "adapted", "oracle"), scored)


def test_a_second_demo_is_refused(done: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    before = (done.out / "demo.json").read_bytes()
    with pytest.raises(ConfigError, match="exists; go on with it by --resume"):
        run_tiny(done.out)
    with pytest.raises(
        ConfigError, match=r"other settings \(seed, source_only_small, classwise_small, supervised_small\)"
    ):
        run_tiny(done.out, seed=1, resume=True)
    assert main(["--out", str(done.out)]) == 2
    assert capsys.readouterr().err.startswith(f"error: {done.out}: exists")
    assert (done.out / "demo.json").read_bytes() == before


def test_resume_repeats_nothing(done: SimpleNamespace, monkeypatch: pytest.MonkeyPatch) -> None:
    def again(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    before = (done.out / "report.html").read_bytes()
    for function in ("write_pair", "prepare", "train", "evaluate", "pseudo_label"):
        monkeypatch.setattr(job, function, again)
    assert run_tiny(done.out, resume=True) == pytest.approx(done.gap, nan_ok=True)
    assert (done.out / "report.html").read_bytes() == before


def test_resume_goes_on_after_the_last_finished_phase(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[str] = []

    def stop_at_the_second(recipe: Recipe, **_: object) -> None:
        trained.append(recipe.name)
        if len(trained) == 2:
            raise TrainingError("stopped")

    monkeypatch.setattr(job, "_prepare", lambda data: None)
    monkeypatch.setattr(job, "_take_over_warm_start", lambda *_: None)
    monkeypatch.setattr(job, "train", stop_at_the_second)
    with pytest.raises(TrainingError):
        run_tiny(tmp_path / "out")
    monkeypatch.setattr(job, "train", lambda recipe, **_: trained.append(recipe.name))
    with pytest.raises(FileNotFoundError):  # no checkpoints to score
        run_tiny(tmp_path / "out", resume=True)
    assert trained == ["classwise_small", "source_only_small", "source_only_small", "supervised_small"]


def test_other_directories_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "notes.txt").write_text("mine")
    assert main(["--out", str(tmp_path), "--resume"]) == 2
    assert "is no demo's directory" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]


def test_stopped_training_exits_with_1(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def fail(*_: object, **__: object) -> None:
        raise TrainingError("a loss is not finite")

    monkeypatch.setattr(job, "demo", fail)
    assert main([]) == 1
    assert capsys.readouterr().err == "error: a loss is not finite\n"
