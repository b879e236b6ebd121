"""`udaseg demo`: the whole chain on the embedded pair of domains, from rendered images to one HTML report.

data/{source,target}  the images, and the datasets made of them
<recipe>/             the runs: adapted, source-only, oracle
pseudo_labels/        of the target's training images, by the adapted network
demo.json             the settings, and what each finished phase took and found
report.html
"""

from __future__ import annotations

import dataclasses
import platform
import shutil
from collections.abc import Mapping
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np
import torch

from udaseg.checkpoints.directory import load_model
from udaseg.config import PseudoLabel, Recipe, Stage
from udaseg.data.classes import read_classes
from udaseg.data.index import open_index
from udaseg.data.storage import write_bytes
from udaseg.data.strict_json import dump_json
from udaseg.data.synthetic import write_pair
from udaseg.errors import ConfigError
from udaseg.evaluation.metrics import gap_closed, mean_iou
from udaseg.job_config import Cluster
from udaseg.jobs.evaluate import evaluate
from udaseg.jobs.journal import Journal
from udaseg.jobs.output import mark, own_directory
from udaseg.jobs.prepare import prepare
from udaseg.jobs.pseudo_label.job import pseudo_label
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.resources import usable_cores
from udaseg.jobs.run_directory import METRICS, metrics_of_all_stages, read_metrics, read_registered
from udaseg.jobs.train import train
from udaseg.models.inference import predict
from udaseg.overrides import override, to_json
from udaseg.recipes import RECIPES
from udaseg.reports.adaptation import Example, gap_text, html_report
from udaseg.reports.pseudo_label import Shares
from udaseg.reports.scores import iou_table
from udaseg.reports.tables import show

NETWORKS = {"source-only": "source_only_small", "adapted": "classwise_small", "oracle": "supervised_small"}
"""The recipe of each network that the report compares."""


def demo(
    out: str | Path,
    *,
    seed: int = 0,
    train_images: int = 240,
    val_images: int = 60,
    size: tuple[int, int] = (128, 256),
    recipes: Mapping[str, Any] | None = None,
    resume: bool = False,
) -> float:
    """Render, prepare, train, evaluate, pseudo-label and report; returns the share of the gap that was closed.

    Source-only and oracle train as many steps as the adapted network does in all its stages, and source-only shares its
    warm start.

    Args:
        out: a new local directory.
        seed: of the images and the runs.
        train_images: of each domain.
        val_images: of each domain.
        size: (height, width) of the images in pixels.
        recipes: values that override those of all three recipes, see `udaseg.overrides.override`.
        resume: go on with the demo in `out`; finished phases are not repeated.

    Raises:
        ConfigError: `out` holds anything and is not resumed, is no demo's, or was begun with other settings.
        TrainingError: training cannot go on.
    """
    if "://" in str(out):
        raise ConfigError(f"{out}: a demo is made on this machine; give a path as --out")
    root = Path(out).absolute()
    runs = _recipes({"seed": seed, **(recipes or {})})
    for run in runs.values():
        run.check()
    settings: dict[str, Any] = {"seed": seed, "train_images": train_images, "val_images": val_images, "size": size}
    settings |= {run.name: dataclasses.asdict(run) for run in runs.values()}
    with own_directory(str(root), "demo"):
        journal = Journal(str(root), "demo", settings, resume)
        data = root / "data"
        source, target = str(data / "source"), str(data / "target")

        journal.phase("render", partial(write_pair, data, seed=seed, size=size, train=train_images, val=val_images))
        journal.phase("prepare", _prepare, data)
        for network in ("adapted", "source-only", "oracle"):
            if network == "source-only":
                _take_over_warm_start(runs["adapted"], runs["source-only"], root)
            journal.phase(f"train {network}", _train, runs[network], source, target, root)
        before, adapted = (str(root / runs[network].name / "model") for network in ("source-only", "adapted"))
        scores = journal.phase("evaluate", _score, runs, target, root)
        shares = journal.phase("pseudo-label", _label, adapted, target, root, runs["adapted"].stages[-1].pseudo_label)

        curves = {network: [(step, np.array(counts)) for step, counts in scores[network]] for network in runs}
        classes = read_classes(target)
        page = html_report(
            classes=classes,
            about=(
                f"{runs['adapted'].name} on the embedded pair of domains: {train_images} labelled source images and "
                f"{train_images} target images without labels, scored on {val_images} more of the target. "
                f"Each network trains {curves['adapted'][-1][0]} steps in all, the adapted one's warm start included; "
                "the oracle alone reads labels of the target's training images."
            ),
            curves=curves,
            begins={stage.name: begin for stage, begin in _stages(runs["adapted"])},
            losses={
                network: metrics_of_all_stages(str(root / run.name), [stage.steps for stage in run.stages])
                for network, run in runs.items()
            },
            examples=_examples(before, adapted, target),
            shares=Shares(*map(np.array, shares)),
            settings={f"{network}: {run.name}": to_json(run) for network, run in runs.items()},
            facts={"seed": str(seed), "device": _device()} | _versions(),
            seconds=journal.seconds(),
        )
        write_bytes(str(root / "report.html"), page.encode())
        show(iou_table({network: points[-1][1] for network, points in curves.items()}, classes.names))
        print(f"report: {root / 'report.html'}")
        results = [mean_iou(points[-1][1]) for points in curves.values()]
        print(gap_text(*results), flush=True)
        return gap_closed(*results)


def _recipes(values: Mapping[str, Any]) -> dict[str, Recipe]:
    """The recipe of each network: all keep every checkpoint, for the curves, and train as long as the adapted one.

    Source-only goes on from the adapted network's warm start, on the source and at the same learning rates.
    """
    values = {"keep_checkpoints": 100, **values}
    runs = {network: override(RECIPES[name](), values) for network, name in NETWORKS.items()}
    warm, *adapt = runs["adapted"].stages
    rest = sum(stage.steps for stage in adapt)
    more = dataclasses.replace(warm, name="more", steps=rest, init_from=warm.name, optim=adapt[0].optim)
    runs["source-only"] = dataclasses.replace(runs["source-only"], stages=(warm, more))
    runs["oracle"] = override(runs["oracle"], {"steps": warm.steps + rest})
    return runs


def _stages(recipe: Recipe) -> list[tuple[Stage, int]]:
    """The stages, each with the number of steps before it."""
    return list(zip(recipe.stages, accumulate((stage.steps for stage in recipe.stages), initial=0), strict=False))


def _prepare(data: Path) -> None:
    ensure_ray(num_cpus=usable_cores() + Cluster().workers)  # as training would, which comes next
    for domain in ("source", "target"):
        directory = str(data / domain)
        mark(directory, "prepare")  # beside the images that the demo itself has rendered there
        prepare(out=directory, layout="folders", root=directory, classes=str(data / "classes.json"), overwrite=True)


def _take_over_warm_start(adapted: Recipe, source_only: Recipe, root: Path) -> None:
    """Copy the adapted run's first stage, with its metrics: trained anew, it would come out bit for bit the same."""
    name = f"0-{adapted.stages[0].name}"
    run = root / source_only.name
    mark(str(run), "train")
    if not (run / METRICS).exists():
        shutil.copytree(root / adapted.name / "stages" / name, run / "stages" / name, dirs_exist_ok=True)
        rows = (row for row in read_metrics(str(root / adapted.name)) if row["stage"] == 0)
        write_bytes(str(run / METRICS), "".join(f"{dump_json(row)}\n" for row in rows).encode())


def _train(run: Recipe, source: str, target: str, root: Path) -> None:
    domains = run.domains()
    train(
        run,
        source=source if "source" in domains else None,
        target=target if "target" in domains else None,
        out=str(root / run.name),
        resume=True,
    )


def _score(runs: Mapping[str, Recipe], target: str, root: Path) -> dict[str, list[tuple[int, list]]]:
    """Per network the (steps of all stages, confusion matrix) of its kept checkpoints, in one pass over the images."""
    found = [
        (network, begin + step, uri)
        for network, run in runs.items()
        for i, (stage, begin) in enumerate(_stages(run))
        for step, uri in read_registered(str(root / run.name / "stages" / f"{i}-{stage.name}"))
    ]
    scores: dict[str, list[tuple[int, list]]] = {network: [] for network in runs}
    for (network, step, _), counts in zip(found, evaluate([uri for *_, uri in found], target), strict=True):
        scores[network].append((step, counts.tolist()))
    return scores


def _label(checkpoint: str, target: str, root: Path, rules: PseudoLabel | None) -> list[list[float]]:
    """Pseudo-label the target's training images; returns what `Shares` holds."""
    out = str(root / "pseudo_labels")
    shares = pseudo_label(checkpoint=checkpoint, images=target, out=out, split="train", rules=rules)
    return [values.tolist() for values in shares]


def _examples(before: str, after: str, target: str) -> list[Example]:
    """Six validation images at even distances, predicted by two networks in this process."""
    networks = [load_model(uri) for uri in (before, after)]
    index = open_index(target)
    start, stop = index.rows("val")
    examples = []
    for row in np.linspace(start, stop - 1, min(6, stop - start)).astype(int).tolist():
        image = index.image(row)
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        first, last = (predict(network, pixels, **card.views())[0] for network, card in networks)
        confidence, label = last.max(0)
        truth, first_label = index.train_ids(row), first.argmax(0)
        examples.append(Example(image, truth, first_label.numpy(), label.numpy(), confidence.numpy()))
    return examples


def _device() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else f"CPU, {usable_cores()} cores"


def _versions() -> dict[str, str]:
    packages = ("udaseg", "torch", "ray", "timm", "kornia", "numpy")
    return {"python": platform.python_version()} | {name: version(name) for name in packages}
