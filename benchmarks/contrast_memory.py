"""Memory and time of contrasts between pixels: in blocks, as here, and with whole matrices; and what their banks hold.

    python -m benchmarks.contrast_memory [--losses pairs regions views bank] [--side 65] [--images 2] [--channels 256]

"pairs" is CLUDA's contrast of all pixels of a batch, "regions" RCCR's of cells with a bank of 24,000, "views" EHTDI's
of the cells of two views, "bank" UCDA's of all cells with a bank of each class. Each form runs forward and backward in
a process of its own; what is printed is the growth of its resident set, or of the GPU's allocated memory, at the peak;
freed memory goes back to the system at once, so that it does not count. Both give the same loss and gradient, which is
checked.
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from typing import Literal

import torch
import torch.nn.functional as F
import tyro
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from udaseg.components.memory_bank import MemoryBank, PixelQueue
from udaseg.components.pixel_bank import PixelBank
from udaseg.losses.pixel_pair import flatten, memory_contrast, pixel_contrast, region_contrast, view_contrast
from udaseg.methods.rccr import RCCR
from udaseg.methods.sepico import SePiCo
from udaseg.methods.ucda import UCDA

Form = Literal["blocks", "matrices"]
Name = Literal["pairs", "regions", "views", "bank"]
Run = Callable[[Tensor, Tensor], Tensor]
"""(feature (B, A, h, w), label (B, h, w)) -> loss."""
SCALE = 20.0
"""Of "views", as EHTDI has it for cells."""


@dataclass(frozen=True, kw_only=True)
class Arguments:
    losses: tuple[Name, ...] = ("pairs", "regions", "views", "bank")
    side: int = 65
    """Side of the feature map; that of crops of 512 at a stride of 8 is 65."""
    images: int = 2
    channels: int = 256
    classes: int = 19


def whole_pairs(feature: Tensor, label: Tensor) -> Tensor:
    """CLUDA's contrast with whole matrices, as one writes it down."""
    unit = F.normalize(flatten(feature), dim=1)
    y = label.flatten()
    similarity = unit @ unit.T
    similarity = similarity - similarity.detach().max(1, keepdim=True).values
    same = y[:, None] == y
    power = similarity.exp()
    negative = (power * ~same).sum(1, keepdim=True)
    log_share = similarity - (power + negative).log()
    positive = same.float() - torch.eye(len(y), device=y.device)
    return (-(positive * log_share).sum(1) / positive.sum(1).clamp_min(1)).mean()


def regions(feature: Tensor, label: Tensor, *, whole: bool) -> Tensor:
    """RCCR's contrast of all cells with a bank as long as its own, of such features."""
    unit, y, length = F.normalize(flatten(feature), dim=1), label.flatten(), RCCR.Config().bank_length
    rows = torch.arange(length, device=y.device) * 7 % len(y)
    bank, bank_label, positive = unit.detach()[rows], y[rows], unit.detach().roll(1, 0)
    if not whole:
        return region_contrast(unit, positive, y, torch.ones_like(y, dtype=torch.bool), bank, bank_label)
    own = (unit * positive).sum(1, keepdim=True) / 0.1
    others = (unit @ bank.T / 0.1).masked_fill(bank_label == y[:, None], -torch.inf)
    share = own.squeeze(1) - torch.cat([own, others], 1).logsumexp(1)
    return -(share.exp() + 1e-8).log().mean()


def views(feature: Tensor, label: Tensor, *, whole: bool) -> Tensor:
    """EHTDI's contrast of the cells of each image with those of the next."""
    total = feature.sum() * 0
    for first, second in zip(feature, feature.roll(1, 0), strict=True):
        first, second = (x.flatten(1).T.softmax(1) for x in (first, second))
        if not whole:
            total = total + view_contrast(first, second, scale=SCALE)
            continue
        both = torch.cat([first, second])
        similarity = (SCALE * both @ both.T).fill_diagonal_(-torch.inf)
        total = total + F.cross_entropy(similarity, torch.arange(len(both), device=both.device).roll(len(first)))
    return total / len(feature)


def bank(feature: Tensor, label: Tensor, *, whole: bool) -> Tensor:
    """UCDA's contrast of all cells with a bank as long as its own, of such features."""
    unit, y, temperature = F.normalize(flatten(feature), dim=1), label.flatten(), UCDA.Config().temperature
    rows = torch.arange(_bank_size(), device=y.device) * 7 % len(y)
    memory, memory_label = unit.detach()[rows], y[rows]
    if not whole:
        return memory_contrast(unit, y, memory, memory_label, temperature=temperature)
    similarity, same = unit @ memory.T / temperature, y[:, None] == memory_label
    power = similarity.exp()
    log_share = similarity - (power + (power * ~same).sum(1, keepdim=True)).log()
    found = same.sum(1)
    return -((log_share * same).sum(1) / found.clamp_min(1)).sum() / (found > 0).sum().clamp_min(1)


def _bank_size() -> int:
    """Pixels in one of UCDA's banks, of 19 classes."""
    return 19 * UCDA.Config().bank_length


FORMS: dict[Name, dict[Form, Run]] = {
    "pairs": {"blocks": pixel_contrast, "matrices": whole_pairs},
    "regions": {"blocks": partial(regions, whole=False), "matrices": partial(regions, whole=True)},
    "views": {"blocks": partial(views, whole=False), "matrices": partial(views, whole=True)},
    "bank": {"blocks": partial(bank, whole=False), "matrices": partial(bank, whole=True)},
}


def measure(name: Name, form: Form, a: Arguments) -> tuple[float, float, float, float]:
    """(peak growth in MiB, seconds, loss, norm of the gradient) of one form."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    generator = torch.Generator().manual_seed(0)
    shape = (a.images, a.channels, a.side, a.side)
    feature = torch.randn(shape, generator=generator).to(device).requires_grad_()
    label = torch.randint(0, a.classes, (a.images, a.side, a.side), generator=generator).to(device)
    run = FORMS[name][form]
    small = torch.randn(1, 8, 4, 4, requires_grad=True)
    run(small.to(device), label[:1, :4, :4]).backward()  # libraries load on first use
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
    else:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    began = time.monotonic()
    loss = run(feature, label)
    loss.backward()
    value = loss.item()
    seconds = time.monotonic() - began
    if device.type == "cuda":
        peak = torch.cuda.max_memory_allocated()
    else:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    assert feature.grad is not None
    return (peak - before) / 2**20, seconds, value, feature.grad.norm().item()


def compare(name: Name, a: Arguments) -> None:
    """Print both forms of a loss. Exits where they differ."""
    rows: dict[Form, tuple[float, float, float, float]] = {}
    for form in FORMS[name]:
        with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
            rows[form] = pool.submit(measure, name, form, a).result()
    pixels = a.images * a.side**2
    width = {"regions": RCCR.Config().bank_length, "bank": _bank_size()}.get(name, pixels)
    table = Table(title=f"{name}, {pixels} pixels: a matrix of similarities has {pixels * width * 4 / 2**20:.0f} MiB")
    for column in ("form", "peak memory MiB", "seconds", "loss", "gradient norm"):
        table.add_column(column, justify="right")
    for form, (memory, seconds, value, norm) in rows.items():
        table.add_row(form, f"{memory:.0f}", f"{seconds:.2f}", f"{value:.6f}", f"{norm:.6g}")
    Console().print(table)
    (blocks, *first), (whole, *second) = rows["blocks"], rows["matrices"]
    if any(abs(x - y) > 1e-4 * abs(y) for x, y in zip(first[1:], second[1:], strict=True)):
        raise SystemExit("the two forms differ")
    print(f"memory ratio {blocks / whole:.3f}")


def banks(a: Arguments) -> None:
    """Print what the banks of published recipes hold, whatever the number of steps and workers."""
    rccr, sepico, ucda = RCCR.Config(), SePiCo.Config(), UCDA.Config()
    made: dict[str, nn.Module] = {
        f"RCCR, {rccr.bank_length} cells": PixelQueue(rccr.bank_length, rccr.projection_channels),
        f"SePiCo, {sepico.bank_length} means a class": MemoryBank(
            a.classes, sepico.projection_channels, sepico.bank_length
        ),
        f"UCDA, {ucda.bank_length} pixels a class, of each domain": PixelBank(
            a.classes, ucda.projection_channels, ucda.bank_length
        ),
    }
    table = Table("bank", "MiB", title=f"banks of {a.classes} classes")
    for name, bank in made.items():
        table.add_row(name, f"{sum(b.numel() * b.element_size() for b in bank.buffers()) / 2**20:.1f}")
    Console().print(table)


def main(a: Arguments) -> None:
    os.environ["MALLOC_MMAP_THRESHOLD_"] = "65536"  # of the processes that measure
    banks(a)
    for name in a.losses:
        compare(name, a)


if __name__ == "__main__":
    main(tyro.cli(Arguments))
