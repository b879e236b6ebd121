"""Directories that commands write: whose they are, what is left alone, and one process at a time."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import digests, draw, listed, make_checkpoint, make_dataset, tiny_recipe, tree

from pipelines import demo, evaluate, import_, prepare, pseudo_label, sweep, train
from udaseg.data.storage import exists, join, read_bytes, write_bytes
from udaseg.errors import ConfigError
from udaseg.job_config import Cluster
from udaseg.jobs import output
from udaseg.jobs.output import LEASE, MARKER, exclusive_driver, lies_in, mark, own_directory, require_own
from udaseg.jobs.train import train as train_job

# --- whose a directory is -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def inputs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("inputs")
    return {
        "source": make_dataset(folder / "source", "source", train=4, val=2),
        "target": make_dataset(folder / "target", "target", train=4, val=2),
        "checkpoint": make_checkpoint(folder / "model", 0),
    }


def commands(inputs: dict[str, str]) -> dict[str, Callable[[str], int]]:
    """Each command that writes a directory, as a function of --out; all else that it is told is right."""
    pair = ["--source", inputs["source"], "--target", inputs["target"]]
    images = str(Path(inputs["target"]) / "images")
    classes = str(Path(inputs["target"]) / "classes.json")
    checkpoint = ["--checkpoint", inputs["checkpoint"]]
    return {
        "prepare": lambda out: prepare.main(["--images", images, "--classes", classes, "--out", out]),
        "train": lambda out: train.main(["dacs_small", *pair, "--out", out]),
        "train --resume": lambda out: train.main(["dacs_small", *pair, "--out", out, "--resume"]),
        "sweep": lambda out: sweep.main(["temperature", *pair, "--out", out]),
        "sweep --resume": lambda out: sweep.main(["temperature", *pair, "--out", out, "--resume"]),
        "pseudo-label": lambda out: pseudo_label.main([*checkpoint, "--images", images, "--out", out]),
        "evaluate": lambda out: evaluate.main([*checkpoint, "--dataset", inputs["target"], "--out", out]),
        "import": lambda out: import_.main(
            [f"{inputs['checkpoint']}/model.safetensors", "--classes", classes, "--out", out]
        ),
        "demo": lambda out: demo.main(["--out", out]),
        "demo --resume": lambda out: demo.main(["--out", out, "--resume"]),
    }


COMMANDS = list(commands({"source": "", "target": "", "checkpoint": ""}))


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    """Work must not begin."""

    def begin(*_: object, **__: object) -> None:
        raise AssertionError("work has begun")

    for job in ("train", "sweep", "evaluate", "checking", "pseudo_label.job", "demo"):
        monkeypatch.setattr(f"udaseg.jobs.{job}.ensure_ray", begin)


@pytest.mark.parametrize("command", COMMANDS)
def test_what_is_somebody_elses_is_refused_and_left_as_it_is(
    command: str, inputs: dict[str, str], no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, out = commands(inputs)[command], tmp_path / "fleet"
    (out / "labels").mkdir(parents=True)
    (out / "labels" / "a.png").write_bytes(b"drawn by hand")
    for name in ("classes.json", "failed.json", "notes.txt", "config.json", "model.json"):
        (out / name).write_text('{"mine": 1}')
    before = digests(out)
    assert run(str(out)) == 2
    said = capsys.readouterr().err
    assert said.startswith(f"error: {out}: holds 'classes.json', 'config.json', 'failed.json' and 3 more")
    assert said.count("\n") == 1 and digests(out) == before

    other = tmp_path / "other"
    mark(str(other), "train" if "train" not in command else "sweep")
    (other / "file").write_bytes(b"")
    before = digests(other)
    assert run(str(other)) == 2
    assert "holds what `udaseg " in capsys.readouterr().err and digests(other) == before
    (tmp_path / "file").write_bytes(b"mine")
    assert run(str(tmp_path / "file")) == 2 and run(str(tmp_path / "file" / "below")) == 2
    said = capsys.readouterr().err
    assert "a file, not a directory" in said and "below: cannot be written" in said
    assert (tmp_path / "file").read_bytes() == b"mine"


@pytest.mark.parametrize("command", COMMANDS)
def test_a_directory_that_cannot_be_written_is_found_before_the_work(
    command: str, inputs: dict[str, str], no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands(inputs)[command]("/proc/none") == 2
    said = capsys.readouterr().err
    assert said.startswith("error: /proc/none: cannot be written") and said.count("\n") == 1


def test_a_strange_marker_makes_a_directory_nobody_s(tmp_path: Path) -> None:
    for text in ("[1]", '{"command": "rm"}', "{", "\0", '{"command": ["train"]}'):
        (tmp_path / MARKER).write_text(text)
        with pytest.raises(ConfigError, match=r"'\.udaseg\.json', and is no run's directory"):
            require_own(str(tmp_path), "train")


def test_stores_have_the_same_rule(store: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "HEARTBEAT", 0.05)
    theirs, mine = store("owned", "fleet"), store("owned", "runs/mine")
    write_bytes(join(theirs, "labels", "a.png"), b"drawn by hand")
    with pytest.raises(ConfigError, match=r"holds 'labels', and is no run's directory"), own_directory(theirs, "train"):
        pass
    assert tree(theirs) == {"labels/a.png": b"drawn by hand"}
    with own_directory(mine, "train"):
        assert set(listed(mine)) == {MARKER, LEASE}
        write_bytes(join(mine, "model"), b"")
    assert set(listed(mine)) == {MARKER, "model"}
    require_own(mine, "train")
    with own_directory(store("owned", "nothing"), "train"):
        pass
    assert not listed(store("owned", "nothing"))
    nowhere = store("owned", "x").replace("://owned", "://no-such-bucket").replace("@owned", "@no-such-bucket")
    with pytest.raises(ConfigError, match="cannot be written"), own_directory(nowhere, "train"):
        pass


def test_what_is_left_empty_is_removed(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError), own_directory(str(tmp_path / "new"), "train"):
        raise RuntimeError
    assert not (tmp_path / "new").exists()
    (tmp_path / "there").mkdir()
    with own_directory(str(tmp_path / "there"), "train"):
        assert (tmp_path / "there" / MARKER).exists()
    assert list(tmp_path.iterdir()) == [tmp_path / "there"] and not list((tmp_path / "there").iterdir())


# --- no input is an output ------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A directory of a dataset that `prepare` wrote, with images in it and a class list of the user's own."""
    root = tmp_path / "D"
    for split in ("train", "val"):
        for kind, n in (("images", 0), ("labels", 1)):
            (root / split / kind).mkdir(parents=True)
            Image.fromarray(draw("target", 0)[n]).save(root / split / kind / "a.png")
    (root / "classes.json").write_text((Path(make_dataset(tmp_path / "x", "target")) / "classes.json").read_text())
    (root / "m.json").write_text('{"names": ["all"], "palette": [[0, 0, 0]], "map": {}}')
    return root


@pytest.mark.parametrize("own", [False, True])
@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--layout", "folders", "--root", "D", "--mapping", "D/m.json"], "--root"),
        (["--images", "D/train/images", "--classes", "D/classes.json"], "--classes"),
        (["--images", "D/train/images", "--classes", "link.json"], "--classes"),
        (["--images", "D/train/images", "--classes", "D/m.json", "--splits", "D/skipped.json"], "--splits"),
    ],
)
def test_an_input_is_never_an_output(
    own: bool, words: list[str], named: str, folder: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder.parent / "link.json").symlink_to(folder / "classes.json")
    (folder / "skipped.json").write_text('{"train": []}')
    if own:
        mark(str(folder), "prepare")
    before = digests(folder)
    paths = [str(folder.parent / word) if not word.startswith("-") and word != "folders" else word for word in words]
    assert prepare.main([*paths, "--out", str(folder), "--overwrite"]) == 2
    assert (f"error: {named} " if own else "is no dataset's directory") in capsys.readouterr().err
    assert digests(folder) == before


def test_a_list_of_another_origin_is_no_list_of_what_was_skipped(
    folder: Path, no_ray: None, capsys: pytest.CaptureFixture[str]
) -> None:
    mark(str(folder.parent / "out"), "prepare")
    for text in ("[1]", '{"a": 1}', '[{"image_id": "a"}]', "text"):
        (folder.parent / "out" / "skipped.json").write_text(text)
        words = ["--layout", "folders", "--root", str(folder), "--out", str(folder.parent / "out"), "--overwrite"]
        assert prepare.main(words) == 2
        assert "skipped.json: not written by `udaseg prepare`" in capsys.readouterr().err
        assert (folder.parent / "out" / "skipped.json").read_text() == text


def test_images_may_not_lie_in_the_folder_of_their_labels(
    inputs: dict[str, str], no_ray: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    mark(str(out), "pseudo-label")
    (out / "labels").mkdir()
    Image.fromarray(draw("target", 0)[0]).save(out / "labels" / "a.png")
    before = digests(out)
    words = ["--checkpoint", inputs["checkpoint"], "--images", str(out / "labels"), "--out", str(out)]
    assert pseudo_label.main(words) == 2
    assert "lies in the folder of labels" in capsys.readouterr().err and digests(out) == before


# --- one process at a time ------------------------------------------------------------------------------------------

DRIVER = """
import sys, time
from udaseg.jobs import output
output.HEARTBEAT = 0.05
with output.own_directory(sys.argv[1], "train"):
    print("at work", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process at work in `tmp_path`/out."""
    words = [sys.executable, "-c", DRIVER, str(tmp_path / "out")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "at work\n"
        yield process
        process.kill()


def test_a_second_driver_is_refused_while_the_first_works(
    other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "GRACE", 0.1)
    busy = pytest.raises(ConfigError, match=rf"out: process {other.pid} on .* works on it")
    with busy, own_directory(str(tmp_path / "out"), "train"):
        pass
    assert (tmp_path / "out" / LEASE).exists(), "the first one's lease stays"


@pytest.mark.parametrize("halves, who", [(3, r"process \d+ on "), (1000, "another process")])
def test_a_lease_that_is_being_renewed_is_read_again(
    halves: int, who: str, other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first reads find the file empty, as between the opening and the writing of a renewal."""
    left = [b""] * halves
    monkeypatch.setattr(output, "GRACE", 0.1)
    monkeypatch.setattr(
        output, "read_bytes", lambda uri: left.pop() if uri.endswith(LEASE) and left else read_bytes(uri)
    )
    with pytest.raises(ConfigError, match=rf"out: {who}.*works on it"), exclusive_driver(str(tmp_path / "out")):
        pass
    assert len(left) == max(0, halves - 20)


def test_a_live_run_is_not_resumed_beside_itself(
    other: subprocess.Popen[str], inputs: dict[str, str], no_ray: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(output, "GRACE", 0.1)
    before = set(digests(tmp_path / "out"))
    with pytest.raises(ConfigError, match="works on it"):
        train_job(
            tiny_recipe("source_only_small"),
            source=inputs["source"],
            target=None,
            out=str(tmp_path / "out"),
            resume=True,
            cluster=Cluster(gpu=False),
        )
    assert set(digests(tmp_path / "out")) == before


@pytest.mark.parametrize("locks", [True, False])
def test_a_driver_without_a_lock_of_its_own_goes_by_the_lease(
    locks: bool, other: subprocess.Popen[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a file system that has no locks, or has them on each machine apart."""

    def no_lock(*_: object) -> None:
        if not locks:
            raise OSError("no locks here")

    monkeypatch.setattr(fcntl, "flock", no_lock)
    monkeypatch.setattr(output, "_machine", lambda: "another")
    monkeypatch.setattr(output, "HEARTBEAT", 0.5)
    with pytest.raises(ConfigError, match=rf"process {other.pid} on"), exclusive_driver(str(tmp_path / "out")):
        pass


def test_a_killed_driver_is_followed_at_once(other: subprocess.Popen[str], tmp_path: Path) -> None:
    other.kill()
    other.wait()
    assert (tmp_path / "out" / LEASE).exists()
    began = time.monotonic()
    with exclusive_driver(str(tmp_path / "out")):
        assert json.loads((tmp_path / "out" / LEASE).read_bytes())["pid"] == os.getpid()
    assert time.monotonic() - began < output.HEARTBEAT / 2
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARKER]


@pytest.mark.parametrize("text", ['{"token": "t", "machine": "elsewhere", "pid": 1, "locked": true}', "", "{", "[]"])
def test_a_driver_of_another_machine_is_followed_when_it_is_silent(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its number, which is that of a process here too, says nothing."""
    monkeypatch.setattr(output, "HEARTBEAT", 0.02)
    (tmp_path / LEASE).write_text(text)
    began = time.monotonic()
    with exclusive_driver(str(tmp_path)):
        assert time.monotonic() - began >= 4 * 0.02


def test_of_two_that_begin_at_once_without_locks_one_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    monkeypatch.setattr(output, "HEARTBEAT", 0.5)
    real = time.sleep

    def other_signs(seconds: float) -> None:
        (tmp_path / LEASE).write_text('{"token": "other", "pid": 7, "host": "there"}')
        real(seconds)

    monkeypatch.setattr(time, "sleep", other_signs)
    with pytest.raises(ConfigError, match="process 7 on there works on it"), exclusive_driver(str(tmp_path)):
        pass
    assert "other" in (tmp_path / LEASE).read_text()


def test_a_driver_that_was_taken_over_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As a machine that wakes from sleep, when another has gone on with its work."""
    monkeypatch.setattr(output, "HEARTBEAT", 0.05)
    with pytest.raises(ConfigError, match="another process took over"), exclusive_driver(str(tmp_path)):
        (tmp_path / LEASE).write_text('{"token": "other"}')
        time.sleep(30)
    assert exists(str(tmp_path / LEASE)), "the lease is the other's"


def test_a_driver_whose_lease_is_gone_has_slept_through_another_s_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where there are no locks: the other ended, and took its lease away. A lock says that there was no other."""
    monkeypatch.setattr(output, "HEARTBEAT", 0.05)
    with exclusive_driver(str(tmp_path)):
        (tmp_path / LEASE).unlink()
        time.sleep(0.3)
        assert (tmp_path / LEASE).exists()
    monkeypatch.setattr(fcntl, "flock", lambda *_: (_ for _ in ()).throw(OSError("no locks here")))
    with pytest.raises(ConfigError, match="another process took over"), exclusive_driver(str(tmp_path)):
        (tmp_path / LEASE).unlink()
        time.sleep(30)


def test_a_lease_that_is_another_s_is_left_to_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(output, "HEARTBEAT", 60.0)
    with exclusive_driver(str(tmp_path)):
        (tmp_path / LEASE).write_text('{"token": "other"}')
    assert "other" in (tmp_path / LEASE).read_text()


def test_an_error_of_the_work_is_told_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No space left"), own_directory(str(tmp_path / "out"), "train"):
        raise OSError(28, "No space left on device")


def test_what_lies_in_a_folder_is_told_by_links_and_whole_names(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "images")
    assert lies_in(f"{tmp_path}/link/x", f"{tmp_path}/images")
    assert lies_in(f"{tmp_path}/images", f"{tmp_path}/images/")
    assert not lies_in(f"{tmp_path}/images2", f"{tmp_path}/images")


def test_a_folder_that_another_command_took_meanwhile_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.contextmanager
    def later(out: str) -> Iterator[None]:
        Path(out).mkdir()
        mark(out, "train")
        yield

    monkeypatch.setattr(output, "exclusive_driver", later)
    with pytest.raises(ConfigError, match="udaseg train"), own_directory(str(tmp_path / "x"), "prepare"):
        pass


@pytest.mark.parametrize("locked", [True, False])
def test_a_lease_of_this_machine_is_waited_for_unless_its_lock_is_free(
    locked: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(output, "HEARTBEAT", 0.02)
    uri = tmp_path / LEASE
    uri.write_text(json.dumps({"token": "x", "machine": output._machine(), "locked": locked}))
    output._wait_for_heartbeat(str(uri), str(tmp_path), True)
    assert ("may be at work" in capsys.readouterr().out) == (not locked)
