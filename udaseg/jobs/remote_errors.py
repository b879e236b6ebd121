"""What was raised on another process or node, as one line here."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator

import ray
from ray.data.exceptions import SystemException
from ray.exceptions import RayError, RayTaskError
from ray.train import TrainingFailedError

from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError

OURS = (ConfigError, DatasetError, CheckpointError, TrainingError)
REMOTE = (RayError, SystemException, TrainingFailedError)
"""What Ray raises here for what was raised elsewhere, or was lost."""
_ADVICE = "Failed to apply UDF transform after"
"""What Ray Data appends to a message, and to an OSError as the name of its file."""


@contextlib.contextmanager
def plain_errors() -> Iterator[None]:
    """Around all that drives Ray: what remote code raised is raised here as one line, with the node it came from.

    An error of ours stays what it is, and so does that of a file. Any other, such as that of a process that was lost,
    becomes a TrainingError.
    """
    try:
        yield
    except Exception as error:
        if not isinstance(error, REMOTE):
            raise
        raise plain_error(error) from error


def plain_error(error: BaseException) -> Exception:
    """What an error that Ray raised here was there: one of ours, of files, or a TrainingError with its first line."""
    if (own := own_error(error)) is not None:
        return own
    last, node = [(inner, on) for inner, on in _inside(error) if not isinstance(inner, SystemException)][-1]
    if isinstance(last, OSError) and last.errno is not None:  # a full disk, say
        name = str(last.filename or "")
        named = "" if not name or name.startswith(_ADVICE) else f": {name!r}"
        return OSError(last.errno, f"{last.strerror}{named}{on_node(node)}")
    return TrainingError(f"{first_line(last)}{on_node(node)}; --verbose for the whole traceback")


def own_error(error: BaseException, node: str = "") -> Exception | None:
    """The error of ours that an error is or was raised by, with the node it came from; None where there is none.

    `node` is what is said where the error does not know.
    """
    for inner, known in _inside(error):
        if isinstance(inner, OURS) and not isinstance(inner, RayTaskError):
            message = str(inner).partition(f"\n{_ADVICE}")[0]
            inner.args = (message + on_node(known or node), *inner.args[1:])
            return inner
    return None


def _inside(error: BaseException, node: str = "") -> Iterator[tuple[BaseException, str]]:
    """An error and all that it was raised by, outermost first, each with the node that it came from."""
    node = _node_of(error) or node
    yield error, node
    names = ("cause", "controller_failure", "_base_exc", "health_check_failure", "__cause__")
    for inner in (*(getattr(error, name, None) for name in names), *getattr(error, "worker_failures", {}).values()):
        if isinstance(inner, BaseException):
            yield from _inside(inner, node)


def _node_of(error: BaseException) -> str:
    """The address that a task's error names in its text, and nowhere else; the innermost comes last."""
    return (re.findall(r"\bip=([^,)\s]+)", str(error)) or [""])[-1] if isinstance(error, RayTaskError) else ""


def first_line(error: BaseException) -> str:
    """What an error says, in a line."""
    text = (str(error).strip() or repr(error)).splitlines()[0]
    return text if isinstance(error, RayError | SystemExit) else f"{type(error).__name__}: {text}"


def on_node(node: str) -> str:
    """Which node it was, where the cluster has several."""
    return f" (on node {node})" if node and ray.is_initialized() and len(ray.nodes()) > 1 else ""
