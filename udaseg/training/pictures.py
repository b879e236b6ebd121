"""A few target images as a run sees them, the same ones at every checkpoint, so that they can be watched."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from udaseg.config import Stage
from udaseg.data.classes import Classes
from udaseg.data.pictures import palette_image
from udaseg.data.plan import Plan
from udaseg.methods.base import Method
from udaseg.models.segmenter import Segmenter
from udaseg.models.teacher import EMATeacher
from udaseg.rng import key_to_seed
from udaseg.training.batches import to_batches
from udaseg.types import Batch

PICTURES = 3
"""Images that are shown."""


def load_samples(plan: Plan, per_rank: int) -> list[dict[str, np.ndarray]]:
    """The first samples of a plan, as many as are shown, in batches of a rank's size. Raises as `Plan.load` does."""
    batches = []
    for first in range(0, PICTURES, per_rank):
        samples = [plan.load(index) for index in range(first, first + per_rank)]
        batches.append({name: np.stack([sample[name] for sample in samples]) for name in samples[0]})
    return batches


@torch.no_grad()
def draw_pictures(
    method: Method,
    samples: Sequence[Mapping[str, np.ndarray]],
    stage: Stage,
    classes: Classes,
    *,
    step: int,
    seed: int,
    device: torch.device,
) -> dict[str, list[Image.Image]]:
    """By name the pictures of each image; labels have the palette's colours, and are black where they are ignored.

    "input" is the image, "prediction" what the evaluated network says of it. "label" or "pseudo_label" is what the
    stage's data has of it, else what the teacher says; neither where there is none. "mixture" is what the student is
    shown of it in a step, where that is another image: a mixture with a source image, or a strong view; "mixture_2" ...
    where it is shown more.

    Nothing of the method changes: it is a copy that takes the step, without learning. All ranks must call it alike,
    since a method may sum over them.

    Args:
        method: on its device.
        samples: of `load_samples`; the stage has a stream "target".
        stage: the configuration.
        classes: whose palette is used.
        step: steps done.
        seed: key of all draws.
        device: of the method.
    """
    method = copy.deepcopy(method)
    torch.manual_seed(key_to_seed(seed, "dropout"))
    found: dict[str, list[Image.Image]] = {}
    each = [to_batches(columns, stage.data, seed=seed, device=device) for columns in samples]
    method.eval()  # all predictions come first: a step moves the statistics of batch norms
    predictor = method.predictor
    predicted = [predictor(batches["target"].image, "target", detail="everywhere").logits.argmax(1) for batches in each]
    method.train()
    for batches, prediction in zip(each, predicted, strict=True):
        target = batches["target"]
        taught = _taught(method, stage, target)
        with _shown(method.student) as shown:
            for _ in method.losses(batches, min(step, stage.steps - 1), stage.steps):
                pass
        other = _others(target.image, shown)
        views = {"input": target.image} | {f"mixture_{i + 1}" if i else "mixture": view for i, view in enumerate(other)}
        for name, images in views.items():
            found.setdefault(name, []).extend(map(_photo, images))
        for name, labels in (taught | {"prediction": prediction}).items():
            found.setdefault(name, []).extend(_coloured(label, classes) for label in labels)
    return {name: pictures[:PICTURES] for name, pictures in found.items()}


def _taught(method: Method, stage: Stage, target: Batch) -> dict[str, Tensor]:
    """(B, H, W) train ids that the student is taught of the target, by their name."""
    assert stage.data.target is not None
    if target.label is not None:
        true = stage.data.target.labels in ("true", "candidates")
        return {"label" if true else "pseudo_label": target.label}
    teacher = getattr(method, "teacher", None)
    return {"pseudo_label": teacher.label(target.image)[1]} if isinstance(teacher, EMATeacher) else {}


@contextlib.contextmanager
def _shown(student: Segmenter) -> Iterator[list[Tensor]]:
    """The images that a student is given as the target's while the block runs."""
    shown: list[Tensor] = []

    def note(module: Any, inputs: tuple[Any, ...], names: Mapping[str, Any]) -> None:
        image, domain = [*inputs, "target"][:2]
        if names.get("domain", domain) == "target":
            shown.append(image)

    handle = student.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield shown
    finally:
        handle.remove()


def _others(image: Tensor, shown: Sequence[Tensor]) -> list[Tensor]:
    """The different ones of those that are not the image itself."""
    found = [image]
    for view in shown:
        if view.shape == image.shape and not any(torch.equal(view, other) for other in found):
            found.append(view)
    return found[1:]


def _photo(image: Tensor) -> Image.Image:
    return Image.fromarray((image * 255).round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().cpu().numpy())


def _coloured(label: Tensor, classes: Classes) -> Image.Image:
    return palette_image(label.byte().cpu().numpy(), classes).convert("RGB")
