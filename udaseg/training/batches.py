"""Streamed columns as augmented batches on the device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from udaseg.components.augment import strong, weak
from udaseg.config import Data
from udaseg.data.confidence import decode_confidence, decode_distribution
from udaseg.types import Batch


def to_batches(columns: Mapping[str, np.ndarray], data: Data, *, seed: int, device: torch.device) -> dict[str, Batch]:
    """Streamed uint8 columns as augmented batches on the device, keyed per sample.

    Args:
        columns: "index" (B,), and per stream "<name>_image" (B, H, W, 3), and maybe "<name>_label" and
            "<name>_confidence" (B, H, W), and "<name>_distribution" and "<name>_prior" (B, K, h, w).
        data: augmentation settings.
        seed: key of the run and stage.
        device: where the batches go.
    """

    def there(column: np.ndarray) -> Tensor:
        """On the device, by way of a copy, since Arrow's memory is read-only."""
        return torch.tensor(column).to(device, non_blocking=True)

    index = torch.from_numpy(columns["index"].astype(np.int64))
    batches = {}
    for name, stream in data.streams().items():
        image = there(columns[f"{name}_image"])
        parts = ("label", "confidence", "distribution", "prior")
        label, code, all_codes, prior = (columns.get(f"{name}_{part}") for part in parts)
        batch = Batch(
            image=image.permute(0, 3, 1, 2).float() / 255,  # channels last, as it comes: convolutions are faster so
            index=index,
            stream=name,
            label=None if label is None else there(label).long(),
            weight=None if code is None else there(decode_confidence(code)),
            distribution=None if all_codes is None else there(decode_distribution(all_codes)),
            prior=None if prior is None else there(decode_distribution(prior)),
        )
        batch = weak(batch, seed=seed, purpose=name, flip=data.flip, rotation=data.rotation)
        if stream.jitter or stream.blur:
            view = strong(
                batch.image, index, seed=seed, purpose=name, jitter=stream.jitter, blur_probability=stream.blur
            )
            batch = replace(batch, image=view)
        batches[name] = batch
    return batches
