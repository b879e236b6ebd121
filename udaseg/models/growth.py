"""Networks that learn more classes: the state of one with fewer becomes that of one with more."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from udaseg.models.heads import Head, HeadPair, classifiers


def grown(
    state: Mapping[str, Tensor], net: nn.Module, head: Head | HeadPair, attention: Head | None, background: int
) -> dict[str, Tensor]:
    """A state of fewer classes as one of a network whose first classes are the same.

    The background's probability is shared out evenly: each of N new classes gets the background's weights, and the
    biases of both fall by ln(N + 1) in all. So every old class is as likely as it was. Nothing else changes; a state of
    as many classes stays as it is. Values are not read.

    Source: MiB (2002.00718), eq. 10, which UCD (2203.14098) keeps: `init_new_classifier` of fcdl94/MiB.

    Args:
        state: of a `Segmenter`.
        net: what holds the head, whose names in the state begin with "net.".
        head: the head of more classes.
        attention: HRDA's, a share per class: those of new classes begin as the background's.
        background: the class that pixels of new ones had.

    Raises ValueError where the head has no biases to share the probability out with.
    """
    names = {id(module): f"net.{name}" for name, module in net.named_modules()}
    state, parts = dict(state), classifiers(head)
    for part in [*parts, *(() if attention is None else classifiers(attention))]:
        weight = state.get(f"{names[id(part)]}.weight")
        if weight is None or not background < len(weight) < part.out_channels:
            continue
        if part.bias is None:
            raise ValueError(
                "this head has no biases, so that new classes cannot share the background's probability; "
                "use a network with another model.head"
            )
        old, new = len(weight), part.out_channels - len(weight)
        fall = math.log(new + 1) / len(parts) if part in parts else 0.0
        for name in (f"{names[id(part)]}.weight", f"{names[id(part)]}.bias"):
            if name in state:
                rows = state[name]
                state[name] = torch.cat([rows, rows[background, None].expand(new, *rows.shape[1:])])
        if f"{names[id(part)]}.bias" in state:
            bias = state[f"{names[id(part)]}.bias"].clone()
            bias[background] -= fall
            bias[old:] -= fall
            state[f"{names[id(part)]}.bias"] = bias
    return state
