"""Files at local paths and URIs: reading, writing whole or not at all, listing."""

from __future__ import annotations

import contextlib
import os
import posixpath
import uuid
from collections.abc import Iterator
from functools import lru_cache
from urllib.parse import quote, unquote

import pyarrow as pa
import pyarrow.fs as pafs

from udaseg.errors import DatasetError


@lru_cache(maxsize=64)
def _filesystem_root(uri: str) -> tuple[pafs.FileSystem, str]:
    try:
        return pafs.FileSystem.from_uri(uri)
    except ValueError as error:  # pa.ArrowInvalid: a scheme that Arrow does not know, a malformed URI
        raise DatasetError(f"{uri}: {error}") from None


def filesystem(uri: str) -> tuple[pafs.FileSystem, str]:
    """The filesystem of a URI or local path (made absolute), and the path within it. DatasetError for a bad URI."""
    if "://" not in uri:
        return pafs.LocalFileSystem(), os.path.abspath(uri)
    # One filesystem, hence one pool of connections, serves all URIs of a bucket.
    address, mark, query = uri.partition("?")
    scheme, _, rest = address.partition("://")
    host, _, key = rest.partition("/")
    fs, root = _filesystem_root(f"{scheme}://{host}/{mark}{query}")
    return fs, posixpath.join(root, unquote(key)).rstrip("/") or root


def absolute(uri: str) -> str:
    """A URI as it is, a path made absolute."""
    return uri if "://" in uri else os.path.abspath(uri)


def join(base: str, *parts: str) -> str:
    """`parts`, plain paths, below `base`; where it is a URI they are quoted, and its ?query stays at the end."""
    if "://" not in base:
        return posixpath.join(base, *parts)
    address, mark, query = base.partition("?")
    return posixpath.join(address, *map(quote, parts)) + mark + query


def resolve(uri: str, base: str) -> str:
    """A manifest's URI as an address of its own: relative ones are below `base`, the dataset directory."""
    return uri if "://" in uri or uri.startswith("/") else join(base, uri)


def exists(uri: str) -> bool:
    """Whether a file or directory stands at `uri`."""
    fs, path = filesystem(uri)
    return fs.get_file_info(path).type != pafs.FileType.NotFound


def read_bytes(uri: str, *, limit: int | None = None) -> bytes:
    """The whole file at `uri`.

    Raises FileNotFoundError, naming it, where there is none, and DatasetError where it has more than `limit` bytes.
    """
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as file:
        if limit is not None and file.size() > limit:
            raise DatasetError(f"{file.size():,} bytes; files of more than {limit:,} are not read")
        return file.read()


def write_bytes(uri: str, content: bytes, *, scratch: str | None = None) -> None:
    """Write a whole file, visible under its name only when complete; makes its directory.

    A local file is first written elsewhere, in the folder `scratch` of the same filesystem or beside its place, under a
    name of its own, so that two writers of the same file cannot mix.
    """
    with writer(uri, scratch=scratch) as stream:
        stream.write(content)


@contextlib.contextmanager
def writer(uri: str, *, scratch: str | None = None) -> Iterator[pa.NativeFile]:
    """An output stream to a file that appears as in `write_bytes`, when the block ends without an error."""
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):  # object stores have no folders, and show no half of an object
        with fs.open_output_stream(path) as stream:
            yield stream
        return
    folder, name = posixpath.split(path)
    os.makedirs(folder, exist_ok=True)
    if scratch is not None:
        os.makedirs(scratch, exist_ok=True)
        name = ""  # a name of an image fills what a filesystem allows
    temporary = posixpath.join(scratch or folder, f"{name}{uuid.uuid4().hex}.tmp")
    try:
        with fs.open_output_stream(temporary) as stream:
            yield stream
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.remove(temporary)
        raise


def children(uri: str) -> list[pafs.FileInfo]:
    """The files and folders in a folder, none where it does not exist. Raises OSError where it cannot be listed."""
    fs, path = filesystem(uri)
    if fs.type_name != "gcs":
        return fs.get_file_info(pafs.FileSelector(path, allow_not_found=True))
    # One level of a Google bucket, as Arrow lists it, lacks the folders that no object stands for (apache/arrow#35993).
    infos = fs.get_file_info(pafs.FileSelector(path, allow_not_found=True, recursive=True))
    named = [(info, info.path[len(path) + 1 :]) for info in infos]
    files = [info for info, name in named if info.is_file and "/" not in name]
    folders = dict.fromkeys(name.partition("/")[0] for info, name in named if "/" in name or not info.is_file)
    return [*files, *(pafs.FileInfo(posixpath.join(path, name), pafs.FileType.Directory) for name in folders)]


def remove(uri: str) -> None:
    """Delete the file at `uri` where there is one."""
    fs, path = filesystem(uri)
    if fs.get_file_info(path).type != pafs.FileType.NotFound:
        fs.delete_file(path)
