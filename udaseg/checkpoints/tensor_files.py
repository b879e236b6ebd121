"""Files of tensors, which anyone may have written: nothing in them is executed, or trusted before it is checked."""

from __future__ import annotations

import hashlib
import io
import json
import pickle
import re
import zipfile
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from udaseg.data.storage import filesystem, read_bytes
from udaseg.errors import CheckpointError

_MAX_HEADER = 1 << 24  # bytes
_REASONS = (
    ArithmeticError, AssertionError, AttributeError, EOFError, LookupError, OSError, RecursionError, RuntimeError,
    TypeError, ValueError, pickle.UnpicklingError, safetensors.SafetensorError, zipfile.BadZipFile,
)  # fmt: skip


def read_header(uri: str) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name, without memory: only the file's header is read.

    Raises CheckpointError, naming the file, where it has no such header or not as many bytes as that says.
    """
    try:
        fs, path = filesystem(uri)
        with fs.open_input_file(path) as file:
            size = file.size()
            length = int.from_bytes(file.read(8), "little")
            if not 2 <= length <= min(size - 8, _MAX_HEADER):
                raise ValueError("it does not begin with a header of tensors")
            header = json.loads(file.read(length))
        header.pop("__metadata__", None)
        tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
        expected = 8 + length + max(entry["data_offsets"][1] for entry in header.values())
        if size != expected:
            raise ValueError(f"it has {size:,} bytes, not {expected:,} as its header says")
    except _REASONS as error:
        raise CheckpointError(f"{uri}: cannot be read as safetensors: {_line(error)}") from error
    return tensors


def read_safetensors(uri: str, sha256: str | None = None) -> dict[str, Tensor]:
    """The tensors of a safetensors file by name.

    Raises CheckpointError, naming the file, where it cannot be read, or has another digest than that which is given.
    """
    read_header(uri)
    try:
        content = read_bytes(uri)
        tensors = safetensors.torch.load(content)
    except _REASONS as error:
        raise CheckpointError(f"{uri}: cannot be read as safetensors: {_line(error)}") from error
    if sha256 not in (None, hashlib.sha256(content).hexdigest()):
        raise CheckpointError(
            f"{uri}: other bytes than were saved, by weights_sha256 in its card; copy the model again, or take that "
            "out of the card if they were changed on purpose"
        )
    return tensors


def read_state(uri: str) -> dict[str, Any]:
    """What `torch.save` wrote, on the CPU: a dict with the tensors of "method" by name.

    Raises CheckpointError, naming the file, where it cannot be read, holds code, or tensors that a run does not write.
    """
    try:
        state = _load(uri)
        if not isinstance(state, dict) or not isinstance(state.get("method"), Mapping):
            raise ValueError("it has no method")
        for name, tensor in state["method"].items():
            if not isinstance(name, str) or not isinstance(tensor, Tensor):
                raise ValueError(f"method: {name!r} is no tensor")
    except _REASONS as error:
        raise CheckpointError(f"{uri}: not a checkpoint of tensors: {_line(error)}") from error
    return state


def read_torch(uri: str) -> Any:
    """What anyone's `torch.save` wrote, on the CPU; that before torch 1.6 wrote no archives.

    Numbers of NumPy, such as a best score, are let through.

    Raises CheckpointError, naming the file, where it cannot be read, holds code, or tensors that no network has.
    """
    try:
        with torch.serialization.safe_globals(_NUMBERS):
            return _load(uri, archive=False)
    except _REASONS as error:
        raise CheckpointError(f"{uri}: not a file of tensors: {_line(error)}") from error


_NUMBERS: list[Any] = [
    *((np.float64(0).__reduce__()[0], f"numpy.{core}.multiarray.scalar") for core in ("core", "_core")),
    np.dtype,
    *(type(np.dtype(name)) for name in ("float32", "float64", "int32", "int64")),
]


def _load(uri: str, archive: bool = True) -> Any:
    fs, path = filesystem(uri)
    with fs.open_input_file(path) as file:
        if archive or zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as entries:  # torch.save compresses nothing; a bomb is compressed
                if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries.infolist()):
                    raise ValueError("compressed, which torch.save's files are not")
            file.seek(0)
            content = torch.load(file, map_location="cpu", weights_only=True)
        else:
            file.seek(0)
            content = torch.load(io.BytesIO(file.read()), map_location="cpu", weights_only=True)
    for tensor in _tensors(content):
        if tensor.layout != torch.strided or tensor.is_quantized:
            raise ValueError("it has tensors that are sparse or quantised")
        if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
            raise ValueError("it has tensors larger than what is stored of them")
    return content


def require_finite(tensors: Mapping[str, Tensor], uri: str) -> None:
    """Raise CheckpointError, naming file and tensor, where a value is NaN or infinite."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{uri}: {name} holds NaN or infinite values, so that nothing can be predicted; "
                "its training went astray: use an earlier checkpoint"
            )


def _tensors(value: Any) -> Iterator[Tensor]:
    """Every tensor in nested dicts and lists."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from _tensors(part)
    elif isinstance(value, list | tuple | set):
        for part in value:
            yield from _tensors(part)


def _line(error: BaseException) -> str:
    """The reason in a line: of an error of torch's without its advice to load the file nevertheless."""
    if found := re.search(r"GLOBAL ([\w.]+)", str(error)):
        return (
            f"it holds an object, {found[1]}, whose making would run code, and only tensors are read; "
            "where you trust the file, save its state_dict alone with the library that wrote it"
        )
    if isinstance(error, pickle.UnpicklingError):
        return "torch.save did not write it"
    line = (str(error).strip().splitlines() or [type(error).__name__])[0]
    return "too few bytes" if line == "Invalid position" else line.partition(". ")[0]
