"""A disk that fills up while tasks write to it: one line, and what is done stays."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image
from tiny import digests, draw, make_checkpoint

from pipelines.pseudo_label import main

pytestmark = pytest.mark.full
PAGE = 4096  # bytes, in which such a file system counts


def mount(folder: Path, *words: str) -> None:
    done = subprocess.run(["mount", "-t", "tmpfs", *words, "tmpfs", str(folder)], capture_output=True, text=True)
    assert done.returncode == 0, f"this test mounts a small file system, as root may: {done.stderr}"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mount(folder)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_fills_up_while_actors_label(
    tmp_path: Path, disk: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(12):
        Image.fromarray(draw("target", n)[0]).save(images / f"{n:03d}.png")
    words = ["--checkpoint", make_checkpoint(tmp_path / "model", 0), "--images", str(images), "--block-size", "2"]
    words += ["--inference.no-gpu", "--inference.actors", "1", "--out"]
    whole, out = tmp_path / "whole", disk / "out"
    assert main([*words, str(whole)]) == 0
    undisturbed = digests(whole)
    planes = [*(whole / "predictions").iterdir(), *(whole / "confidence").iterdir()]
    needed = sum(-(-path.stat().st_size // PAGE) * PAGE for path in planes)
    capsys.readouterr()

    mount(disk, "-o", f"remount,size={needed // 2}")
    assert main([*words, str(out)]) == 2
    (error,) = [line for line in capsys.readouterr().err.splitlines() if line.startswith("error: ")]
    assert "No space left on device" in error
    done = {name: digest for name, digest in digests(out).items() if name.startswith("predictions/")}
    assert done and done.items() <= undisturbed.items(), "each is whole"
    assert not (out / "manifest.parquet").exists()

    mount(disk, "-o", "remount,size=64m")
    assert main([*words, str(out)]) == 0
    assert digests(out) == undisturbed
