"""A store that goes away in the midst of a labelling: one line, and the same command ends with the same bytes."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest
from PIL import Image
from ray_cluster import ROOT
from tiny import draw, listed, make_checkpoint, tree, upload


class Gate:
    """A relay in front of a server. Shut, it cuts what is under way and refuses what comes."""

    def __init__(self, server: int) -> None:
        self.server, self.port = server, 0
        self.ends: list[socket.socket] = []
        self.open()

    def open(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", self.port))
        self.port = int(self.listener.getsockname()[1])
        threading.Thread(target=self._accept, args=(self.listener,), daemon=True).start()

    def shut(self) -> None:
        for end in (self.listener, *self.ends):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()
        self.ends.clear()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = listener.accept()
                far = socket.create_connection(("127.0.0.1", self.server))
                self.ends += [near, far]
                for one, other in ((near, far), (far, near)):
                    threading.Thread(target=self._relay, args=(one, other), daemon=True).start()

    def _relay(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while content := one.recv(1 << 16):
                other.sendall(content)
            other.shutdown(socket.SHUT_WR)


def label(images: str, checkpoint: str, out: str) -> subprocess.Popen[str]:
    words = ["--images", images, "--checkpoint", checkpoint, "--out", out, "--block-size", "2"]
    return subprocess.Popen(
        [sys.executable, "-m", "pipelines.pseudo_label", *words, "--inference.no-gpu", "--inference.actors", "1"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


@pytest.mark.full
def test_a_store_that_goes_away_and_comes_back(s3: Callable[[str, str], str], tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for n in range(24):
        Image.fromarray(draw("target", n)[0]).save(images / f"{n:03d}.png")
    direct = s3("away", "images")
    upload(images, direct)
    server = urlsplit(parse_qs(urlsplit(direct).query)["endpoint_override"][0]).port
    assert server is not None
    gate, checkpoint = Gate(server), make_checkpoint(tmp_path / "model", 0)

    def through(uri: str) -> str:
        return uri.replace(f":{server}&", f":{gate.port}&")

    fleet, whole, out = through(direct), s3("away", "whole"), s3("away", "out")
    job = label(fleet, checkpoint, through(whole))
    _, error = job.communicate(timeout=500)
    assert job.returncode == 0, error
    job = label(fleet, checkpoint, through(out))
    try:
        deadline = time.monotonic() + 300
        while sum(name.startswith("job/predict/") for name in listed(out)) < 2:
            assert job.poll() is None and time.monotonic() < deadline
            time.sleep(0.05)
        gate.shut()
        _, error = job.communicate(timeout=500)
    finally:
        if job.poll() is None:
            os.killpg(job.pid, signal.SIGKILL)
    done = {name for name in listed(out) if name.startswith("job/predict/")}
    assert 2 <= len(done) < 12, "it went away in the midst"
    assert job.returncode in (1, 2), error
    assert "Traceback" not in error and error.splitlines()[-1].startswith("error: "), error

    gate.open()
    job = label(fleet, checkpoint, through(out))
    _, error = job.communicate(timeout=500)
    assert job.returncode == 0, error
    assert tree(out) == tree(whole)
