"""Ctrl-C, SIGTERM and full disks: one line, nothing left behind, and what is done goes on."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import psutil
import pytest
from tiny import make_checkpoint, make_dataset

from pipelines.cli import command
from udaseg.jobs.output import LEASE
from udaseg.jobs.worker import clear_scratch, make_scratch

ROOT = Path(__file__).parents[2]


# --- in this process ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "code", "word"), [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "terminated")]
)
def test_a_signal_ends_a_command_with_one_line(
    number: int, code: int, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = signal.getsignal(signal.SIGTERM)

    def work(argv: Sequence[str]) -> None:
        signal.pthread_kill(threading.get_ident(), number)
        time.sleep(30)

    assert command(work)([]) == code
    said = capsys.readouterr().err
    assert said.startswith(f"{word}: ") and said.count("\n") == 1
    assert signal.getsignal(signal.SIGTERM) == before


def test_a_full_disk_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    def work(argv: Sequence[str]) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/out/manifest.parquet")

    assert command(work)([]) == 2
    assert capsys.readouterr().err == "error: [Errno 28] No space left on device: '/out/manifest.parquet'\n"


def test_scratch_of_the_dead_alone_is_cleared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    mine, handle = make_scratch()
    killed = (
        "from udaseg.jobs.worker import make_scratch as m; import os; f, _ = m(); (f / 'state.pt').touch(); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", killed], env=os.environ | {"TMPDIR": str(tmp_path)}, cwd=ROOT, check=False)
    (tmp_path / "another's").mkdir()
    assert len(list(tmp_path.glob("udaseg-checkpoint-*/state.pt"))) == 1
    clear_scratch()
    assert sorted(tmp_path.iterdir()) == sorted([mine, tmp_path / "another's"])
    os.close(handle)
    clear_scratch()
    assert list(tmp_path.iterdir()) == [tmp_path / "another's"]


# --- whole commands -------------------------------------------------------------------------------------------------

TINY = (
    *("--checkpoint-every", "2", "--log-every", "1", "--model.backbone", "resnet10t", "--model.head-channels", "16"),
    *("--data.batch-size", "4", "--data.short-side", "40", "--data.crop", "32", "32"),
    *("--cluster.no-gpu", "--cluster.threads", "1"),
)


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[str, ...]]:
    folder = tmp_path_factory.mktemp("inputs")
    source = make_dataset(folder / "source", "source", train=200)
    target = make_dataset(folder / "target", "target", train=300)
    checkpoint = ("--checkpoint", make_checkpoint(folder / "model", 0), "--inference.no-gpu")
    images = ("--images", f"{target}/images", "--classes", f"{target}/classes.json")
    return {
        "train": ("source_only_small", "--steps", "4000", *TINY, "--source", source),
        "pseudo-label": (*checkpoint, "--images", f"{target}/images", "--block-size", "1"),
        "prepare": images,
        "evaluate": (*checkpoint, "--dataset", target, "--split", "train", "--inference.flip"),
        "sweep": (
            "temperature",
            "--recipe",
            "bcl_demo",
            "--steps",
            "4000",
            *TINY,
            "--source",
            source,
            "--target",
            target,
        ),
    }


def start(name: str, words: Sequence[str], out: Path, temporary: Path) -> subprocess.Popen[bytes]:
    with out.with_suffix(".log").open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "pipelines", name, *words, "--out", str(out)],
            cwd=ROOT,
            env=os.environ | {"TMPDIR": str(temporary)},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )


MOMENTS: dict[str, tuple[str, Callable[[Path], bool]]] = {
    "train, as it begins": ("train", lambda out: (out / LEASE).exists()),
    "train": ("train", lambda out: bool(list(out.glob("stages/*/checkpoint_0000004")))),
    "pseudo-label": ("pseudo-label", lambda out: len(list(out.glob("job/predict/*"))) > 2),
    "prepare": ("prepare", lambda out: (out / LEASE).exists()),
    "evaluate": ("evaluate", lambda out: (out / LEASE).exists()),
    "sweep": ("sweep", lambda out: bool(list(out.glob("shared/stages/*/checkpoint_0000002")))),
}


@pytest.mark.full  # half a minute each
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", MOMENTS)
def test_a_command_ends_at_once_and_leaves_nothing(
    moment: str, number: int, words: dict[str, tuple[str, ...]], tmp_path: Path
) -> None:
    name, reached = MOMENTS[moment]
    out, temporary = tmp_path / "out", Path(tempfile.mkdtemp(prefix="i"))  # short: Ray's sockets lie in it
    run = start(name, words[name], out, temporary)
    log = out.with_suffix(".log")
    try:
        deadline = time.monotonic() + 200
        while not reached(out):
            assert run.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.02)
        time.sleep(0.5)
        children = psutil.Process(run.pid).children(recursive=True)
        run.send_signal(number)
        assert run.wait(60) == 128 + number, log.read_text()[-3000:]
    finally:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
    said = log.read_text()
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert [line for line in said.splitlines() if line.startswith(word)] and "Traceback" not in said, said[-3000:]
    assert "Fatal Python error" not in said and "SIGABRT" not in said
    assert not list(temporary.glob("udaseg-*")) and not (out / LEASE).exists()
    assert not psutil.wait_procs(children, timeout=20)[1], "processes are left"
    shutil.rmtree(temporary)
