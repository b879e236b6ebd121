"""Target mIoU and gap closed of the recipes on a real pair of domains, through the ordinary pipeline.

    python -m benchmarks.accuracy --data DIR --weights FILE [--recipes ...] [--seeds 3] [--reuse COMMIT]

`--data` holds {source,target}/{images,labels} and split.json with "classes", "palette" and "splits". Settings were
chosen on the embedded synthetic pair; labels of the target serve the oracle and the final score alone. Every adapted
network, source-only and the oracle take the same number of steps in all: the adapted ones and source-only start from
one source-only warm start per seed. One JSON a (recipe, seed, commit) is kept under benchmarks/results, and what is
there is not run again.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from udaseg.config import Recipe
from udaseg.data.classes import read_classes
from udaseg.data.storage import exists
from udaseg.evaluation.metrics import gap_closed
from udaseg.jobs.evaluate import evaluate
from udaseg.jobs.prepare import prepare
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.run_directory import read_metrics
from udaseg.jobs.train import train
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.reports.scores import summary

WARM_STEPS, ADAPT_STEPS = 800, 400
SETTINGS = {
    "model.backbone": "mobilenetv2_100",
    "model.same_padding": True,
    "data.short_side": 240,
    "data.crop": (192, 256),
    "data.scale": (1.0, 1.3),
    "data.batch_size": 4,
    "optim.lr": 3e-4,
    "optim.head_lr_factor": 5.0,
    "checkpoint_every": 1000,
}
RARE = {
    "data.source.sampling": "rare_class",
    "data.source.rare_temperature": 0.1,
    "data.source.rare_min_pixels": 300,
    "data.source.rare_min_crop_pixels": 100,
}
"""Of every row that reads the source, source-only included."""
OWN_NETWORK: dict[str, dict[str, object]] = {
    "hrda": {"model.detail_crop": (96, 128)},
    "clan": {"model.head_pair": True},
}
"""Of rows whose network has parts that learn with the rest: they begin from a warm start of their own."""
LABELLED = ("oracle", "pne")
"""Rows that learn from the target's labels alone, without a warm start."""
RECIPE_OF = {
    "source_only": "source_only_small",
    "oracle": "supervised_small",
    "pne": "pne_small",
    "adabn": "adabn_small",
    "classwise": "classwise_small",
    "dacs": "dacs_small",
    "bcl": "bcl_small",
    "bcl_paper": "bcl_paper_small",
    "ldbe": "ldbe_small",
    "stvm": "stvm_small",
    "dsp": "dsp_small",
    "camix": "camix_small",
    "rccr": "rccr_small",
    "ehtdi": "ehtdi_small",
    "sdca": "sdca_small",
    "proda": "proda_small",
    "spcl": "spcl_small",
    "proca": "proca_small",
    "ucda": "ucda_small",
    "drsl": "drsl_small",
    "daformer": "daformer_small",
    "mic": "mic_small",
    "crda": "crda_small",
    "cluda": "cluda_small",
    "sepico": "sepico_small",
    "sepico_bank": "sepico_bank_small",
    "sepico_prototype": "sepico_prototype_small",
    "hrda": "hrda_small",
    "advent": "advent_small",
    "minent": "minent_small",
    "clan": "clan_small",
    "cada": "cada_small",
    "i2i_cr": "i2i_cr_small",
}


@dataclass(frozen=True, kw_only=True)
class Arguments:
    data: Path
    """Folder of the pair."""
    weights: Path
    """ImageNet weights of mobilenetv2_100 in timm's key order."""
    recipes: tuple[str, ...] = tuple(RECIPE_OF)
    seeds: int = 3
    """Seeds 0, 1, ... of this number."""
    work: Path = Path("runs/accuracy")
    """Where runs are kept."""
    results: Path = Path("benchmarks/results")
    reuse: str | None = None
    """Take rows that this commit lacks from another, which computes the same; the table says so."""


def recipe_for(name: str, seed: int, weights: Path, warm: str | None) -> Recipe:
    """A row's recipe at this benchmark's settings; `warm` is the model directory of the seed's warm start."""
    recipe = override(RECIPES[RECIPE_OF[name]](), SETTINGS | {"model.weights": str(weights), "seed": seed})
    if name in LABELLED:
        return override(recipe, {"steps": WARM_STEPS + ADAPT_STEPS})
    recipe = override(recipe, {k: v for k, v in RARE.items() if name not in ("ldbe", "stvm")})  # which read no source
    if name == "source_only":
        return replace(recipe, stages=(replace(recipe.stages[0], steps=ADAPT_STEPS, init_from=warm),))
    if name.startswith("bcl"):  # a pretrained network wants a milder view than one from scratch
        recipe = override(recipe, {"method.mix_jitter": 0.25})
    own = {"things": (2, 3), "long_tail": (2, 4), "hard": (2, 4)}  # living things, vehicles, roadside objects
    for field, value in own.items():
        if any(hasattr(stage.method, field) for stage in recipe.stages):
            recipe = override(recipe, {f"method.{field}": value})
    recipe = override(recipe, OWN_NETWORK.get(name, {}))
    stages = [stage for stage in recipe.stages if stage.name != "source"]
    if name.startswith("bcl"):
        stages = stages[:1]  # in one round
    stages[0] = replace(stages[0], init_from=warm)
    if name == "adabn":
        return replace(recipe, stages=tuple(stages))
    return replace(recipe, stages=tuple(replace(stage, steps=ADAPT_STEPS // len(stages)) for stage in stages))


def run(name: str, seed: int, a: Arguments, commit: str) -> dict[str, object]:
    """Train and score one row, or read what was scored before."""
    file = a.results / a.data.name / f"{name}_seed{seed}_{commit}.json"
    for known in (file, file.with_stem(f"{name}_seed{seed}_{a.reuse}")):
        if known.exists():
            return dict(json.loads(known.read_text()))
    source, target = str(a.work / "source"), str(a.work / "target")
    began = time.monotonic()
    out = a.work / commit / f"{name}-seed{seed}"
    warm = None
    if name not in LABELLED:
        warm_out = a.work / commit / (f"warm-{name}" if name in OWN_NETWORK else "warm") / f"seed{seed}"
        warm = str((warm_out / "model").resolve())
        if not exists(f"{warm}/model.json"):
            settings = SETTINGS | RARE | {"model.weights": str(a.weights), "seed": seed, "steps": WARM_STEPS}
            recipe = override(RECIPES["source_only_small"](), settings | OWN_NETWORK.get(name, {}))
            train(recipe, source=source, target=None, out=str(warm_out), resume=warm_out.exists())
            began = time.monotonic()
    if name == "adabn":  # on top of the whole source-only network, so that both have the same steps
        warm = str((a.work / commit / f"source_only-seed{seed}" / "model").resolve())
    recipe = recipe_for(name, seed, a.weights, warm)
    streams = {s for stage in recipe.stages for s in stage.data.streams()}
    model = train(
        recipe,
        source=source if "source" in streams else None,
        target=target if "target" in streams else None,
        out=str(out),
        resume=out.exists(),
    )
    seconds = time.monotonic() - began
    names = read_classes(target).names
    counts = evaluate([model], target)[0]
    steps = sum(stage.steps for stage in recipe.stages)
    row = {
        "recipe": name,
        "seed": seed,
        "commit": commit,
        "warm_steps": 0 if warm is None else WARM_STEPS,
        "steps": steps,
        "seconds": round(seconds, 1),
        **_cost(str(out)),
        **summary(counts, names),
    }
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps(row, indent=1))
    return row


def _cost(run: str) -> dict[str, float]:
    """Median seconds a step, over all stages, and the training process's largest resident set."""
    lines = read_metrics(run)
    return {
        "step_seconds": round(float(np.median([line["step_seconds"] for line in lines])), 3),
        "memory_mib": round(max(line["memory_mib"] for line in lines)),
    }


def table(rows: list[dict[str, object]]) -> Table:
    """Mean and spread (sample standard deviation over seeds) of mIoU, and of the gap closed seed by seed."""
    by = {(str(r["recipe"]), int(str(r["seed"]))): 100 * float(str(r["miou"])) for r in rows}
    seeds = sorted({seed for _, seed in by})
    cost = {str(r["recipe"]): (r.get("step_seconds", "-"), r.get("memory_mib", "-")) for r in rows}
    commits: dict[str, set[str]] = {}
    for r in rows:
        commits.setdefault(str(r["recipe"]), set()).add(str(r["commit"]))
    out = Table("recipe", "mIoU mean", "spread", "seeds", "gap closed", "spread", "s/step", "MiB", "commit")
    for name in dict.fromkeys(name for name, _ in by):
        scores = [by[name, seed] for seed in seeds if (name, seed) in by]
        both = [s for s in seeds if {(name, s), ("source_only", s), ("oracle", s)} <= by.keys()]
        closed = [gap_closed(by["source_only", s], by[name, s], by["oracle", s]) for s in both]
        shown = ("-", "-") if name in ("source_only", "oracle") or not closed else _mean_spread(closed, "{:.2f}")
        out.add_row(
            name,
            *_mean_spread(scores, "{:.1f}"),
            " ".join(f"{s:.1f}" for s in scores),
            *shown,
            *map(str, cost[name]),
            " ".join(sorted(commits[name])),
        )
    return out


def class_table(rows: list[dict[str, object]]) -> Table:
    """IoU of each class in percent, the mean over seeds."""
    by: dict[str, list[dict[str, float | None]]] = {}
    for row in rows:
        by.setdefault(str(row["recipe"]), []).append(dict(row["iou"]))  # type: ignore[call-overload]
    names = list(next(iter(by.values()))[0])
    out = Table("recipe", *names)
    for recipe, ious in by.items():
        out.add_row(recipe, *(f"{100 * np.mean([iou[name] or 0 for iou in ious]):.1f}" for name in names))
    return out


def _mean_spread(values: list[float], form: str) -> tuple[str, str]:
    return form.format(np.mean(values)), form.format(np.std(values, ddof=1)) if len(values) > 1 else "-"


def _git(*words: str) -> str:
    return subprocess.run(["git", *words], capture_output=True, text=True, check=True).stdout.strip()


def make_datasets(a: Arguments) -> None:
    """Prepare both domains, once."""
    split = json.loads((a.data / "split.json").read_text())
    a.work.mkdir(parents=True, exist_ok=True)
    classes = a.work / "classes.json"
    classes.write_text(json.dumps({"names": split["classes"], "palette": split["palette"]}))
    for domain in ("source", "target"):
        if exists(str(a.work / domain / "class_places.arrow")):
            continue
        splits = a.work / f"{domain}_splits.json"
        splits.write_text(json.dumps(split["splits"][domain]))
        prepare(
            images=str(a.data / domain / "images"),
            labels=str(a.data / domain / "labels"),
            classes=str(classes),
            splits=str(splits),
            out=str(a.work / domain),
            overwrite=True,
        )


def main() -> int:
    a = tyro.cli(Arguments)
    if unknown := set(a.recipes) - set(RECIPE_OF):
        print(f"error: no recipe {sorted(unknown)[0]!r}; there are {', '.join(RECIPE_OF)}", file=sys.stderr)
        return 2
    code = ("--", "udaseg", "pipelines", "benchmarks/accuracy.py")
    if changed := _git("status", "--porcelain", *code):
        print(f"error: {changed.split()[1]}: rows are filed under a commit; commit it first", file=sys.stderr)
        return 2
    commit = _git("log", "-1", "--format=%h", *code)
    ensure_ray()
    make_datasets(a)
    rows = []
    for seed in range(a.seeds):
        for name in a.recipes:
            rows.append(run(name, seed, a, commit))
            Console().print(table(rows))
            shutil.rmtree(a.work / commit / f"{name}-seed{seed}" / "stages", ignore_errors=True)
    Console().print(class_table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
