"""What adapts: one idea at a time on one warm start, in one process and without Ray, so that a row takes minutes.

    python -m benchmarks.ideas embedded --ideas class class+style ...
    python -m benchmarks.ideas pair --source DIR --target DIR --weights FILE --ideas ...

A row is a method of `BASES` with changes of `IDEAS` and a seed: its network begins as the pair's warm start, and is
scored on the validation images of both domains. "embedded" and "harder" are rendered; "harder" has other class
frequencies than its source, and cars and poles of other looks. Any other name is a pair of prepared datasets, trained
at the settings of `benchmarks.accuracy`. Labels of a real target score rows; ideas are chosen by the embedded pairs.

OUT/models/<pair>/<name>-seed<k>/  the network, and score.json: metrics on both domains, scores without labels, and the
same of the warm start. Rows that are there are skipped.
"""

from __future__ import annotations

import functools
import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import tyro

from benchmarks.accuracy import RARE, SETTINGS
from benchmarks.trial_method import Trial
from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.config import Recipe
from udaseg.data.classes import read_classes
from udaseg.data.index import open_index
from udaseg.data.storage import absolute
from udaseg.data.street_domains import CAR, DOMAINS, POLE
from udaseg.data.synthetic import write_pair
from udaseg.evaluation.checkpoint_scores import Scoring, score
from udaseg.evaluation.metrics import confusion
from udaseg.jobs.output import mark
from udaseg.jobs.prepare import prepare
from udaseg.jobs.train import make_plan
from udaseg.methods.dacs import DACS
from udaseg.methods.supervised import Supervised
from udaseg.models.inference import predict, to_pixels
from udaseg.models.segmenter import Segmenter
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.reports.scores import summary
from udaseg.rng import key_to_seed
from udaseg.training.batches import to_batches
from udaseg.training.step import build_state, train_step

CPU = torch.device("cpu")
BASES: dict[str, Any] = {
    "source_only": Supervised.Config(),
    "dacs": DACS.Config(threshold=0.9),
    "quality": Trial.Config(reliability="quality"),
    "class": Trial.Config(),
}
"""What a name begins with: a method."""
IDEAS: dict[str, dict[str, Any]] = {
    "all": {"method.reliability": "all"},
    "quality_for_the_rest": {"method.reliability": "class+quality"},
    "mix": {"method.mix": 1.0},
    "mix_half": {"method.mix": 0.5},
    "source_jitter": {"data.source.jitter": 0.5, "data.source.blur": 0.5},
    "jitter": {"method.jitter": 0.5},
    "style": {"method.style": 0.5},
    "cutmix": {"method.cutmix": 0.5},
    "masked": {"method.masked": 0.3},
    "zoom": {"method.zoom": 0.5},
    "flip": {"method.flip": True},
    "contrast": {"method.contrast": 1.0},
    "lovasz": {"method.source_lovasz": 0.75},
    "lovasz_both": {"method.source_lovasz": 0.75, "method.target_lovasz": 0.75},
    "balance": {"method.balance": 0.5},
    "source_prior": {"method.source_prior": 0.5},
    "whole_source_prior": {"method.source_prior": 1.0},
    "teacher_prior": {"method.teacher_prior": 0.3},
    "align": {"method.align": 0.5},
    "share_0.3": {"method.share": 0.3},
    "share_0.8": {"method.share": 0.8, "method.cap": 0.8},
    "nonzero": {"method.reduction": "nonzero"},
    "soft": {"method.soft": True, "method.reliability": "all"},
    "slow_teacher": {"method.teacher_momentum": 0.998},
    "fast": {"optim.lr": 3e-3},
    "own_statistics": {"model.per_domain": "stem+statistics"},
}
"""What may follow it, joined by +: "class+source_jitter+balance"."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    pair: tyro.conf.Positional[str]
    """embedded, harder, or the name of a pair of prepared datasets."""
    source: str = ""
    """Dataset directory."""
    target: str = ""
    weights: str = ""
    """ImageNet weights of mobilenetv2_100 in timm's key order."""
    ideas: tuple[str, ...] = (*BASES, *(f"class+{idea}" for idea in IDEAS))
    seeds: tuple[int, ...] = (0,)
    quick: bool = False
    """Smaller images and fewer steps: a row takes a seventh of the time."""
    factor: int = 1
    """Times as many adapting steps."""
    out: Path = Path("runs/ideas")


def make_embedded(root: Path) -> None:
    """Render and prepare the source and both targets, once."""
    DOMAINS["harder"] = _harder()  # type: ignore[index]
    write_pair(root)
    for domain in DOMAINS:
        if not (root / domain / "manifest.parquet").exists():
            where = str(root / domain)
            mark(where, "prepare")  # beside the images
            prepare(out=where, layout="folders", root=where, classes=str(root / "classes.json"), overwrite=True)


def _harder() -> Any:
    """The embedded target with three times the poles, twice the cars, half the people, and other cars and poles."""
    target = DOMAINS["target"]
    colours = list(target.colours)
    colours[CAR] = ((196, 170, 30), (40, 120, 60), (120, 90, 50), (170, 170, 160))
    colours[POLE] = ((96, 80, 64), (70, 62, 56), (140, 130, 118))
    return replace(
        target, poles=9.0, cars=6.0, persons=2.4, greenery=0.7, car_scale=(0.65, 0.9), colours=tuple(colours)
    )


def recipe_of(a: Arguments, name: str) -> Recipe:
    """The stages "source" and "adapt" of a pair with the changes that a row's name says to the second."""
    recipe = RECIPES["dacs_small"]()
    source, adapt = recipe.stages
    settings: dict[str, Any] = {}
    if a.weights:
        source, adapt = replace(source, steps=800), replace(adapt, steps=400)
        settings = SETTINGS | RARE | {"model.weights": a.weights}
        if a.quick:
            source, adapt = replace(source, steps=400), replace(adapt, steps=200)
            settings |= {"data.short_side": 120, "data.crop": (96, 128), "data.source.rare_min_crop_pixels": 25}
    elif a.quick:
        adapt = replace(adapt, steps=300)
        settings = {"data.short_side": 96, "data.crop": (96, 144), "data.batch_size": 4}
    base, *ideas = name.split("+")
    changes = dict(change for idea in ideas for change in IDEAS[idea].items())
    method = BASES[base]
    data = replace(adapt.data, target=None) if isinstance(method, Supervised.Config) else adapt.data
    adapt = replace(adapt, method=method, data=data, steps=adapt.steps * a.factor)
    warm, adapted = (override(replace(recipe, stages=(stage,)), settings) for stage in (source, adapt))
    return replace(recipe, stages=warm.stages + override(adapted, changes).stages)


def run_stage(a: Arguments, recipe: Recipe, number: int, seed: int, init: Path | None, out: Path) -> dict[str, float]:
    """Train a stage in this process and keep its network; returns the mean losses of its last quarter."""
    stage = recipe.stages[number]
    key = key_to_seed(seed, number)
    plan = make_plan(stage, {"source": a.source, "target": a.target}, key)
    weights = None if init is None else load_model(str(init))[0].state_dict()
    classes = read_classes(a.source)
    state = build_state(stage, len(classes), seed=key, init=weights, device=CPU, bf16=False)
    logs = []
    for step in range(stage.steps):
        first = step * plan.batch_size
        samples = [plan.load(i) for i in range(first, first + plan.batch_size)]
        columns = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        logs.append(train_step(state, to_batches(columns, stage.data, seed=key, device=CPU), stage, seed=key))
    card = ModelCard(
        model=stage.model,
        classes=classes,
        short_side=stage.data.short_side,
        recipe=out.name,
        stage=stage.name,
        step=stage.steps,
    )
    save_model(out, state.method.predictor, card)
    late = logs[-max(1, len(logs) // 4) :]
    return {name: round(float(np.mean([log[name] for log in late])), 4) for name in late[0]}


def scored(a: Arguments, model: Path) -> dict[str, Any]:
    """Metrics of a network on the validation images of both domains, and its scores without labels."""
    network, card = load_model(str(model))
    found: dict[str, Any] = {}
    for domain, directory in (("target", a.target), ("source", a.source)):
        found[domain] = summary(_confusion(network, directory, card.short_side, domain), card.classes.names)
    found["scores"] = score(network, Scoring(directory=a.target, images=50), short_side=card.short_side, device=CPU)
    return found


def _confusion(network: Segmenter, directory: str, short_side: int, domain: Any) -> np.ndarray:
    index = open_index(directory)
    counts = np.zeros((len(index.classes),) * 2, np.int64)
    for row in range(*index.rows("val")):
        image = to_pixels(index.image(row)[None], CPU)
        label = predict(network, image, short_side=short_side, domain=domain)[0].max(0).indices
        counts += confusion(index.train_ids(row), label.numpy(), len(index.classes))
    return counts


def keep_in_memory(directory: str) -> None:
    """Decode each image and label of a dataset once."""
    index = open_index(directory)
    index.image = functools.cache(index.image)  # type: ignore[method-assign]
    index.train_ids = functools.cache(index.train_ids)  # type: ignore[method-assign]


def row(a: Arguments, idea: str, seed: int) -> dict[str, Any]:
    """Train and score one idea from the pair's warm start, which is trained if need be."""
    recipe = recipe_of(a, idea)
    name = idea if a.factor == 1 else f"{idea}-x{a.factor}"
    models = a.out / "models" / (f"{a.pair}-quick" if a.quick else a.pair)
    warm, out = models / f"warm_start-seed{seed}", models / f"{name}-seed{seed}"
    if not (warm / "score.json").exists():
        run_stage(a, recipe, 0, seed, None, warm)
        (warm / "score.json").write_text(json.dumps({"idea": "warm_start", "seed": seed, **scored(a, warm)}, indent=1))
    if (out / "score.json").exists():
        return dict(json.loads((out / "score.json").read_text()))
    began = time.monotonic()
    shutil.rmtree(out, ignore_errors=True)
    losses = run_stage(a, recipe, 1, seed, warm, out)
    seconds = round(time.monotonic() - began, 1)
    before = json.loads((warm / "score.json").read_text())
    found = {"pair": a.pair, "idea": name, "seed": seed, "seconds": seconds, "losses": losses, **scored(a, out)}
    found["warm_start"] = {domain: before[domain] for domain in ("target", "source", "scores")}
    (out / "score.json").write_text(json.dumps(found, indent=1))
    return found


def main() -> None:
    a = tyro.cli(Arguments)
    torch.set_num_threads(1)
    if a.pair in ("embedded", "harder"):
        root = a.out / "data"
        make_embedded(root)
        a = replace(a, source=str(root / "source"), target=str(root / ("target" if a.pair == "embedded" else "harder")))
    a = replace(a, source=absolute(a.source), target=absolute(a.target))
    for directory in (a.source, a.target):
        keep_in_memory(directory)
    for seed in a.seeds:
        for idea in a.ideas:
            found = row(a, idea, seed)
            target, source = found["target"], found["source"]
            ious = " ".join(f"{100 * (v or 0):.1f}" for v in target["iou"].values())
            scores = " ".join(f"{v:.3f}" for k, v in found["scores"].items() if k != "miou")
            miou = f"{100 * target['miou']:.1f} [{ious}] source {100 * source['miou']:.1f}"
            print(f"{a.pair} {found['idea']} s{seed}: {miou}", f"scores {scores} {found['seconds']} s", flush=True)


if __name__ == "__main__":
    main()
