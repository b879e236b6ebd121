"""The console command `udaseg`: its subcommands are the modules of this package."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import keyword
import sys

COMMANDS = {
    "adapt": "adapt a network to a target without labels, and say whether it helped",
    "prepare": "check folders of images and labels, and write a dataset",
    "join": "one dataset of several, such as several sources",
    "inspect": "what is in datasets, and what is doubtful about them, as a page",
    "train": "run a recipe: train, pseudo-label, train again",
    "watch": "a run that trains elsewhere, until it has ended",
    "predict": "label maps of a few images, at once",
    "evaluate": "IoU of a checkpoint on a labelled dataset",
    "sweep": "search a recipe's settings on Ray Tune",
    "pseudo-label": "label images with a checkpoint",
    "export": "a model as one file that runs without udaseg",
    "import": "a model directory of a checkpoint that another repository published",
    "demo": "the whole chain on an embedded pair of domains, with a report",
}


def main() -> int:
    """Run a subcommand; returns its exit code."""
    words = sys.argv[1:]
    if words[:1] == ["--verbose"]:  # each command knows it
        words = [*words[1:], "--verbose"]
    name = words[0] if words else ""
    if name and not name.startswith("-") and name not in COMMANDS:
        near = difflib.get_close_matches(name, COMMANDS)
        hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(COMMANDS)}"
        print(f"error: no command {name!r}; {hint}", file=sys.stderr)
        return 2
    if name == "--version":
        print(f"udaseg {importlib.metadata.version('udaseg')}")
        return 0
    if name not in COMMANDS:
        print("usage: udaseg [--verbose] COMMAND [options], udaseg --version\n", file=sys.stderr)
        for command, what in COMMANDS.items():
            print(f"  {command:14}{what}", file=sys.stderr)
        return 0 if name in ("-h", "--help") else 2
    file = f"{name}_" if keyword.iskeyword(name) else name.replace("-", "_")
    module = importlib.import_module(f"pipelines.{file}")
    code: int = module.main(words[1:])
    return code


if __name__ == "__main__":
    sys.exit(main())
