"""`benchmarks.gpu` on a CPU: all of its code runs, and what fails or hangs in it costs nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import LIMITS, run
from benchmarks.gpu_parts import FLOPS
from benchmarks.gpu_results import Result, Settings

ROOT = Path(__file__).parents[1]
SLOW = ("pipeline", "pseudo_label", "data", "compiled")


def results(out: Path, parts: tuple[str, ...]) -> dict[str, list[dict[str, Any]]]:
    """What each part wrote but its end, all of which were good."""
    words = ["--device", "cpu", "--tiny", "--seconds", "900", "--out", str(out), "--parts", ",".join(parts)]
    done = subprocess.run([sys.executable, "-m", "benchmarks.gpu", *words], cwd=ROOT, capture_output=True, text=True)
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {line["part"]: line["end"] for line in lines if "end" in line} == dict.fromkeys(parts, "ok"), lines
    assert done.returncode == 0 and [json.loads(line) for line in done.stdout.splitlines()] == lines
    return {part: [line for line in lines if line["part"] == part and "end" not in line] for part in parts}


def test_the_parts_in_one_process_run_on_a_cpu(tmp_path: Path) -> None:
    found = results(tmp_path / "out", tuple(part for part in LIMITS if part not in SLOW))
    for same in found["agreement"]:
        assert [value.split()[0] for value in same["fp32 against cpu"]] == ["0", "0"], "both are the CPU"
        assert all(float(value.split()[0]) > 0 for value in same["bf16 against fp32"])
    assert_timed(found["speed"][0])
    assert found["augmentation"][0]["share"] > 0 and found["published"][0]["mib"] > 0


def assert_timed(row: dict[str, Any]) -> None:
    assert row["images_per_second"] > 0 and row["tflops"] >= 0 and 0 <= row["idle"] < 1
    assert len(row["kernels"]) == 10 and sum(row["kernels"].values()) < 1.01


@pytest.mark.full
def test_the_parts_through_ray_or_the_compiler_run_on_a_cpu(tmp_path: Path) -> None:
    found = results(tmp_path / "out", SLOW)
    assert_timed(found["compiled"][0])
    assert found["compiled"][0]["compile_seconds"] > 0
    waits, resumed, step = found["pipeline"]
    assert 0 <= waits["data_wait"] < 1 and step["ratio"] > 0
    assert resumed["resumed_off"] == resumed["repeated_off"] == 0, "a CPU repeats itself exactly"
    assert found["pseudo_label"][0]["ratio"] > 0 and 0 <= found["data"][0]["data_wait"] < 1


def test_the_work_of_a_depthwise_convolution_is_counted_by_its_groups() -> None:
    layer = torch.nn.Conv2d(64, 64, 3, padding=1, groups=64, bias=False)
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        layer(torch.ones(1, 64, 8, 8, requires_grad=True)).sum().backward()
    assert counter.get_total_flops() == 3 * 2 * 64 * 9 * 64, "forward, gradient of the input, and of the weight"


def good(settings: Settings) -> Iterator[Result]:
    yield {"device": settings.device}


def broken(settings: Settings) -> Iterator[Result]:
    yield {"first": 1}
    raise RuntimeError("no such kernel")


def doubtful(settings: Settings) -> Iterator[Result]:
    yield {"ok": False}


def hanging(settings: Settings) -> Iterator[Result]:
    yield {"begun": True}
    subprocess.run(["sleep", "1000"])


def killed(settings: Settings) -> Iterator[Result]:
    os.kill(os.getpid(), signal.SIGSEGV)
    yield {}


def test_no_part_ends_the_others(tmp_path: Path) -> None:
    parts = {"broken": broken, "hanging": hanging, "killed": killed, "doubtful": doubtful, "good": good}
    began = time.monotonic()
    limits = dict.fromkeys(parts, 20.0) | {"hanging": 0.5}
    named = ", ".join(f"{name!r}: {part.__name__}" for name, part in parts.items())
    call = f"run({{{named}}}, {limits}, Settings(device='cpu'), Path({str(tmp_path)!r}), 60)"
    script = f"from test_gpu_benchmark import *; sys.exit({call})"
    env = os.environ | {"PYTHONPATH": f"{ROOT}:{Path(__file__).parent}"}
    done = subprocess.run([sys.executable, "-c", script], env=env)
    assert done.returncode == 4 and time.monotonic() - began < 120
    lines = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    ends = {line["part"]: line["end"] for line in lines if "end" in line}
    assert ends == {
        "broken": "failed",
        "hanging": "timeout",
        "killed": "failed: ended with -11",
        "doubtful": "failed",
        "good": "ok",
    }
    assert next(line for line in lines if line.get("error"))["error"].startswith(
        "RuntimeError: no such kernel (test_gpu"
    )
    assert {"part": "hanging", "begun": True} in lines and {"part": "good", "device": "cpu"} in lines
    assert "Traceback" in (tmp_path / "broken.log").read_text()


def test_what_no_time_is_left_for_is_said(tmp_path: Path) -> None:
    assert run({"late": good}, {"late": 20.0}, Settings(device="cpu"), tmp_path, 0) == 1
    assert json.loads((tmp_path / "results.jsonl").read_text()) == {"part": "late", "end": "skipped"}
