"""Files at local paths and URIs: reading, writing whole or not at all, listing."""

from __future__ import annotations

import contextlib
import errno
import os
import posixpath
import re
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from typing import TypeVar, overload
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from udaseg.errors import DatasetError, UnreachableError
from udaseg.types import Location

WAITS = (0.1, 0.4, 1.0)
"""Seconds between tries to reach a file that cannot be reached, see `reach`."""


_REFUSED = ("ACCESS_DENIED", "INVALID_ACCESS_KEY", "SIGNATURE", "PERMISSION_DENIED", "UNAUTHENTICATED")
_REFUSED_STATUS = re.compile(r"HTTP status 40[013]\b")  # 400: an expired token
"""What a store says, in Arrow's words, to credentials that it does not take."""

_LASTING = {errno.EISDIR, errno.ENOTDIR, errno.EACCES, errno.EPERM, errno.ENAMETOOLONG, errno.ELOOP, errno.EINVAL}

Result = TypeVar("Result")


@lru_cache(maxsize=64)
def _filesystem_root(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(uri)
    except ValueError as error:  # pa.ArrowInvalid: a scheme that Arrow does not know, a malformed URI
        raise DatasetError(f"{uri}: {error}") from None


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI or local path (made absolute), and the path within it. DatasetError for a bad one."""
    if "\0" in uri or uri != utf8(uri):
        raise DatasetError(f"{utf8(uri)!r}: a name that is not UTF-8, or holds a zero byte; rename it")
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    # One filesystem, hence one pool of connections, serves all URIs of a bucket.
    address, mark, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    host, _, key = rest.partition("/")
    if key.startswith("/"):
        raise DatasetError(f"{uri}: two slashes after the bucket's name")
    if scheme == "s3" and "allow_delayed_open=" not in query:  # one request a small object, not three
        mark, query = "?", "&".join([*filter(None, [query]), "allow_delayed_open=true"])
    fs, root = _filesystem_root(f"{scheme}://{host}/{mark}{query}")
    return fs, posixpath.join(root, unquote(key)).rstrip("/") or root


def utf8(name: str) -> str:
    r"""A name as it is, but with bytes that are not UTF-8 as \xe9."""
    if name.isascii():
        return name
    try:
        return name.encode(errors="surrogateescape").decode(errors="backslashreplace")
    except UnicodeEncodeError:  # half a character, of a JSON text
        return name.encode(errors="backslashreplace").decode()


@overload
def to_uri(location: Location) -> str: ...


@overload
def to_uri(location: Location | None) -> str | None: ...


def to_uri(location: Location | None) -> str | None:
    """A path of pathlib's as text, a path or URI as it is. DatasetError for a URI that pathlib has made a path of."""
    if location is None:
        return None
    uri = os.fspath(location)
    if uri is not location and re.match(r"[a-z0-9+]{2,}:/", uri):
        raise DatasetError(f"{uri}: pathlib drops a slash of a URI; give it as text")
    return uri


def to_uris(locations: Location | Sequence[Location]) -> list[str]:
    """Each of them `to_uri`; one alone is a list of one."""
    return [*map(to_uri, [locations] if isinstance(locations, str | os.PathLike) else locations)]


def absolute(location: Location) -> str:
    """A URI as it is, a path made absolute."""
    uri = to_uri(location)
    return uri if "://" in uri else os.path.abspath(uri)


def join(base: str, *parts: str) -> str:
    """`parts`, plain paths, below `base`; where it is a URI they are quoted, and its ?query stays at the end."""
    if "://" not in base:
        return posixpath.join(base, *parts)
    if base.endswith("://"):  # the first part would become a bucket
        raise DatasetError(f"{base}: names no bucket")
    address, mark, query = base.partition("?")
    return posixpath.join(address, *map(quote, parts)) + mark + query


def resolve(uri: str, base: str) -> str:
    """A manifest's URI as an address of its own: relative ones are below `base`, the dataset directory."""
    return uri if "://" in uri or uri.startswith("/") else join(base, uri)


def reach(uri: str, action: Callable[[], Result]) -> Result:
    """What `action` returns, which is tried again where a file cannot be reached.

    Raises:
        UnreachableError: it still cannot: a stale mount, a network, a store that is down.
        OSError: what no wait mends: no such file, no permission, a folder in place of a file; PermissionError where a
            store refuses the credentials.
    """
    for wait in (*WAITS, None):
        try:
            return action()
        except OSError as error:
            if _is_refused(error):
                raise PermissionError(
                    f"{uri}: the store refuses it, see to this machine's credentials and what they allow: "
                    f"{str(error).partition(chr(10))[0]}"
                ) from None
            if not _passes(error):
                raise
            if wait is None:
                raise UnreachableError(f"{uri}: could not be reached: {str(error).partition(chr(10))[0]}") from None
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _is_refused(error: OSError) -> bool:
    text = str(error)
    return error.errno is None and bool(any(word in text for word in _REFUSED) or _REFUSED_STATUS.search(text))


def _passes(error: OSError) -> bool:
    """Whether what failed may succeed later."""
    lasting = isinstance(error, FileNotFoundError) or error.errno in _LASTING or "is a directory" in str(error)
    return not lasting


def exists(uri: str) -> bool:
    """Whether a file or directory stands at `uri`. Raises UnreachableError as `reach` does."""
    fs, path = filesystem(uri)
    return reach(uri, lambda: fs.get_file_info(path).type != pafs.FileType.NotFound)


def require_directory(uri: str) -> None:
    """Raise DatasetError where there is nothing at `uri`, so that nobody looks for what it should hold."""
    if not exists(uri):
        raise DatasetError(f"{uri}: no such directory")


def version(uri: str) -> tuple[int, int]:
    """Size in bytes and time of change of a file, so that what is cached of it is not used of another."""
    fs, path = filesystem(uri)
    info = reach(uri, lambda: fs.get_file_info(path))
    return info.size or 0, info.mtime_ns or 0


def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
    """The whole file at `uri`.

    Raises FileNotFoundError, naming it, where there is none, UnreachableError as `reach` does, and DatasetError where
    it has more than `limit` bytes.
    """
    fs, path = filesystem(uri)

    def read() -> bytes:
        with fs.open_input_file(path) as file:
            if limit is not None and file.size() > limit:
                raise DatasetError(f"{file.size():,} bytes; files of more than {limit:,} are not read")
            content: bytes = file.read()
            return content

    return reach(uri, read)


def write_bytes(uri: str, content: bytes, *, scratch: str | None = None) -> None:
    """Write a whole file, visible under its name only when complete; makes its directory.

    A local file is first written elsewhere, in the folder `scratch` of the same filesystem or beside its place, under a
    name of its own, so that two writers of the same file cannot mix. In a store it is tried as `reach` does.
    """

    def write() -> None:
        with writer(uri, scratch=scratch) as stream:
            stream.write(content)

    if "://" in uri:
        reach(uri, write)
    else:
        write()


@contextlib.contextmanager
def writer(uri: str, *, scratch: str | None = None) -> Iterator[pa.NativeFile]:
    """An output stream to a file that appears as in `write_bytes`, when the block ends without an error.

    In a store what was written until an error is left: Arrow's streams end an upload, and cannot give one up.
    """
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):  # object stores have no folders, and show no half of an object
        with fs.open_output_stream(path) as stream:
            yield stream
        return
    folder = posixpath.dirname(path)
    os.makedirs(folder, exist_ok=True)
    if scratch is not None:
        os.makedirs(scratch, exist_ok=True)
    temporary = posixpath.join(scratch or folder, f"{uuid.uuid4().hex}.tmp")  # a name may be as long as is allowed
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        if isinstance(error, OSError) and error.errno is not None:  # Arrow does not say which file
            raise OSError(error.errno, f"{os.strerror(error.errno)}: {path!r}") from error
        raise


def children(uri: str) -> list[pafs.FileInfo]:
    """The files and folders in a folder, none where it does not exist. Raises OSError where it cannot be listed.

    Left out: local names that are not UTF-8, and links to nothing.
    """
    fs, path = filesystem(uri)
    # One level of a Google bucket, as Arrow lists it, lacks the folders that no object stands for (apache/arrow#35993).
    all_below = fs.type_name == "gcs"
    selector = pafs.FileSelector(path, allow_not_found=True, recursive=all_below)
    infos = reach(uri, lambda: fs.get_file_info(selector))
    if not all_below:
        return [info for info in infos if _is_utf8(info)]
    named = [(info, info.path[len(path) + 1 :]) for info in infos]
    files = [info for info, name in named if info.is_file and "/" not in name]
    folders = dict.fromkeys(name.partition("/")[0] for info, name in named if "/" in name or not info.is_file)
    return [*files, *(pafs.FileInfo(posixpath.join(path, name), pafs.FileType.Directory) for name in folders)]


def _is_utf8(info: pafs.FileInfo) -> bool:
    try:
        return bool(info.path)
    except UnicodeDecodeError:
        return False


def remove_folder(uri: str) -> None:
    """Delete the folder at `uri` and all that is in it, where there is one."""
    fs, path = filesystem(uri)
    if fs.type_name == "local":
        if os.path.exists(path):
            fs.delete_dir(path)
    else:  # stores have no folders, of which Google's would miss one here
        fs.delete_dir_contents(path, missing_dir_ok=True)


def remove(uri: str) -> None:
    """Delete the file at `uri` where there is one."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_file(path)
