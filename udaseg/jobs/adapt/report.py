"""The report of an adaptation, gathered from its directory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image

from udaseg.checkpoints.directory import load_model
from udaseg.config import Recipe
from udaseg.data.images import read_image
from udaseg.data.index import open_index
from udaseg.data.storage import join, write_bytes
from udaseg.evaluation.verdict import Verdict
from udaseg.jobs.adapt.choice import Choice
from udaseg.jobs.adapt.inputs import HELD_OUT, Inputs, class_pixels
from udaseg.jobs.adapt.runs import run_directory
from udaseg.jobs.run_directory import metrics_of_all_stages
from udaseg.models.inference import predict, to_pixels
from udaseg.overrides import to_json
from udaseg.reports.adapt import ToLabel, adapt_page
from udaseg.reports.adaptation import Example
from udaseg.types import IGNORE

_EXAMPLES = 6
_THUMBNAIL = 240  # pixels


def write_report(
    out: str,
    *,
    before: str,
    after: str,
    winner: str,
    verdicts: Mapping[str, Verdict],
    frequency: Mapping[str, Sequence[float] | None],
    failed: Mapping[str, str],
    inputs: Inputs,
    choice: Choice,
    runs: Mapping[str, Recipe],
    to_label: Sequence[Mapping[str, Any]],
    seconds: Mapping[str, float],
) -> None:
    """Write `out`/report.html; `before` and `after` are model directories, for the others see `adapt_page`."""
    index = open_index(inputs.target)
    source = None
    if inputs.source is not None:
        pixels = class_pixels(inputs.source)
        source = pixels / max(1, pixels.sum())
    page = adapt_page(
        classes=index.classes,
        winner=winner,
        verdicts=verdicts,
        failed=failed,
        frequencies=[source, *(frequency[name] for name in ("expected", "source_only", winner))],
        examples=_examples(before, after, inputs.target),
        losses={
            name: metrics_of_all_stages(run_directory(out, name), [stage.steps for stage in recipe.stages])
            for name, recipe in runs.items()
            if name not in failed
        },
        to_label=[
            ToLabel(item["image_id"], item["entropy"], _thumbnail(read_image(item["image"], index.depth_range)))
            for item in to_label
        ],
        choice=choice.reasons,
        settings={name: to_json(recipe) for name, recipe in runs.items()},
        seconds=seconds,
    )
    write_bytes(join(out, "report.html"), page.encode())


def _thumbnail(image: np.ndarray) -> Image.Image:
    picture = Image.fromarray(image)
    picture.thumbnail((_THUMBNAIL, _THUMBNAIL))
    return picture


def _examples(before: str, after: str, target: str) -> list[Example]:
    """Held-out images at even distances, predicted by two networks in this process."""
    networks = [load_model(uri) for uri in (before, after)]
    index = open_index(target)
    labelled = not index.lacks(HELD_OUT, "label_uri")
    start, stop = index.rows(HELD_OUT)
    examples = []
    for row in np.linspace(start, stop - 1, min(_EXAMPLES, stop - start)).astype(int).tolist():
        image = index.image(row)
        pixels = to_pixels(np.array(image[None]), torch.device("cpu"))
        first, last = (predict(network, pixels, **card.views())[0] for network, card in networks)
        confidence, label = last.max(0)
        truth = index.train_ids(row) if labelled else np.full(label.shape, IGNORE, np.uint8)
        examples.append(Example(image, truth, first.argmax(0).numpy(), label.numpy(), confidence.numpy()))
    return examples
