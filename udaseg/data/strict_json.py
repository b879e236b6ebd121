"""JSON from outside, read strictly, and JSON that everybody can read."""

from __future__ import annotations

import json
import math
from typing import Any

from udaseg.errors import DatasetError


def parse_json(content: bytes | str, origin: str) -> Any:
    """The value of a JSON text in UTF-8.

    Raises DatasetError, naming `origin`, for any other text, and where a name occurs twice in an object, a number is
    not finite or the nesting is too deep.
    """

    def entries(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            names = [name for name, _ in pairs]
            twice = next(name for name in names if names.count(name) > 1)
            raise DatasetError(f"{origin}: {twice!r} is there twice; leave one of both out")
        return found

    def number(text: str) -> float:
        value = float(text)  # "NaN" and "Infinity", which Python's reader takes, and 1e999
        if not math.isfinite(value):
            raise DatasetError(f"{origin}: {text[:20]} is no number of JSON; write a finite one")
        return value

    if not content.strip():
        raise DatasetError(f"{origin}: an empty file; was it copied whole?")
    if isinstance(content, bytes):
        if content.startswith((b"\xef\xbb\xbf", b"\xff\xfe", b"\xfe\xff")):
            raise DatasetError(f"{origin}: begins with a byte order mark; save it as UTF-8 without one")
        try:
            content = content.decode()
        except UnicodeDecodeError as error:
            raise DatasetError(
                f"{origin}: not a text file in UTF-8 (byte {error.start + 1}); save it as UTF-8"
            ) from None
    try:
        return json.loads(content, object_pairs_hook=entries, parse_float=number, parse_constant=number)
    except DatasetError:
        raise
    except json.JSONDecodeError as error:
        raise DatasetError(f"{origin}: not JSON: {error}") from None
    except ValueError:  # Python's limit
        raise DatasetError(f"{origin}: not JSON: a number of thousands of digits") from None
    except RecursionError:
        raise DatasetError(f"{origin}: nested too deeply for what it should be") from None


def dump_json(value: Any, *, indent: int | None = None) -> str:
    """The JSON of a value; a number that is not finite, for which JSON has no word, becomes null."""
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value
