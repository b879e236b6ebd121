"""What all subcommands share: the recipe's fields on the command line, and errors as one line."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING

from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError, UnreachableError

if TYPE_CHECKING:
    from udaseg.config import Recipe

_MAX_CONFIG = 1 << 20  # bytes


def command(run: Callable[[Sequence[str]], None]) -> Callable[..., int]:
    """A subcommand's entry point, `main(argv=None) -> exit code`: 2 for input that cannot be used, 1 for lost work.

    130 after Ctrl-C, 143 after SIGTERM. An error is one line; --verbose or UDASEG_VERBOSE=1 shows its traceback first.
    """

    @functools.wraps(run)
    def main(argv: Sequence[str] | None = None) -> int:
        words = list(sys.argv[1:] if argv is None else argv)
        verbose = "--verbose" in words or os.environ.get("UDASEG_VERBOSE", "0") != "0"
        terminated = threading.Event()
        try:
            with _sigterm_as_ctrl_c(terminated):
                run([word for word in words if word != "--verbose"])
        except KeyboardInterrupt:
            word = "terminated" if terminated.is_set() else "interrupted"
            print(
                f"{word}: what is done stays; --resume, or where there is none the same command, goes on",
                file=sys.stderr,
            )
            return 128 + (signal.SIGTERM if terminated.is_set() else signal.SIGINT)
        except (ConfigError, DatasetError, CheckpointError, TrainingError, UnreachableError, OSError) as error:
            if verbose:
                traceback.print_exc()
            print(f"error: {error}", file=sys.stderr)
            return 1 if isinstance(error, TrainingError | UnreachableError) else 2
        return 0

    return main


@contextlib.contextmanager
def _sigterm_as_ctrl_c(terminated: threading.Event) -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does meanwhile, so that a scheduler's end of a command is as orderly."""

    def terminate(number: int, frame: FrameType | None) -> None:
        terminated.set()
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):  # a shell's background job ignores Ctrl-C
            raise KeyboardInterrupt
        handler(number, frame)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def recipe_file(uri: str) -> Recipe:
    """The recipe of a run's config.json, or of a sweep's best.json. Raises ConfigError, naming the file."""
    from udaseg.data.storage import read_bytes
    from udaseg.overrides import from_json
    from udaseg.recipes import RECIPES

    try:
        text = read_bytes(uri, limit=_MAX_CONFIG).decode()
        raw = json.loads(text)
    except (OSError, DatasetError) as error:
        raise ConfigError(f"{uri}: cannot be read, give a run's config.json ({error})") from None
    except (ValueError, RecursionError) as error:  # not UTF-8, or no JSON
        raise ConfigError(f"{uri}: not JSON, give a run's config.json ({error})") from None
    return from_json(json.dumps(raw["recipe"]) if isinstance(raw, dict) and "recipe" in raw else text, RECIPES, uri)


def spell_out(recipe: Recipe, argv: Sequence[str], own: set[str]) -> list[str]:
    """Repeat `--section.field value` for each stage that it stands for; `own` names the command's other options.

    Raises ConfigError for a field that the recipe does not have.
    """
    from udaseg.overrides import full_names

    out: list[str] = []
    groups: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    flags = {"--help", "-h"} | {f"--{no}{name}" for name in own for no in ("", "no-")}
    for flag, *values in groups:
        flag, equals, value = flag.partition("=")
        values = [value, *values] if equals else values
        if not flag.startswith("--") or flag in flags or flag.startswith("--cluster."):
            out += [flag, *values]
            continue
        section, dot, leaf = flag[2:].replace("-", "_").rpartition(".")
        positive = leaf.removeprefix("no_")
        no = "" if positive == leaf else "no-"
        for path in full_names(recipe, f"{section}{dot}{positive}"):
            head, dots, name = path.rpartition(".")
            out += [f"--{head}{dots}{no}{name}".replace("_", "-"), *values]
    return out
