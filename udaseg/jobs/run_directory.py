"""What lies in a run's directory, read without Ray and torch.

config.json, metrics.jsonl, model/
stages/<i>-<name>/          checkpoint_<step>/ as Ray Train keeps them, and model/ when the stage is done
pictures/<i>-<name>/        <step>.png of every checkpoint, where the stage reads a target
pseudo_labels/<i>-<name>/   of a stage that is trained on such
translated/<i>-<name>/      the source in the target's look, likewise
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import accumulate
from typing import Any, NamedTuple

from udaseg.data.storage import children, exists, join, read_bytes
from udaseg.data.strict_json import parse_json
from udaseg.errors import CheckpointError, ConfigError
from udaseg.jobs.ledger import Ledger
from udaseg.jobs.output import NOUNS, owner_of

CARD = "model.json"
"""Of a model directory that is whole, see `udaseg.checkpoints.directory`."""
METRICS = "metrics.jsonl"
"""What a run has measured, a row for each logged step and each checkpoint that was scored."""
SNAPSHOT = "checkpoint_manager_snapshot.json"
"""Ray Train's list of the checkpoints that it keeps of a stage, in the stage's directory."""
_NAMED = 8  # runs
_MADE_BEFORE = (
    ("pseudo_labels", "pseudo-labels", ("predict", "label")),
    ("translated", "translated source", ("translate",)),
)
"""Of a stage: folders, what they hold, and the passes of the job that makes it."""


class StageSteps(NamedTuple):
    """A stage of a run, from its configuration."""

    folder: str
    """`<number>-<name>`."""
    steps: int


def read_stages(run: str) -> list[StageSteps]:
    """The stages of the run in a directory; none where it has only just begun.

    Raises ConfigError where it holds no run, naming the runs below it.
    """
    uri = join(run, "config.json")
    if not exists(uri):
        if owner_of(run) == "train":
            return []
        raise ConfigError(_no_run(run))
    content = parse_json(read_bytes(uri), uri)
    try:
        stages = content["recipe"]["stages"]
        return [StageSteps(f"{i}-{stage['name']}", int(stage["steps"])) for i, stage in enumerate(stages)]
    except (KeyError, TypeError, ValueError):
        raise ConfigError(f"{uri}: not the configuration of a run of `udaseg train`") from None


def _no_run(directory: str) -> str:
    """Why a directory is no run, and which below it are."""
    if not exists(directory):
        return f"{directory}: there is no such directory; give one that `udaseg train --out` writes"
    owner = owner_of(directory)
    what = "holds no run of `udaseg train`" if owner is None else f"is of `udaseg {owner}` ({NOUNS[owner]}), not a run"
    below = _runs_below(directory, depth=2)
    if not below:
        return f"{directory}: {what}; give the directory that `udaseg train --out` writes"
    more = f" and {len(below) - _NAMED} more" if len(below) > _NAMED else ""
    return f"{directory}: {what}; its runs are {', '.join(below[:_NAMED])}{more}"


def _runs_below(directory: str, *, depth: int) -> list[str]:
    found = []
    for name in sorted(info.base_name for info in children(directory) if not info.is_file):
        below = join(directory, name)
        if exists(join(below, "config.json")):
            found.append(below)
        elif depth > 1:
            found += _runs_below(below, depth=depth - 1)
    return found


def read_metrics(run: str) -> list[dict[str, Any]]:
    """The rows of a run's metrics; none where it has none yet."""
    uri = join(run, METRICS)
    return [json.loads(line) for line in read_bytes(uri).decode().splitlines()] if exists(uri) else []


def metrics_of_all_stages(run: str, steps: Sequence[int]) -> list[dict[str, Any]]:
    """The same with "step" counted over all stages, of so many steps each."""
    begins = list(accumulate(steps, initial=0))
    return [row | {"step": begins[row["stage"]] + row["step"]} for row in read_metrics(run)]


def is_done(run: str, stage: str) -> bool:
    """Whether a stage has its model."""
    return exists(join(run, "stages", stage, "model", CARD))


def is_finished(run: str) -> bool:
    """Whether a run has its model."""
    return exists(join(run, "model", CARD))


def made_before(run: str, stage: str) -> str:
    """What is being made of a dataset for a stage, and of its blocks those done and all; "" where nothing is."""
    for folder, what, phases in _MADE_BEFORE:
        directory = join(run, folder, stage)
        state = join(directory, "job", "job.json")
        if exists(join(directory, "manifest.parquet")) or not exists(state):
            continue
        job: dict[str, Any] = json.loads(read_bytes(state))
        ledger = Ledger(join(directory, "job"), job["count"], job["block_size"])
        done = sum(len(ledger.committed(phase)) for phase in phases)
        return f"{what}: {done} of {len(phases) * ledger.blocks} blocks"
    return ""


def read_registered(stage_directory: str) -> list[tuple[int, str]]:
    """(step, directory) of the checkpoints that Ray Train keeps in a stage's directory, oldest first.

    Raises CheckpointError where its list of them is not whole, as Ray writes it in place.
    """
    uri = join(stage_directory, SNAPSHOT)
    try:
        names = [entry["checkpoint_dir_name"] for entry in json.loads(read_bytes(uri))["checkpoint_results"]]
        return sorted((int(name.rpartition("_")[2]), join(stage_directory, name)) for name in names)
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{uri}: not a whole list of checkpoints ({error}); remove {stage_directory} to train this stage anew"
        ) from None
