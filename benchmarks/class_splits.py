"""UCD and TADA, whose classes come later or differ between domains, on splits of one pair's classes.

    python -m benchmarks.class_splits --data DIR --weights FILE [--splits ucd open coarse overlap] [--seeds 1]

The pair and the settings are those of `benchmarks.accuracy`, but that no image is drawn by its classes; 800 steps and
400 more. `class_splits.md` says how the classes are split. Rows that are there are not run again.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import tyro
from PIL import Image
from rich.console import Console
from rich.table import Table

from benchmarks.accuracy import ADAPT_STEPS, SETTINGS, WARM_STEPS
from udaseg.config import Recipe
from udaseg.data.classes import read_classes
from udaseg.jobs.evaluate import evaluate
from udaseg.jobs.prepare import prepare
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.train import train
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.reports.scores import summary

LATER = 3
"""UCD: the last classes come in its second step."""
BACKGROUND = "background"
SIDE = "living and roadside"
"""A class that the overlapping target has in place of two."""
UNLIKE: dict[str, dict[str, str | list[str] | None]] = {
    "open": {"living things": None},
    "coarse": {name: ["drivable", "non-drivable"] for name in ("drivable", "non-drivable")},
    "overlap": {name: [SIDE, "vehicles"] for name in ("living things", "vehicles")} | {"roadside objects": SIDE},
}
"""TADA: what the source's classes are to the target, where they are not themselves."""
FEWSHOT = {"open": 30, "coarse": 30, "overlap": 15}
"""Labelled target images of each class concerned, the authors' numbers."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    data: Path
    """Folder of the pair."""
    weights: Path
    """ImageNet weights of mobilenetv2_100 in timm's key order."""
    splits: tuple[str, ...] = ("ucd", *UNLIKE)
    seeds: int = 1
    """Seeds 0, 1, ... of this number."""
    work: Path = Path("runs/class_splits")
    results: Path = Path("benchmarks/results")


class Pair:
    """The pair's folders, its classes, and datasets made of them in the folder of a commit."""

    def __init__(self, a: Arguments, commit: str) -> None:
        self.a, self.split = a, json.loads((a.data / "split.json").read_text())
        self.work = a.work.resolve() / commit
        self.names, palette = list(self.split["classes"]), list(self.split["palette"])
        colours = dict(zip(self.names, palette, strict=True))
        self.colours = colours | {BACKGROUND: [0, 0, 0], SIDE: colours.get("roadside objects")}

    def dataset(
        self, name: str, domain: str, mapping: dict[str, Any], names: list[str], labels: Path | None = None
    ) -> str:
        """A dataset of a domain's images with other classes; with `labels`, some of its images are few-shot ones."""
        out = self.work / "data" / name
        splits = dict(self.split["splits"][domain])
        if labels is not None:
            splits["fewshot"] = sorted(path.stem for path in labels.glob("*.png") if not path.is_symlink())
            splits["train"] = [image for image in splits["train"] if image not in splits["fewshot"]]
            for image in (*splits["train"], *splits["val"]):
                file = labels / f"{image}.png"
                if not file.exists():
                    file.symlink_to((self.a.data / domain / "labels" / file.name).resolve())
        files = {
            "classes": self._class_list(self.names),
            "mapping": self._class_list(names) | {"map": mapping},
            "splits": splits,
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        for kind, content in files.items():
            out.with_name(f"{name}_{kind}.json").write_text(json.dumps(content))
        prepare(
            images=str(self.a.data / domain / "images"),
            labels=str(labels or self.a.data / domain / "labels"),
            out=str(out),
            overwrite=True,
            **{kind: str(out.with_name(f"{name}_{kind}.json")) for kind in files},
        )
        return str(out)

    def _class_list(self, names: list[str]) -> dict[str, Any]:
        return {"names": names, "palette": [self.colours[name] for name in names]}

    def fewshot_labels(self, name: str, concerned: list[list[str]], number: int) -> Path:
        """Labels of the first target images that show each class concerned, of which they keep that class alone.

        A class is one or several of the pair's.
        """
        folder = self.work / "data" / f"{name}_labels"
        if folder.exists():
            return folder
        (partial := folder.with_suffix(".partial")).mkdir(parents=True, exist_ok=True)
        taken: set[str] = set()
        for of in concerned:
            ids, found = [self.names.index(one) for one in of], 0
            for image in self.split["splits"]["target"]["train"]:
                label = np.asarray(Image.open(self.a.data / "target" / "labels" / f"{image}.png"))
                shown = np.isin(label, ids)
                if image not in taken and found < number and shown.sum() >= 100:
                    Image.fromarray(np.where(shown, label, 255).astype(np.uint8)).save(partial / f"{image}.png")
                    taken.add(image)
                    found += 1
        return partial.rename(folder)


def rows_of(split: str, pair: Pair, seed: int) -> dict[str, tuple[Recipe, str | None, str | None, str]]:
    """Of each row the recipe, its source and target, and the dataset that it is scored on, in the order they need."""
    names, models = pair.names, str(pair.work / "runs" / split)

    def recipe(name: str, init: str | None, steps: int, **settings: Any) -> Recipe:
        made = RECIPES[name]()
        stage = replace(made.stages[-1], steps=steps, init_from=init and f"{models}/{init}-seed{seed}/model")
        changes = SETTINGS | {"model.weights": str(pair.a.weights), "seed": seed} | settings
        return override(replace(made, stages=(stage,)), changes)

    if split == "ucd":
        old, new = names[:-LATER], names[-LATER:]
        old_names, whole = [BACKGROUND, *old], [BACKGROUND, *names]
        itself = {name: name for name in names}
        first = pair.dataset("ucd_step0", "source", itself | dict.fromkeys(new, BACKGROUND), old_names)
        second = pair.dataset("ucd_step1", "source", itself | dict.fromkeys(old, BACKGROUND), whole)
        every = pair.dataset("ucd_all", "source", itself, whole)
        ucd = {"method.old_classes": len(old_names), "optim.lr": 1e-4}
        mib = ucd | {"method.contrast_weight": 0.0}
        alone = mib | {"method.distillation_weight": 0.0}
        return {
            "step0": (recipe("source_only_small", None, WARM_STEPS), first, None, first),
            "cross-entropy alone": (recipe("ucd_small", "step0", ADAPT_STEPS, **alone), second, None, every),
            "mib": (recipe("ucd_small", "step0", ADAPT_STEPS, **mib), second, None, every),
            "ucd": (recipe("ucd_small", "step0", ADAPT_STEPS, **ucd), second, None, every),
            "all at once": (recipe("source_only_small", None, WARM_STEPS + ADAPT_STEPS), every, None, every),
        }

    unlike = UNLIKE[split]
    of_source: dict[str, Any] = {name: name for name in names} | unlike
    merged = {"living things", "roadside objects"} if split == "overlap" else set()
    of_target = {name: SIDE if name in merged else name for name in names}
    target_names = list(dict.fromkeys(of_target.values()))
    unsure = {name for to in of_source.values() if isinstance(to, list) for name in to}
    concerned = sorted(unsure | {name for name in target_names if name not in of_source.values()})
    members = [[name for name in names if of_target[name] == one] for one in concerned]
    source = pair.dataset(f"{split}_source", "source", of_source, target_names)
    labels = pair.fewshot_labels(split, members, FEWSHOT[split])
    target = pair.dataset(f"{split}_target", "target", of_target, target_names, labels)
    tada = {"method.relabel_from": ADAPT_STEPS // 2}
    return {
        "warm start": (recipe("source_only_small", None, WARM_STEPS), source, None, target),
        "tada": (recipe("tada_small", "warm start", ADAPT_STEPS, **tada), source, target, target),
        "source-only": (recipe("source_only_small", "warm start", ADAPT_STEPS), source, None, target),
        "dacs": (recipe("dacs_small", "warm start", ADAPT_STEPS), source, target, target),
        "oracle": (recipe("supervised_small", None, WARM_STEPS + ADAPT_STEPS), None, target, target),
    }


def run(split: str, pair: Pair, seed: int, commit: str) -> list[dict[str, Any]]:
    """Train and score the rows of a split, or read what was scored before."""
    found = []
    for name, (recipe, source, target, scored) in rows_of(split, pair, seed).items():
        file = pair.a.results / pair.a.data.name / f"{split}-{name.replace(' ', '_')}_seed{seed}_{commit}.json"
        if not file.exists():
            out = pair.work / "runs" / split / f"{name}-seed{seed}"
            model = train(recipe, source=source, target=target, out=str(out), resume=out.exists())
            counts = evaluate([model], scored)[0]
            old = len(pair.names) - LATER + 1 if split == "ucd" and name != "step0" else None
            row: dict[str, Any] = {"split": split, "row": name, "seed": seed, "commit": commit}
            row |= {"labels": "few-shot images"} if name == "tada" else {}
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(json.dumps(row | summary(counts, read_classes(scored).names, old), indent=1))
        found.append(dict(json.loads(file.read_text())))
    return found


def table(rows: list[dict[str, Any]]) -> Table:
    """mIoU, of old and new classes where there are such, and IoU of each class, in percent."""
    names = list(dict.fromkeys(name for row in rows for name in row["iou"]))
    means = [key for key in ("miou", "mIoU-old", "mIoU-new") if any(key in row for row in rows)]
    out = Table("split", "row", "seed", *means, *names)
    for row in rows:
        values = [row.get(key) for key in means] + [row["iou"].get(name) for name in names]
        shown = ["-" if value is None else f"{100 * value:.1f}" for value in values]
        out.add_row(row["split"], row["row"], str(row["seed"]), *shown)
    return out


def main() -> int:
    a = tyro.cli(Arguments)
    if unknown := set(a.splits) - {"ucd", *UNLIKE}:
        print(f"error: no split {sorted(unknown)[0]!r}; there are ucd, {', '.join(UNLIKE)}", file=sys.stderr)
        return 2
    last_change = ["git", "log", "-1", "--format=%h", "--", "udaseg", "pipelines", "benchmarks/*.py"]
    commit = subprocess.run(last_change, capture_output=True, text=True, check=True).stdout.strip()
    ensure_ray()
    pair = Pair(a, commit)
    for split in a.splits:
        rows = [row for seed in range(a.seeds) for row in run(split, pair, seed, commit)]
        Console().print(table(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
