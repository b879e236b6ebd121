"""All that is to be known of a GPU, from one command of less than ten minutes.

    python -m benchmarks.gpu --out DIR [--parts machine,agreement,...] [--seconds 570] [--device cuda]
    python -m benchmarks.gpu --out DIR --device cpu --tiny        the same code on small networks

The parts, in the order of their worth (`benchmarks/gpu_parts.py` has them):

- machine: versions, the card, and the commit.
- agreement: loss terms and gradient norm of three steps of every small recipe, on the device against the CPU in single
  precision, and on the device in bf16 against single precision.
- synchronisation: the lines at which the step of every small recipe waits for the device.
- published: one step of every published recipe, with its memory.
- speed: steps and images per second, MFU, the ten dearest kernels and the idle share, in bf16 at published crops.
- pipeline: `dacs_small` through Ray: its wait for data, its step against the bare one, a resumption against the run.
- pseudo_label: images per second of the job at 512 x 1024 against the bare network.
- augmentation: what share of a step augmentation is.
- data: wait for data and step of published recipes through Ray, on images of GTA5's and Cityscapes' sizes.
- compiled: as speed, with torch.compile.

Goals on a card: data wait <= 3 %, pipeline <= 1.10 of the bare step, MFU >= 0.45 for ViT-B and ViT-L, pseudo-labels >=
0.9 of bare inference.

DIR/results.jsonl has a line for each result as it comes, and one for the end of each part: "ok", "failed", "timeout" or
"skipped"; DIR/PART.log what the part printed. A failure stops neither other parts nor other recipes of its part.

Every part is a process of its own, forked when all is imported but CUDA has not begun, and killed at its limit: a
signal would not interrupt a kernel that hangs, and an illegal access or a lack of memory spoils CUDA for the whole
process. Only the standard library is imported here, so that a missing package costs the parts that need it.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from benchmarks.gpu_results import Result, Settings, described

Part = Callable[[Settings], Iterator[Result]]

LIMITS = {
    "machine": 20,
    "agreement": 120,
    "synchronisation": 70,
    "published": 100,
    "speed": 75,
    "pipeline": 75,
    "pseudo_label": 60,
    "augmentation": 20,
    "data": 90,
    "compiled": 150,
}
"""The parts and the most seconds that each may take."""


def run(parts: Mapping[str, Part], limits: Mapping[str, float], settings: Settings, out: Path, seconds: float) -> int:
    """Run the parts one after the other, within `seconds` in all; returns how many did not end well."""
    out.mkdir(parents=True, exist_ok=True)
    began, bad = time.monotonic(), 0
    for name, part in parts.items():
        left = seconds - (time.monotonic() - began)
        end: Result = {"part": name}
        if left <= 0:
            end["end"] = "skipped"
        else:
            since = time.monotonic()
            end["end"] = _apart(name, part, min(limits[name], left), settings, out)
            end["seconds"] = round(time.monotonic() - since, 1)
        bad += end["end"] != "ok"
        _write(out, end)
    return bad


def _apart(name: str, part: Part, limit: float, settings: Settings, out: Path) -> str:
    """How a part ended, in a process and session of its own."""
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        os.setsid()
        os._exit(_inside(name, part, settings, out))
    until = time.monotonic() + limit
    while True:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            code = os.waitstatus_to_exitcode(status)
            return {0: "ok", 1: "failed"}.get(code, f"failed: ended with {code}")
        if time.monotonic() > until:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return "timeout"
        time.sleep(0.02)


def _inside(name: str, part: Part, settings: Settings, out: Path) -> int:
    """Run a part in its process; 0 where all of it went well."""
    shown = os.dup(1)
    log = os.open(out / f"{name}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    good = True
    try:
        for result in part(settings):
            good &= "error" not in result and result.get("ok", True)
            _write(out, {"part": name, **result}, shown)
    except BaseException as error:
        good = False
        traceback.print_exc()
        _write(out, {"part": name, "error": described(error)}, shown)
    sys.stdout.flush()
    sys.stderr.flush()
    return 0 if good else 1


def _write(out: Path, result: Result, shown: int = 1) -> None:
    line = json.dumps(result) + "\n"
    with open(out / "results.jsonl", "a") as file:
        file.write(line)
    os.write(shown, line.encode())


def _parts() -> dict[str, Part]:
    """The parts by name; where their module cannot be imported, parts that say why."""
    try:
        module = importlib.import_module("benchmarks.gpu_parts")
    except Exception as error:
        reason = described(error)

        def missing(settings: Settings) -> Iterator[Result]:
            yield {"error": reason, "python": sys.version}

        return dict.fromkeys(LIMITS, missing)
    return {name: getattr(module, name) for name in LIMITS}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True, type=Path)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true")
    parser.add_argument("--parts", default=",".join(LIMITS))
    parser.add_argument("--seconds", default=570.0, type=float, help="of all parts together")
    a = parser.parse_args()
    names = a.parts.split(",")
    if unknown := sorted(set(names) - LIMITS.keys()):
        parser.error(f"no part {', '.join(unknown)}; there are {', '.join(LIMITS)}")
    made = _parts()
    chosen = {name: made[name] for name in names}
    limits = LIMITS if a.device == "cuda" else dict.fromkeys(LIMITS, a.seconds)
    return min(1, run(chosen, limits, Settings(device=a.device, tiny=a.tiny), a.out, a.seconds))


if __name__ == "__main__":
    sys.exit(main())
