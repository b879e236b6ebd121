"""Scoring of checkpoints while a run trains: on its own ranks, so that a sweep needs no device beside them."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from udaseg.components.augment import strong
from udaseg.data.index import open_index
from udaseg.distributed import rank, sum_over_ranks, world_size
from udaseg.evaluation.metrics import confusion, mean_iou
from udaseg.evaluation.model_selection import image_sums, scores
from udaseg.models.inference import predict
from udaseg.models.segmenter import Segmenter
from udaseg.rng import keyed

_VIEW: dict[str, Any] = {"seed": 0, "purpose": "score", "jitter_probability": 1.0, "blur_probability": 1.0}


_PIXELS = 256  # of each image, for the density: all pairs of its pixels would be too many


@dataclass(frozen=True, kw_only=True)
class Scoring:
    """The images that every checkpoint is scored on."""

    directory: str
    """Dataset directory, absolute or a URI."""
    split: str = "val"
    images: int = 200
    """Most images; of more, that many at even distances."""
    window: tuple[int, int] | None = None
    """Height and width of sliding windows in pixels; None = the network's own, see `score`."""


def score(network: Segmenter, scoring: Scoring, *, device: torch.device, **views: Any) -> dict[str, float]:
    """The scores of `evaluation.model_selection`, and "miou" where the images are labelled. Ranks share the images.

    Args:
        network: left as it is.
        scoring: the images.
        device: of the network.
        views: how the network sees images, the arguments of `udaseg.models.inference.predict`.
    """
    views |= {} if scoring.window is None else {"window": scoring.window}
    network = copy.deepcopy(network).eval()  # a prediction may leave its mode and cached tensors behind
    index = open_index(scoring.directory)
    start, stop = index.rows(scoring.split)
    rows = np.linspace(start, stop - 1, min(scoring.images, stop - start)).round().astype(np.int64)
    labelled = not index.table["label_uri"].take(rows).null_count
    classes = len(index.classes)
    sums = torch.zeros(classes + 5, dtype=torch.float64, device=device)
    counts = torch.zeros((classes, classes), dtype=torch.int64, device=device)
    for row in rows[rank() :: world_size()].tolist():
        image = torch.tensor(index.image(row)).to(device).permute(2, 0, 1)[None].float() / 255
        view = strong(image, torch.tensor([row]), **_VIEW)
        first, second = (predict(network, x, **views)[0] for x in (image, view))
        size = first[0].numel()
        sums += image_sums(first, second, keyed(row, "score").choice(size, min(size, _PIXELS), replace=False))
        if labelled:
            here = confusion(index.train_ids(row), first.max(0).indices.cpu().numpy(), classes)
            counts += torch.from_numpy(here).to(device)
    miou = {"miou": mean_iou(sum_over_ranks(counts).cpu().numpy())} if labelled else {}
    return miou | scores(sum_over_ranks(sums))
