"""What all subcommands share: the recipe's fields on the command line, and errors as one line."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import io
import itertools
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from types import FrameType
from typing import TYPE_CHECKING, Any, TypeVar

import tyro

from udaseg.errors import CheckpointError, ConfigError, DatasetError, TrainingError, UnreachableError

if TYPE_CHECKING:
    from udaseg.config import Recipe

T = TypeVar("T")

_OF_ONE_DATASET = ("--source", "--target", "--dataset")


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
            word, number = ("terminated", signal.SIGTERM) if terminated.is_set() else ("interrupted", signal.SIGINT)
            return _say(f"{word}: what is written stays; --resume, where there is one, goes on", 128 + number)
        except BrokenPipeError:  # whoever reads what is printed has seen enough, as `head`
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # of which Python closes the rest quietly
            return 128 + signal.SIGPIPE
        except (ConfigError, DatasetError, CheckpointError, TrainingError, OSError) as error:
            if verbose:
                traceback.print_exc()
            return _say(f"error: {error}", 1 if isinstance(error, TrainingError | UnreachableError) else 2)
        except Exception as error:
            if verbose or type(error).__name__ != "OutOfMemoryError":  # torch's, which is not imported for it
                raise
            return _say(f"error: {str(error).partition('. ')[0]}", 1)
        return 0

    return main


def _say(text: str, code: int) -> int:
    print(text, file=sys.stderr)
    return code


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


def parse_arguments(of: Callable[..., T], argv: Sequence[str], **how: Any) -> T:
    """`tyro.cli`, but words that it cannot use, for which it draws a box and exits, raise ConfigError in a line.

    So does an option of a dataset that is given twice, of which it takes the last.
    """
    given = [word.partition("=")[0] for word in argv]
    if twice := [name for name in _OF_ONE_DATASET if given.count(name) > 1]:
        raise ConfigError(f"{twice[0]}: given twice; `udaseg join` makes one dataset of several")
    shown = io.StringIO()
    helps = bool({"-h", "--help"} & set(argv))
    try:
        with contextlib.redirect_stderr(shown), contextlib.nullcontext() if helps else _plain_terminal():
            return tyro.cli(of, args=argv, **how)
    except SystemExit as stop:
        if not stop.code:
            raise
        raise ConfigError(_said_in(shown.getvalue())) from None


@contextlib.contextmanager
def _plain_terminal() -> Iterator[None]:
    """Meanwhile, have what asks the environment find a terminal without colours, so wide that no line is wrapped."""
    terminal = {"COLUMNS": "1000000", "TERM": "dumb"}
    before = {name: os.environ.get(name) for name in terminal}
    os.environ.update(terminal)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


def _said_in(box: str) -> str:
    """The text of one of tyro's boxes in a line: what is wrong, with which option, and what is accepted or is near."""
    sections: list[list[str]] = [[]]
    for line in box.splitlines()[1:-1]:
        text = line.strip("│ ")
        if text and not text.strip("─-"):  # a rule; of hyphens, and one more, where output is no Unicode
            sections.append([])
        else:
            sections[-1].append(text)
    sections = [section for section in sections if section]
    parts = [" ".join(itertools.takewhile(bool, sections[0]))]  # a blank line leads to reasons in Python's words
    near: dict[str, None] = {}
    for heading, *lines in sections[1:]:
        if heading == "Argument helptext:":
            parts.append(f"accepted: {lines[0]}")
        elif heading.startswith(("Perhaps you meant", "Arguments similar")):
            near |= dict.fromkeys(line.split()[0].rstrip(",") for line in lines if line.startswith("--"))
        else:
            parts.append(" ".join([heading, *lines]).removeprefix("For full helptext, ").replace("run:", "run"))
    if near:
        parts.insert(1, f"did you mean {', '.join(near)}?")
    return "; ".join(part.removesuffix(".") for part in parts)


def spell_out(recipe: Recipe, argv: Sequence[str], own: set[str]) -> list[str]:
    """Repeat `--section.field value` for each stage that it stands for; `own` names the command's other options.

    Raises ConfigError for a field that the recipe does not have.
    """
    from udaseg.overrides import full_names, leaves

    fields = dict(leaves(dataclasses.asdict(recipe)))
    out: list[str] = []
    groups: list[list[str]] = []
    for word in argv:
        if word.startswith("--") or not groups:
            groups.append([word])
        else:
            groups[-1].append(word)
    flags = {"--help", "-h"} | {f"--{no}{name}" for name in own for no in ("", "no-")}
    for given, *values in groups:
        given, equals, value = given.partition("=")
        flag = re.sub(r"^--no[-_](.+)\.", r"--\1.no-", given)  # --no-model.pretrained for --model.no-pretrained
        values = [value, *values] if equals else values
        if not flag.startswith("--") or flag in flags or flag.startswith("--cluster."):
            out += [flag, *values]
            continue
        section, dot, leaf = flag[2:].replace("-", "_").rpartition(".")
        positive = leaf.removeprefix("no_")
        no = "" if positive == leaf else "no-"
        for path in full_names(recipe, f"{section}{dot}{positive}"):
            head, dots, name = path.rpartition(".")
            if isinstance(fields[path], bool) and values and values[0].lower() in ("true", "false"):
                forms = f"--{section}{dot}{positive} or --{section}{dot}no-{positive}".replace("_", "-")
                raise ConfigError(f"{given} {values[0]}: a switch takes no value; give {forms}")
            out += [f"--{head}{dots}{no}{name}".replace("_", "-"), *values]
    return out
