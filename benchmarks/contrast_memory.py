"""Memory and time of CLUDA's pixel-pair contrast: in blocks, as here, and with whole matrices.

    python -m benchmarks.contrast_memory [--side 65] [--images 2] [--channels 256]

Each form runs forward and backward in a process of its own; what is printed is the growth of its resident set, or of
the GPU's allocated memory, at the peak; freed memory goes back to the system at once, so that it does not count. Both
give the same loss and gradient, which is checked.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor

from udaseg.losses.pixel_pair import pixel_contrast

Form = Literal["blocks", "matrices"]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    side: int = 65
    """Side of the feature map; CLUDA's is 65."""
    images: int = 2
    channels: int = 256
    classes: int = 19


def matrices(feature: Tensor, label: Tensor) -> Tensor:
    """The same loss with whole matrices, as one writes it down."""
    unit = F.normalize(feature.permute(0, 2, 3, 1).flatten(0, 2), dim=1)
    y = label.flatten()
    similarity = unit @ unit.T
    similarity = similarity - similarity.detach().max(1, keepdim=True).values
    same = y[:, None] == y
    power = similarity.exp()
    negative = (power * ~same).sum(1, keepdim=True)
    log_share = similarity - (power + negative).log()
    positive = same.float() - torch.eye(len(y), device=y.device)
    return (-(positive * log_share).sum(1) / positive.sum(1).clamp_min(1)).mean()


def measure(form: Form, a: Arguments) -> tuple[float, float, float, float]:
    """(peak growth in MiB, seconds, loss, norm of the gradient) of one form."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    shape = (a.images, a.channels, a.side, a.side)
    feature = torch.randn(shape, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, a.classes, (a.images, a.side, a.side), generator=generator).to(device)
    forms: dict[Form, Callable[[Tensor, Tensor], Tensor]] = {"blocks": pixel_contrast, "matrices": matrices}
    small = torch.randn(1, 8, 4, 4, requires_grad=True)
    forms[form](small.to(device), label[:1, :4, :4]).backward()  # libraries load on first use
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.monotonic()
    loss = forms[form](feature, label)
    loss.backward()
    value = loss.item()
    seconds = time.monotonic() - began
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert feature.grad is not None
    return (peak - before) / 2**20, seconds, value, feature.grad.norm().item()


def main(a: Arguments) -> None:
    rows: dict[Form, tuple[float, float, float, float]] = {}
    forms: tuple[Form, ...] = ("blocks", "matrices")
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes that measure
    for form in forms:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows[form] = pool.submit(measure, form, a).result()
    pixels = a.images * a.side**2
    table = Table(title=f"{pixels} pixels: one matrix of similarities has {pixels**2 * 4 / 2**20:.0f} MiB")
    for name in ("form", "peak memory MiB", "seconds", "loss", "gradient norm"):
        table.add_column(name, justify="right")
    for form, (memory, seconds, value, norm) in rows.items():
        table.add_row(form, f"{memory:.0f}", f"{seconds:.2f}", f"{value:.6f}", f"{norm:.6g}")
    Console().print(table)
    (blocks, *first), (whole, *second) = rows["blocks"], rows["matrices"]
    if any(abs(x - y) > 1e-4 * abs(y) for x, y in zip(first[1:], second[1:], strict=True)):
        raise SystemExit("the two forms differ")
    print(f"memory ratio {blocks / whole:.3f}")


if __name__ == "__main__":
    main(tyro.cli(Arguments))
