"""The directory that a command writes: new, empty or the command's own, and one process at a time works in it.

    .udaseg.json    which command it belongs to
    .udaseg.lease   who works in it, while somebody does

A lease is renewed every few seconds, so that one without a sign of life is a dead process's, wherever that ran. On a
local file system the directory is locked too (`flock`), which tells at once; a lock says nothing of other machines
that may share the directory, and a process id nothing of other containers.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import signal
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from itertools import count
from pathlib import Path
from typing import Any

import pyarrow.fs as pafs

from udaseg.data.storage import children, exists, filesystem, join, read_bytes, remove, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import ConfigError

MARKER, LEASE = ".udaseg.json", ".udaseg.lease"
HEARTBEAT = 5.0
"""Seconds between a lease's signs of life."""


GRACE = 2.0
"""Seconds that a locked directory is waited for: a process that was killed may take a moment to end."""


NOUNS = {
    "prepare": "dataset",
    "join": "joined dataset",
    "train": "run",
    "sweep": "sweep",
    "adapt": "adaptation",
    "pseudo-label": "labelling job",
    "import": "imported model",
    "demo": "demo",
    "evaluate": "evaluation",
    "predict": "prediction",
    "export": "exported model",
    "inspect": "inspection",
}
"""What each command's directory is of."""


_OF_RAY = ("train", "sweep", "adapt", "demo")
"""Commands whose directories Ray Train or Ray Tune writes to."""


def require_own(out: str, command: str) -> None:
    """Make sure that a directory does not exist, is empty or belongs to a command. Nothing is written.

    Raises ConfigError, naming what is there, where it is anything else.
    """
    fs, path = filesystem(out)
    if "://" in out and command in _OF_RAY and any(letter.isspace() for letter in path):
        raise ConfigError(f"{out}: Ray writes to no URI with a space in it; choose another --out")
    if fs.get_file_info(path).type == pafs.FileType.File:
        raise ConfigError(f"{out}: a file, not a directory; choose another --out")
    if (owner := owner_of(out)) == command:  # what lies there may take long to list
        return
    found = sorted({info.base_name for info in children(out)} - {LEASE})
    if not found:
        return
    if owner is not None:
        what = f"what `udaseg {owner}` wrote"
    else:
        more = f" and {len(found) - 3} more" if len(found) > 3 else ""
        what = ", ".join(map(repr, found[:3])) + more
    raise ConfigError(f"{out}: holds {what}, and is no {NOUNS[command]}'s directory; choose another --out")


def owner_of(out: str) -> str | None:
    """The command that a directory belongs to."""
    owner = _json(join(out, MARKER)).get("command")
    return owner if isinstance(owner, str) and owner in NOUNS else None


def _json(uri: str) -> dict[str, Any]:
    """An object in a JSON file; empty where the file is missing or anything else."""
    with contextlib.suppress(OSError, ValueError, RecursionError):
        content = json.loads(read_bytes(uri))
        return content if isinstance(content, dict) else {}
    return {}


def mark(out: str, command: str) -> None:
    """Make a directory the command's own, whatever is in it: who calls it has put it there."""
    write_bytes(join(out, MARKER), dump_json({"command": command}).encode())


@contextlib.contextmanager
def own_directory(out: str, command: str) -> Iterator[None]:
    """Make a directory the command's own, and keep other processes from it while the block runs.

    What is left empty is removed again.

    Raises ConfigError where it is neither empty nor the command's own, cannot be written, or another process works in
    it.
    """
    require_own(out, command)
    new = not exists(out)
    try:
        with exclusive_driver(out):
            require_own(out, command)  # once more: another command may have begun in the same empty directory
            mark(out, command)
            try:
                yield
            finally:
                with contextlib.suppress(OSError):
                    if {info.base_name for info in children(out)} <= {MARKER, LEASE}:
                        remove(join(out, MARKER))
    finally:
        fs, path = filesystem(out)
        if new and fs.type_name == "local":
            with contextlib.suppress(OSError):  # it is not empty
                os.rmdir(path)


def keep_apart(inputs: Mapping[str, str | None], out: str, outputs: Iterable[str]) -> None:
    """Make sure that no input is among the files that are written to `out`.

    Args:
        inputs: path or URI of each input, by its flag; None where it was not given.
        out: the directory that is written.
        outputs: names of the files that may be written in it.

    Raises ConfigError, naming the flag.
    """
    written = [(name, _identity(join(out, name))) for name in outputs]
    for flag, uri in inputs.items():
        same = [name for name, identity in written if uri is not None and identity == _identity(uri)]
        if same:
            raise ConfigError(f"{flag} {uri}: would be overwritten, as {same[0]} of --out; choose another --out")


def lies_in(uri: str, folder: str) -> bool:
    """Whether a file or folder is another one or below it."""
    (fs, path), (other, above) = (filesystem(name) for name in (uri, folder))
    if fs.type_name == "local":
        path, above = os.path.realpath(path), os.path.realpath(above)
    return fs == other and f"{path}/".startswith(f"{above.rstrip('/')}/")


def _identity(uri: str) -> tuple[Any, ...]:
    """What two names of one file have in common."""
    fs, path = filesystem(uri)
    if fs.type_name != "local":
        return fs.type_name, path
    with contextlib.suppress(OSError):
        status = os.stat(path)
        return status.st_dev, status.st_ino
    return fs.type_name, os.path.realpath(path)


@contextlib.contextmanager
def exclusive_driver(directory: str) -> Iterator[None]:
    """Keep other processes from a directory while this one works in it; makes the directory.

    Where an earlier process left its lease, its next sign of life is waited for, unless it ran on this machine and its
    lock is gone. A process that was silent for so long that another took over is interrupted.

    Raises ConfigError where another process works in it, or it cannot be written.
    """
    uri, token = join(directory, LEASE), uuid.uuid4().hex
    main = threading.current_thread() is threading.main_thread()
    me = threading.get_ident()
    fs, path = filesystem(uri)
    ended, lost = threading.Event(), threading.Event()

    def sign(beat: int) -> None:
        content = {"token": token, "machine": _machine(), "locked": locked, "beat": beat}
        content |= {"host": platform.node(), "pid": os.getpid()}
        with fs.open_output_stream(path) as stream:  # in place: a kill leaves no half of a second file
            stream.write(dump_json(content).encode())

    def mine() -> bool:
        return _json(uri).get("token", token) == token

    def sign_on() -> None:
        for beat in count(1):
            if ended.wait(HEARTBEAT):
                return
            with contextlib.suppress(OSError):  # the store may answer again at the next one
                # gone where there is no lock: another took over and ended, while this process slept
                if not mine() or not (locked or exists(uri)):
                    lost.set()
                    if main:
                        signal.pthread_kill(me, signal.SIGINT)
                    return
                sign(beat)

    try:
        if fs.type_name == "local":
            os.makedirs(os.path.dirname(path), exist_ok=True)
        with _lock(directory) as locked:
            _wait_for_heartbeat(uri, directory, locked)
            sign(0)
            if not locked:  # two may have come at once: the later one's lease stays
                time.sleep(HEARTBEAT / 5)
                if (other := _lease(uri)).get("token") != token:
                    raise _busy(directory, other)
            thread = threading.Thread(target=sign_on, daemon=True)
            thread.start()
            try:
                yield
            except KeyboardInterrupt:
                if lost.is_set():
                    raise ConfigError(f"{directory}: another process took over, as this one was silent") from None
                raise
            finally:
                ended.set()
                thread.join()
                with contextlib.suppress(OSError):
                    if not lost.is_set() and mine():
                        remove(uri)
    except OSError as error:
        if ended.is_set():  # it is the block's
            raise
        raise ConfigError(f"{directory}: cannot be written: {error}") from None


@contextlib.contextmanager
def _lock(directory: str) -> Iterator[bool]:
    """Hold the lock of a local directory; whether it could be had: some file systems and all stores have none."""
    fs, path = filesystem(directory)
    if fs.type_name != "local":
        yield False
        return
    handle = os.open(path, os.O_RDONLY)
    try:
        yield _flock(handle, directory)
    finally:
        os.close(handle)


def _flock(handle: int, directory: str) -> bool:
    until = time.monotonic() + GRACE
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() > until:
                raise _busy(directory, _lease(join(directory, LEASE))) from None
            time.sleep(GRACE / 20)
        except OSError:
            return False


def _wait_for_heartbeat(uri: str, directory: str, locked: bool) -> None:
    """Wait until an earlier process's lease is known to be dead. Raises ConfigError where it is alive."""
    if not exists(uri):
        return
    seen, other = read_bytes(uri), _lease(uri)
    if locked and other.get("locked") and other.get("machine") == _machine():
        return
    print(f"{directory}: {_who(other)} may be at work; {4 * HEARTBEAT:.0f} s to see")
    until = time.monotonic() + 4 * HEARTBEAT
    while time.monotonic() < until:
        time.sleep(HEARTBEAT / 5)
        if not exists(uri):
            return
        if read_bytes(uri) != seen:
            raise _busy(directory, _lease(uri) or other)


def _lease(uri: str) -> dict[str, Any]:
    """What a lease says; empty where there is none. One that is being renewed at this moment is read again."""
    for _ in range(20):
        if (content := _json(uri)) or not exists(uri):
            return content
        time.sleep(0.01)
    return {}


def _busy(directory: str, other: Mapping[str, Any]) -> ConfigError:
    return ConfigError(f"{directory}: {_who(other)} works on it; wait for its end, stop it, or choose another --out")


def _who(other: Mapping[str, Any]) -> str:
    return f"process {other['pid']} on {other['host']}" if other.keys() >= {"pid", "host"} else "another process"


def _machine() -> str:
    """The system that runs here; containers of one machine share it."""
    boot = Path("/proc/sys/kernel/random/boot_id")
    return boot.read_text().strip() if boot.exists() else f"{platform.node()}-{uuid.getnode()}"
