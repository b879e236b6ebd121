"""No mistake of a user's ends in a traceback, or touches a file of theirs: rc 2, one line, and nothing written."""

from __future__ import annotations

import collections
import importlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import ray
import torch
from bad_input import CASES, Case, make_files

from pipelines import cli

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("good")
    make_files(folder)
    return folder


def tree(folder: Path) -> dict[str, object]:
    """What lies below a folder: the content of small files, of others the size and the time of the last change."""
    found: dict[str, object] = {}
    for path in sorted(folder.rglob("*")):
        stat = path.lstat()
        big = path.is_file() and stat.st_size > 100_000
        content = (stat.st_size, stat.st_mtime_ns, stat.st_ino) if big else path.is_file() and path.read_bytes()
        found[str(path.relative_to(folder))] = content
    return found


def run(command: str, words: list[str]) -> int | str | None:
    """The exit code of a command in this process."""
    module = "import_" if command == "import" else command.replace("-", "_")
    try:
        code: int = importlib.import_module(f"pipelines.{module}").main(words)
    except SystemExit as stop:
        return stop.code
    return code


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is refused is refused before Ray is started."""

    def refuse(*args: object, **kwargs: object) -> None:
        raise AssertionError("Ray was started")

    monkeypatch.setattr(ray, "init", refuse)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)


@pytest.mark.parametrize("case", [pytest.param(c, id=c.id, marks=pytest.mark.full if c.full else ()) for c in CASES])
def test_bad_input_is_refused_in_one_line(
    case: Case,
    good: Path,
    tmp_path: Path,
    no_ray: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    files = tmp_path / "d"
    monkeypatch.chdir(tmp_path)
    shutil.copytree(good, files, copy_function=os.link)
    case.damage(files)
    before = tree(files)
    words = case.words.format(d=files).split()
    words += ["--out", str(tmp_path / "out")] if case.out else []
    code = run(case.command, words)
    error = capsys.readouterr().err
    assert code == 2, error
    assert "Traceback" not in error
    first, *more = error.splitlines()
    assert first.startswith("error: ")
    assert all(line.startswith(("problems: ", "  ")) for line in more), error  # `prepare` lists what it found
    for named in [case.named] if isinstance(case.named, str) else case.named:
        assert named in error.replace("-", "_") or named in error
    assert tree(files) == before
    assert {path.name for path in tmp_path.iterdir()} <= {"d", "out"}
    assert {path.name for path in (tmp_path / "out").rglob("*") if path.is_file()} <= {".udaseg.json"}


def test_the_table_covers_all_commands() -> None:
    counts = collections.Counter(case.command for case in CASES)
    assert set(counts) == {
        "prepare",
        "train",
        "evaluate",
        "sweep",
        "pseudo-label",
        "demo",
        "import",
        "adapt",
        "predict",
        "export",
        "inspect",
        "join",
    }
    assert len(CASES) >= 150 and min(counts.values()) >= 5


def test_a_gpu_that_is_out_of_memory_is_a_line(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "CUDA out of memory. Tried to allocate 7.30 GiB. GPU 0 has a total capacity of 8 GiB"

    @cli.command
    def main(argv: Sequence[str]) -> None:
        raise torch.OutOfMemoryError(said)

    assert main([]) == 1 and capsys.readouterr().err == "error: CUDA out of memory\n"
    with pytest.raises(torch.OutOfMemoryError):
        main(["--verbose"])


# --- whole processes ------------------------------------------------------------------------------------------------


def started(command: str, *words: str, **how: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", f"pipelines.{command}", *words],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **how,
    )


@pytest.mark.full
@pytest.mark.parametrize("moment", ["while modules load", "when work begins", "in the midst of work"])
def test_ctrl_c_ends_a_command_with_a_line(moment: str, good: Path, tmp_path: Path) -> None:
    """At whatever moment, the inputs stay as they are, and the same command goes on where it stopped."""
    before, out = tree(good), tmp_path / "out"
    words = ["--checkpoint", f"{good}/model", "--images", f"{good}/target", "--out", str(out), "--block-size", "1"]
    job = started("pseudo_label", *words, "--inference.no-gpu")
    signs = {"when work begins": out / "job" / "job.json", "in the midst of work": out / "predictions"}
    time.sleep(1.0)
    deadline = time.monotonic() + 240
    while moment in signs and not signs[moment].exists() and time.monotonic() < deadline and job.poll() is None:
        time.sleep(0.02)
    assert job.poll() is None
    job.send_signal(signal.SIGINT)
    _, error = job.communicate(timeout=120)
    assert job.returncode == 130, error
    assert "Traceback" not in error and error.strip().splitlines()[-1].startswith("interrupted")
    assert tree(good) == before
    if moment == "in the midst of work":
        done = started("pseudo_label", *words, "--inference.no-gpu")
        assert done.communicate(timeout=300) and done.returncode == 0
        assert len(list((out / "labels").iterdir())) == 4


@pytest.mark.full
def test_of_two_of_the_same_command_one_works(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["--images", f"{good}/source/images", "--labels", f"{good}/source/labels", "--out", str(out)]
    jobs = [started("prepare", *words, "--classes", f"{good}/classes.json") for _ in range(2)]
    errors = [job.communicate(timeout=300)[1] for job in jobs]
    assert sorted(job.returncode for job in jobs) == [0, 2], errors
    refused = next(error for job, error in zip(jobs, errors, strict=True) if job.returncode == 2)
    assert str(out) in refused and len(refused.splitlines()) == 1
    assert (out / "manifest.parquet").exists()


@pytest.mark.full
def test_a_full_disk_is_named(good: Path, tmp_path: Path) -> None:
    """A file system of 64 KiB, where one may be mounted."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(disk)], capture_output=True)
    assert not mounted.returncode, mounted.stderr.decode()
    try:
        (disk / "mine").write_bytes(bytes(60_000))
        words = ["--images", f"{good}/source/images", "--labels", f"{good}/source/labels", "--out", f"{disk}/out"]
        job = started("prepare", *words, "--classes", f"{good}/classes.json")
        _, error = job.communicate(timeout=300)
        assert job.returncode == 2 and "No space left" in error and "Traceback" not in error, error
        assert (disk / "mine").read_bytes() == bytes(60_000)
        assert not (disk / "out" / "manifest.parquet").exists()
    finally:
        subprocess.run(["umount", str(disk)], check=True)
