"""Tables on the terminal. What stands in a cell is text: no markup, no emoji code, nothing that steers a terminal."""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table
from rich.text import Text

_UNPRINTABLE = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def printable(text: str) -> str:
    r"""The text with control characters, and bytes of a file's name that are not UTF-8, written as \x1b or \udcff."""
    return _UNPRINTABLE.sub(lambda found: ascii(found[0])[1:-1], text)


def cell(text: str) -> Text:
    """A table's cell, head or title, as it is."""
    return Text(printable(text))


def show(table: Table) -> None:
    """Print a table of cells."""
    Console(markup=False, emoji=False, highlight=False).print(table)
