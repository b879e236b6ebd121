"""The wheel: what somebody who installs udaseg gets, outside the repository."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("udaseg", "pipelines", "tune_spaces")


def run(*words: str | Path, **how: str) -> str:
    done = subprocess.run(
        [sys.executable, *map(str, words)], capture_output=True, text=True, cwd=how.pop("cwd"), env=os.environ | how
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that the wheel is installed into; its dependencies are those of this environment."""
    folder = tmp_path_factory.mktemp("wheel")
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / "source" / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder / "source")
    offline = ("--no-deps", "--no-index", "--quiet")
    run("-m", "pip", "wheel", *offline, "--no-build-isolation", "--wheel-dir", ".", "./source", cwd=str(folder))
    (wheel,) = folder.glob("udaseg-*.whl")
    run("-m", "pip", "install", *offline, "--target", "site", wheel, cwd=str(folder))
    return folder / "site"


@pytest.mark.full
def test_it_holds_every_file_of_the_packages(installed: Path) -> None:
    files = [p.relative_to(ROOT) for name in PACKAGES for p in (ROOT / name).rglob("*") if p.is_file()]
    files = [file for file in files if "__pycache__" not in file.parts]
    assert len(files) > 200
    assert not [file for file in files if not (installed / file).exists()]


@pytest.mark.full
@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["-m", "pipelines", "--help"], "usage: udaseg [--verbose] COMMAND"),
        (["bin/udaseg", "demo", "--help"], "usage: udaseg demo"),
        (["bin/udaseg", "train"], "To begin with: udaseg adapt"),
        (["bin/udaseg", "sweep"], "Spaces (udaseg sweep SPACE"),
        (["-c", "import udaseg.reports.page, udaseg.jobs.demo as d; print(d.__file__)"], "site/udaseg/jobs/demo.py"),
    ],
    ids=["module", "demo", "train", "sweep", "import"],
)
def test_it_runs_outside_of_the_repository(installed: Path, words: list[str], said: str) -> None:
    assert said in run(*words, cwd=str(installed), PYTHONPATH=str(installed))
