"""How often the verdict of `udaseg adapt` is right, on networks whose real figure is known.

    python -m benchmarks.verdict --models DIR --source DIR --target DIR [--cache DIR]

`--models` holds model directories called <idea>-seed<k>; source_only-seed<k>, else warm_start-seed<k>,
is what the others of the seed are compared with. The held-out target images of `--target` have labels: they serve the
last column alone. What each network does is kept in `--cache`, and is not done again.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

import numpy as np
import tyro
from rich.console import Console
from rich.table import Table

from udaseg.checkpoints.directory import read_card
from udaseg.data.manifest import digest
from udaseg.data.storage import absolute
from udaseg.evaluation.model_selection import spearman
from udaseg.evaluation.verdict import Judged, Verdict, verdict
from udaseg.job_config import Inference
from udaseg.jobs.adapt.inputs import Inputs
from udaseg.jobs.adapt.judging import judged_here
from udaseg.reports.adapt import points

BEFORE = ("source_only", "warm_start")


@dataclass(frozen=True, kw_only=True)
class Arguments:
    models: Path
    source: str
    target: str
    cache: Path = Path("runs/verdict")
    images: int = 200
    """Most held-out images of a domain."""
    noise: float = 0.005
    """A smaller change of the true mIoU than this, of one and the same recipe between two seeds, is no change."""


def judged(model: Path, a: Arguments) -> Judged:
    of = read_card(str(model)).weights_sha256, digest(absolute(a.source)), digest(absolute(a.target)), a.images
    file = a.cache / f"{model.name}_{sha256(repr(of).encode()).hexdigest()[:12]}.npz"
    if not file.exists():
        a.cache.mkdir(parents=True, exist_ok=True)
        inputs = Inputs(absolute(a.source), absolute(a.target))
        (found,) = judged_here([str(model)], inputs, images=a.images, inference=Inference(gpu=False))
        np.savez(file, **{name: value for name, value in vars(found).items() if value is not None})
        print(model.name, flush=True)
    with np.load(file) as arrays:
        return Judged(**arrays)


def right(found: Verdict, noise: float) -> bool | None:
    """Whether a word is that of the labels; None where it or they leave it open."""
    assert found.truth is not None
    if found.word == "unclear" or abs(found.truth.mean) < noise:
        return None
    return (found.word == "helped") == (found.truth.mean > 0)


def main() -> int:
    a = tyro.cli(Arguments)
    found: dict[str, Verdict] = {}
    models = {path.name: path for path in sorted(a.models.iterdir()) if (path / "model.json").exists()}
    for name, path in models.items():
        idea, _, seed = name.rpartition("-seed")
        before = next((models[f"{first}-seed{seed}"] for first in BEFORE if f"{first}-seed{seed}" in models), None)
        if before is not None and before != path and idea not in BEFORE:
            found[name] = verdict(judged(before, a), judged(path, a))
    table = Table("network", "likeness", "steadiness", "true change", "verdict", "right")
    for name, v in sorted(found.items(), key=lambda item: item[1].truth or (0,)):
        answer = {True: "yes", False: "NO", None: "-"}[right(v, a.noise)]
        table.add_row(name, points(v.likeness), points(v.steadiness), points(v.truth), v.word, answer)
    Console().print(table)
    answers = [right(v, a.noise) for v in found.values()]
    print(
        f"{len(found)} networks: right {answers.count(True)}, wrong {answers.count(False)}, open {answers.count(None)}"
    )
    truth = [v.truth.mean for v in found.values() if v.truth is not None]
    for figure in ("likeness", "steadiness"):
        changes = [getattr(v, figure) for v in found.values()]
        if all(changes) and len(changes) > 1:
            print(f"{figure} ranks them as the labels do: Spearman {spearman([c.mean for c in changes], truth):.2f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
