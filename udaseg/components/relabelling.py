"""Labels of a source whose classes are not the target's: what a pixel may be, and which of it the teacher says."""

from __future__ import annotations

import torch
from torch import Tensor

from udaseg.components.drawn import on_device
from udaseg.rng import uniforms
from udaseg.types import IGNORE


@torch.no_grad()
def relabel(
    label: Tensor, candidates: Tensor, guess: Tensor | None, index: Tensor, *, seed: int, keep: float = 1.0
) -> Tensor:
    """Give pixels that may be of several classes one of them, and unknown ones a class that the source does not have.

    A pixel of several classes takes the guessed one where it is among them, with probability `keep`, else any other of
    them; without a guess that fits, any of them. An unknown pixel takes the guessed class where the source has none
    such, else it stays unknown.

    Source: relabelling of TADA (2109.04813), `trainTACS_*_relabel.py` of ETHRuiGong/TADA.

    Args:
        label: (B, H, W) int64: train ids below K; K + i = one of candidates[:, i]; 255 = unknown.
        candidates: (B, U + 1, K) bool, the last row what unknown pixels may be.
        guess: (B, H, W) int64 train ids; None = nothing is guessed.
        index: (B,) global sample indices.
        seed: key of the run and stage.
        keep: in [0, 1].

    Returns:
        (B, H, W) int64 train ids, 255 = ignore.
    """
    unions, classes = candidates.shape[1] - 1, candidates.shape[2]
    unknown = label == IGNORE
    row = torch.where(unknown, unions, label - classes).clamp(0, unions).flatten(1)
    ids = torch.arange(classes, device=label.device)
    members = torch.where(candidates, ids, classes).sort(2).values.flatten(1)  # of each row, first ones first
    count = candidates.sum(2).gather(1, row)
    result = label.flatten(1)
    if unions:
        drawn = on_device(uniforms(seed, index.numpy(), "relabel", row.shape[1]), label.device)
        place = (drawn * count).long()
        if guess is not None:
            at = row * classes + guess.flatten(1)
            fits = candidates.flatten(1).gather(1, at)
            own = candidates.cumsum(2).flatten(1).gather(1, at) - 1
            other = ((drawn - keep).clamp_min(0) / max(1 - keep, 1e-12) * (count - 1)).long().clamp_max(count - 2)
            other = (other + (other >= own)).clamp_min(0)
            place = torch.where(fits, torch.where(drawn < keep, own, other), place)
        chosen = members.gather(1, row * classes + place.minimum((count - 1).clamp_min(0)))
        result = torch.where((label >= classes).flatten(1) & ~unknown.flatten(1), chosen, result)
    if guess is not None:
        absent = candidates[:, unions].gather(1, guess.flatten(1))
        result = torch.where(unknown.flatten(1) & absent, guess.flatten(1), result)
    return result.view_as(label)
