"""Streamed columns as augmented batches on the device."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import cache

import numpy as np
import torch
from torch import Tensor

from udaseg.components.augment import strong, weak
from udaseg.config import Data
from udaseg.data.confidence import decode_confidence, decode_distribution
from udaseg.types import Batch


def to_batches(columns: Mapping[str, np.ndarray], data: Data, *, seed: int, device: torch.device) -> dict[str, Batch]:
    """Streamed columns as augmented batches on the device, keyed per sample.

    They cross to it as they are stored, in 8 and 16 bits, and are decoded there.

    Args:
        columns: "index" (B,), and per stream "<name>_image" (B, H, W, 3), and maybe "<name>_label" and
            "<name>_confidence" (B, H, W), and "<name>_distribution" and "<name>_prior" (B, K, h, w), uint16 codes, and
            "<name>_candidates" (B, U + 1, K).
        data: augmentation settings.
        seed: key of the run and stage.
        device: where the batches go.
    """
    parts = ("image", "label", "confidence", "distribution", "prior", "candidates")
    wanted = [f"{name}_{part}" for name in data.streams() for part in parts]
    there = _copied({name: columns[name] for name in wanted if name in columns}, device)
    index = torch.from_numpy(columns["index"].astype(np.int64))
    batches = {}
    for name, stream in data.streams().items():
        image, label, code, all_codes, prior, candidates = (there.get(f"{name}_{part}") for part in parts)
        assert image is not None
        batch = Batch(
            image=image.permute(0, 3, 1, 2).float() / 255,  # channels last, as it comes: convolutions are faster so
            index=index,
            stream=name,
            label=None if label is None else label.long(),
            weight=None if code is None else _decoded(code, decode_confidence),
            distribution=None if all_codes is None else _decoded(all_codes, decode_distribution),
            prior=None if prior is None else _decoded(prior, decode_distribution),
            candidate=None if candidates is None else candidates.bool(),
        )
        batch = weak(batch, seed=seed, purpose=name, flip=data.flip, rotation=data.rotation)
        if stream.jitter or stream.grey or stream.blur:
            view = strong(
                batch.image,
                index,
                seed=seed,
                purpose=name,
                jitter=stream.jitter,
                jitter_probability=stream.jitter_probability,
                hue=stream.hue,
                grey_probability=stream.grey,
                blur_probability=stream.blur,
            )
            batch = replace(batch, image=view)
        batches[name] = batch
    return batches


def _copied(columns: Mapping[str, np.ndarray], device: torch.device) -> dict[str, Tensor]:
    """Columns on the device, by way of memory of our own, since Arrow's is read-only.

    To a GPU they go from pinned memory on a stream of their own, while it still computes the step queued before.
    """
    mine = {name: torch.tensor(column) for name, column in columns.items()}
    if device.type != "cuda":
        return {name: column.to(device) for name, column in mine.items()}
    copying, computing = _copying_stream(device), torch.cuda.current_stream(device)
    with torch.cuda.stream(copying):
        there = {name: column.pin_memory().to(device, non_blocking=True) for name, column in mine.items()}
    computing.wait_stream(copying)
    for column in there.values():
        column.record_stream(computing)  # its memory was had on the other stream
    return there


@cache
def _copying_stream(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


def _decoded(code: Tensor, decode: Callable[[np.ndarray], np.ndarray]) -> Tensor:
    """What `decode` makes of uint16 codes, on their device, by a table of all."""
    return _table(decode, code.device)[code.int()]


@cache
def _table(decode: Callable[[np.ndarray], np.ndarray], device: torch.device) -> Tensor:
    return torch.from_numpy(decode(np.arange(1 << 16, dtype=np.uint16))).to(device, non_blocking=True)
