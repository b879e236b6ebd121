"""What a store answers, and what it is asked: a server of a few lines, in a process of its own."""

from __future__ import annotations

import contextlib
import fcntl
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs
import pytest

from udaseg.data import index, storage
from udaseg.data.storage import exists, filesystem, read_bytes, write_bytes
from udaseg.errors import DatasetError, UnreachableError

_SERVER = """
import http.server, sys

class Store(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self):
        self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with open(sys.argv[2], "a") as log:
            print(self.command, self.path, file=log)
        status = {"refused": 403, "expired": 400}.get(self.path.split("/")[1], 200)
        self.send_response(status)
        self.send_header("ETag", '"0"')
        self.send_header("Content-Length", "0")
        self.end_headers()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = answer

    def log_message(self, *_):
        pass

http.server.ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), Store).serve_forever()
"""


@pytest.fixture
def far(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """The ?query of a store that refuses what is asked of buckets "refused" and "expired", and its log of requests."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = int(free.getsockname()[1])
    log = tmp_path / "requests"
    process = subprocess.Popen([sys.executable, "-c", _SERVER, str(port), str(log)])
    try:
        until = time.monotonic() + 30
        while time.monotonic() < until:
            assert process.poll() is None
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port)):
                break
            time.sleep(0.05)
        yield f"?endpoint_override=http://127.0.0.1:{port}&region=us-east-1", log
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("bucket", ["refused", "expired"])
def test_credentials_that_a_store_refuses_are_named_at_once(bucket: str, far: tuple[str, Path]) -> None:
    query, log = far
    for action in (read_bytes, exists, lambda uri: write_bytes(uri, b"content")):
        asked = len(log.read_text().splitlines()) if log.exists() else 0
        with pytest.raises(
            PermissionError, match=rf"^s3://{bucket}/a\.png.*the store refuses it.*credentials"
        ) as raised:
            action(f"s3://{bucket}/a.png{query}")
        assert not isinstance(raised.value, UnreachableError)
        assert len(log.read_text().splitlines()) - asked <= 2  # once; a read asks for the size first


def test_a_small_object_is_written_by_one_request(far: tuple[str, Path]) -> None:
    query, log = far
    write_bytes(f"s3://bucket/folder/a.png{query}", b"content")
    assert [line.split()[0] for line in log.read_text().splitlines()] == ["PUT"]


def test_a_write_that_fails_in_passing_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0, 0))
    tries: list[str] = []

    class Down:
        type_name = "s3"

        def open_output_stream(self, path: str) -> Any:
            tries.append(path)
            if len(tries) < 3:
                raise OSError("AWS Error SLOW_DOWN")
            return Sink()

    class Sink:
        def __enter__(self) -> Sink:
            return self

        def __exit__(self, *_: object) -> None: ...

        def write(self, content: bytes) -> None:
            tries.append(content.decode())

    monkeypatch.setattr(storage, "filesystem", lambda uri: (Down(), "bucket/a"))
    write_bytes("s3://bucket/a", b"content")
    assert tries == ["bucket/a"] * 3 + ["content"]


def test_two_slashes_after_a_bucket_are_refused() -> None:
    with pytest.raises(DatasetError, match=r"^s3://bucket//a: two slashes after the bucket's name"):
        filesystem("s3://bucket//a")


def test_one_process_of_a_machine_fetches_an_index(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, far: tuple[str, Path]
) -> None:
    """Another, that holds the lock meanwhile, leaves it here: it is taken as it is."""
    monkeypatch.setattr(index.tempfile, "gettempdir", lambda: str(tmp_path))
    monkeypatch.setattr(index, "version", lambda uri: (7, 0))
    uri = f"s3://bucket/one.arrow{far[0]}"
    fetched: list[str] = []

    def fetch(source: str, to: str, *_: object) -> None:
        fetched.append(source)
        Path(to).write_bytes(b"content")

    monkeypatch.setattr(pafs, "copy_files", fetch)
    mapped = index._memory_map(uri)
    assert mapped.read() == b"content" and fetched == ["bucket/one.arrow"]

    (lock,) = tmp_path.rglob("*.lock")
    (held,) = (path for path in tmp_path.rglob("udaseg-index-*/*") if path.suffix == "")
    held.unlink()
    found: list[bytes] = []
    with open(lock, "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        other = threading.Thread(target=lambda: found.append(index._memory_map(uri).read()))
        other.start()
        other.join(0.3)
        assert other.is_alive()
        held.write_bytes(b"another")
    other.join(30)
    assert found == [b"another"] and len(fetched) == 1
