"""What may pass is tried again; what does not is said at once."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from udaseg.data import storage
from udaseg.data.images import read_image
from udaseg.data.storage import reach, read_bytes, to_uri, to_uris, write_bytes, writer
from udaseg.errors import DatasetError, UnreachableError


def failing(times: int, error: OSError, calls: list[int]) -> bytes:
    calls.append(1)
    if len(calls) <= times:
        raise error
    return b"here"


STALE = OSError(errno.ESTALE, "Stale file handle")


def test_a_passing_failure_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "WAITS", (0, 0))
    calls: list[int] = []
    assert reach("s3://b/a", lambda: failing(2, STALE, calls)) == b"here"
    with pytest.raises(UnreachableError, match=r"s3://b/a: could not be reached: .*Stale"):
        reach("s3://b/a", lambda: failing(9, STALE, []))


@pytest.mark.parametrize("number", [errno.ENOENT, errno.EACCES, errno.EISDIR, errno.ENAMETOOLONG])
def test_a_lasting_failure_is_not(number: int) -> None:
    calls: list[int] = []
    with pytest.raises(OSError, match="lasting") as raised:
        reach("a", lambda: failing(1, OSError(number, "lasting"), calls))
    assert len(calls) == 1 and not isinstance(raised.value, UnreachableError)


def test_what_is_missing_and_what_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_bytes(str(tmp_path / "a.png"))
    with pytest.raises(DatasetError, match=r"a.png: cannot be read: no such file") as raised:
        read_image(str(tmp_path / "a.png"))
    assert not isinstance(raised.value, UnreachableError)
    with pytest.raises(UnreachableError, match=r"far/a.png: could not be reached: neither it nor its folder"):
        read_image(str(tmp_path / "far" / "a.png"))
    with pytest.raises(DatasetError, match=r"cannot be read: .* is a directory"):
        read_image(str(tmp_path))


def test_paths_of_pathlib_are_taken_and_broken_uris_are_not() -> None:
    assert to_uris(Path("a/b")) == to_uris("a/b") == to_uris([Path("a/b")]) == ["a/b"]
    assert to_uri(None) is None and to_uri("s3://bucket/a") == "s3://bucket/a"
    with pytest.raises(DatasetError, match=r"s3:/bucket/a: pathlib drops a slash"):
        to_uri(Path("s3://bucket/a"))


def test_a_file_may_have_the_longest_name(tmp_path: Path) -> None:
    write_bytes(str(tmp_path / ("x" * 255)), b"all of it")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"all of it"]


@pytest.mark.parametrize("apart", [False, True])
def test_a_file_is_there_whole_or_as_it_was(apart: bool, tmp_path: Path) -> None:
    file, scratch = tmp_path / "folder" / "a.json", tmp_path / "scratch"
    where = {"scratch": str(scratch)} if apart else {}
    write_bytes(str(file), b"before")
    with pytest.raises(RuntimeError, match="cut off"), writer(str(file), **where) as stream:
        stream.write(b"aft")
        stream.flush()
        assert file.read_bytes() == b"before"
        raise RuntimeError("cut off")
    assert file.read_bytes() == b"before" and list(file.parent.iterdir()) == [file]
    assert not scratch.exists() or not list(scratch.iterdir())
    with writer(str(file), **where) as stream:
        stream.write(b"after")
    assert file.read_bytes() == b"after" and list(file.parent.iterdir()) == [file]
