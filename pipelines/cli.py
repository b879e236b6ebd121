"""What all subcommands share: the recipe's fields on the command line, and errors as one line."""

from __future__ import annotations

from collections.abc import Sequence

from udaseg.config import Recipe
from udaseg.overrides import full_names


def spell_out(recipe: Recipe, argv: Sequence[str], own: set[str]) -> list[str]:
    """Repeat `--section.field value` for each stage that it stands for; `own` names the command's other options."""
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
        name = flag[2:].replace("-", "_")
        negated = name.rpartition(".")[2].startswith("no_")
        names = full_names(recipe, name.replace("no_", "", 1) if negated else name)
        for path in names:
            head, _, leaf = path.rpartition(".")
            spelled = f"{head}.{'no-' if negated else ''}{leaf}" if head else f"{'no-' if negated else ''}{leaf}"
            out += [f"--{spelled.replace('_', '-')}", *values]
    return out
