"""`udaseg adapt`: choose, adapt, check, and say what came of it.

data/{source,target}   datasets, where folders were bare or no images were held out
warm_start/            the run on the source alone, which all others begin with
runs/<name>/           the runs: source_only, and each candidate
model/                 what is handed back: the best candidate, or source-only where adaptation harmed
verdict.json           what was found of each candidate
label_next.json        the target images whose labels would help most
adapt.json             the settings, and what each finished phase took and found
report.html
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from udaseg.checkpoints.directory import check_checkpoint, copy_model, read_card
from udaseg.config import Recipe
from udaseg.data.classes import read_classes
from udaseg.data.index import open_index
from udaseg.data.manifest import digest
from udaseg.data.storage import absolute, join, to_uri, write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.errors import TrainingError
from udaseg.evaluation.to_label import label_next
from udaseg.evaluation.verdict import Verdict, expected_frequency, verdict
from udaseg.job_config import Adapt, Cluster, Inference
from udaseg.jobs.adapt.candidates import candidate, recipe_names, source_only, warm_start
from udaseg.jobs.adapt.choice import Choice, Machine, choose
from udaseg.jobs.adapt.inputs import Inputs, check_inputs, class_pixels, is_dataset, make_inputs, measure
from udaseg.jobs.adapt.judging import judge, survey
from udaseg.jobs.adapt.machine import find_machine
from udaseg.jobs.adapt.report import write_report
from udaseg.jobs.adapt.runs import model_of, run_directory, take_over, train_all, train_run
from udaseg.jobs.journal import Journal
from udaseg.jobs.output import own_directory, require_own
from udaseg.jobs.preflight import check
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.resources import usable_cores
from udaseg.jobs.trials import trial_resources
from udaseg.reports.adapt import verdict_lines

SOURCE_ONLY = "source_only"
TO_LABEL = 20
_SURVEYED = 2000


class Outcome(NamedTuple):
    """What came of an adaptation."""

    model: str
    """Model directory."""
    network: str
    """Whose it is: a recipe's name, or "source_only"."""
    verdicts: dict[str, Verdict]
    """Of each candidate, by recipe."""


@dataclass(frozen=True)
class _Plan:
    """What is to be done; a pure function of what is told, the datasets and the machine."""

    inputs: Inputs
    choice: Choice
    warm: Recipe | None
    """None where a checkpoint stands for it."""
    runs: dict[str, Recipe]
    before: str | None
    """Model directory of the network to compare with; None = the run of source-only."""


def adapt(told: Adapt) -> Outcome:
    """Adapt a network to a target without labels, and judge it against source-only.

    Raises:
        ConfigError, DatasetError, CheckpointError: before anything runs, where something does not fit together.
        TrainingError: the warm start, source-only, or every candidate cannot be trained.
    """
    places = ("out", "target", "source", "checkpoint", "classes", "weights")
    told = dataclasses.replace(told, **{name: to_uri(getattr(told, name)) for name in places})
    told.check()
    names = recipe_names(told.candidates, source=told.source is not None)
    out = absolute(told.out)
    require_own(out, "adapt")
    check_inputs(told)
    with own_directory(out, "adapt"):
        journal = Journal(out, "adapt", _settings(told), told.resume)
        begun = journal.phase("prepare", _begin, told, names, out)
        plan = _plan(told, names, Inputs(*begun["inputs"]), Machine(**begun["machine"]))
        for name, (value, reason) in plan.choice.reasons.items():
            print(f"{name:12} {value:20} {reason}")
        _start_ray(told.cluster)
        if plan.warm is not None:
            warm = join(out, "warm_start")
            journal.phase("warm start", train_run, plan.warm, plan.inputs, warm, told.cluster, told.track)
            for name, recipe in plan.runs.items():
                take_over(warm, recipe, run_directory(out, name))
        failed = journal.phase("runs", _train_runs, plan, names, told, out)
        before = plan.before or model_of(out, SOURCE_ONLY)
        after = {name: model_of(out, name) for name in names if name not in failed}
        found = journal.phase("judge", _judge, before, after, plan, told)
        verdicts = {name: Verdict.from_json(values) for name, values in found["verdicts"].items()}
        winner = max(verdicts, key=lambda name: verdicts[name].rank)
        harmed = verdicts[winner].word == "harmed"
        # source-only may have been trained on images of another range
        model, depth_range = before if harmed else after[winner], open_index(plan.inputs.target).depth_range
        same = read_card(model).depth_range == depth_range
        copy_model(model, join(out, "model"), **({} if same else {"depth_range": depth_range}))
        to_label = journal.phase("label next", _label_next, after[winner], plan, told)
        write_bytes(join(out, "verdict.json"), dump_json(found | {"winner": winner}, indent=1).encode())
        write_bytes(join(out, "label_next.json"), dump_json(to_label, indent=1).encode())
        write_report(
            out,
            before=before,
            after=after[winner],
            winner=winner,
            verdicts=verdicts,
            frequency=found["frequency"],
            failed=failed,
            inputs=plan.inputs,
            choice=plan.choice,
            runs=plan.runs,
            to_label=to_label,
            seconds=journal.seconds(),
        )
        for line in verdict_lines(winner, verdicts, read_classes(plan.inputs.target).names):
            print(line, flush=True)
        print(f"report: {join(out, 'report.html')}\nmodel: {join(out, 'model')}", flush=True)
        return Outcome(join(out, "model"), SOURCE_ONLY if harmed else winner, verdicts)


def _settings(told: Adapt) -> dict[str, Any]:
    """What a resumed adaptation must be told alike."""
    settings = dataclasses.asdict(told)
    for name in ("out", "resume", "cluster", "track"):
        del settings[name]
    given = [directory for directory in (told.source, told.target) if directory is not None]
    weights = None if told.checkpoint is None else read_card(told.checkpoint).weights_sha256
    manifests = [digest(directory) if is_dataset(directory) else None for directory in given]
    return settings | {"manifests": manifests, "weights_sha256": weights}


def _start_ray(cluster: Cluster) -> None:
    ensure_ray(num_cpus=max(usable_cores() + cluster.workers, math.ceil(trial_resources(cluster)["CPU"])))


def _begin(told: Adapt, names: list[str], out: str) -> dict[str, Any]:
    """Make the datasets, look at the machine, and find what would stop a run later."""
    if not all(is_dataset(directory) for directory in (told.source, told.target) if directory is not None):
        _start_ray(told.cluster)  # to prepare them
    inputs, machine = make_inputs(told, out), find_machine(told)
    plan = _plan(told, names, inputs, machine)
    for recipe in plan.runs.values():
        check(recipe, {domain: getattr(inputs, domain) for domain in recipe.domains()}, told.cluster)
    return {"inputs": inputs, "machine": dataclasses.asdict(machine)}


def _plan(told: Adapt, names: list[str], inputs: Inputs, machine: Machine) -> _Plan:
    checkpoint = None if told.checkpoint is None else absolute(told.checkpoint)
    begun = None
    if checkpoint is not None:
        card = check_checkpoint(checkpoint)
        begun = dataclasses.replace(card.model, pretrained=False, weights=None), card.short_side
    choice = choose(told, machine, measure(inputs), begun)
    pixels = None if inputs.source is None else class_pixels(inputs.source)
    runs = {} if inputs.source is None else {SOURCE_ONLY: source_only(choice, told.seed, checkpoint)}
    runs |= {name: candidate(name, choice, pixels, told.seed, checkpoint) for name in names}
    warm = None if checkpoint is not None else warm_start(choice, told.seed)
    return _Plan(inputs, choice, warm, runs, checkpoint if inputs.source is None else None)


def _train_runs(plan: _Plan, names: list[str], told: Adapt, out: str) -> dict[str, str]:
    """Train source-only and the candidates; why some failed, by name. TrainingError where nothing is left to judge."""
    failed = train_all(plan.runs, plan.inputs, out, told.cluster, told.track)
    if SOURCE_ONLY in failed or failed.keys() >= set(names):
        raise TrainingError("; ".join(f"{name}: {why}" for name, why in failed.items()))
    return failed


def _inference(told: Adapt) -> Inference:
    return Inference(gpu=told.cluster.gpu)


def _judge(before: str, after: Mapping[str, str], plan: _Plan, told: Adapt) -> dict[str, Any]:
    """The verdict on each candidate, and how often every network predicts each class of the target."""
    models = [before, *after.values()]
    first, *others = judge(models, plan.inputs, images=told.images, inference=_inference(told))
    names = [SOURCE_ONLY, *after]
    shares = {name: judged.frequency().tolist() for name, judged in zip(names, (first, *others), strict=True)}
    verdicts = {name: verdict(first, judged) for name, judged in zip(after, others, strict=True)}
    expected = expected_frequency(first)
    return {
        "verdicts": {name: dataclasses.asdict(v) for name, v in verdicts.items()},
        "frequency": shares | {"expected": None if expected is None else expected.tolist()},
    }


def _label_next(model: str, plan: _Plan, told: Adapt) -> list[dict[str, Any]]:
    """The target images to label next: id, address and entropy, in the order of `label_next`."""
    found = survey(model, plan.inputs, images=_SURVEYED, inference=_inference(told))
    index = open_index(plan.inputs.target)
    return [
        {
            "image_id": index.table["image_id"][int(found["row"][i])].as_py(),
            "image": index.uri(int(found["row"][i]), "image_uri"),
            "entropy": float(found["entropy"][i]),
        }
        for i in label_next(found["entropy"], found["layout"], TO_LABEL)
    ]
