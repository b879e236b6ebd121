"""What a labelling job costs on top of its network, and what it holds in memory.

    python -m benchmarks.pseudo_label speed [--images 200] [--size 360 480] [--backbone resnet50]
    python -m benchmarks.pseudo_label memory [--counts 1000 10000 100000]
    python -m benchmarks.pseudo_label resume [--images 400]

speed: images per second of the job, both passes, from its first committed block to its manifest, over those of the bare
network on tensors in memory, measured before and after it; and over those of a plain single-process script that writes
the same labels. All use the same number of threads. memory: peak resident memory of the driver and of the largest other
process of jobs over ever more images of 32 x 32 pixels. resume: seconds of a job, and of one that is killed at the half
and run again, both with Ray's start; how many blocks were predicted twice.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
import tyro
from PIL import Image

from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.components.thresholds import class_balanced_thresholds, threshold_top1
from udaseg.config import Model, PseudoLabel
from udaseg.data.confidence import confidence_histogram, decode_confidence, encode_confidence
from udaseg.data.images import read_image
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.jobs.pseudo_label.job import pseudo_label
from udaseg.jobs.ray_session import ensure_ray
from udaseg.jobs.resources import usable_cores
from udaseg.models.build import build_segmenter
from udaseg.models.inference import predict


@dataclass(frozen=True, kw_only=True)
class Speed:
    images: int = 200
    size: tuple[int, int] = (360, 480)
    """Height and width in pixels."""
    backbone: str = "resnet50"


@dataclass(frozen=True, kw_only=True)
class Memory:
    counts: tuple[int, ...] = (1_000, 10_000, 100_000)


@dataclass(frozen=True, kw_only=True)
class Resume:
    images: int = 400


def make_model(folder: Path, backbone: str, short_side: int) -> str:
    torch.manual_seed(0)
    model = Model(backbone=backbone)
    network = build_segmenter(len(CITYSCAPES_CLASSES), **dataclasses.asdict(model))
    card = ModelCard(model=model, classes=CITYSCAPES_CLASSES, short_side=short_side, recipe="", stage="", step=0)
    save_model(folder, network, card)
    return str(folder)


def make_images(folder: Path, count: int, size: tuple[int, int]) -> None:
    """A few different pictures, smooth with some noise, under `count` names."""
    rng = np.random.default_rng(0)
    folder.mkdir()
    for n in range(min(count, 20)):
        coarse = Image.fromarray(rng.integers(0, 255, (6, 8, 3), np.uint8)).resize(size[::-1], Image.Resampling.BICUBIC)
        noisy = np.asarray(coarse).astype(np.int64) + rng.integers(-6, 7, (*size, 3))
        Image.fromarray(noisy.clip(0, 255).astype(np.uint8)).save(folder / f"{n:06d}.png")
    for n in range(20, count):
        os.link(folder / f"{n % 20:06d}.png", folder / f"{n:06d}.png")


# --- speed ----------------------------------------------------------------------------------------------------------


def bare(model: str, images: Path, count: int) -> float:
    """Images per second of the network alone."""
    network, _ = load_model(model)
    pixels = read_image(str(next(images.iterdir())))
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        network(batch, "target")
        began = time.perf_counter()
        for _ in range(count):
            network(batch, "target")
    return count / (time.perf_counter() - began)


def script(model: str, images: Path, out: Path) -> float:
    """Images per second of both passes in one process, one image after the other."""
    network, card = load_model(model)
    classes = len(card.classes)
    for name in ("predictions", "confidence", "labels"):
        (out / name).mkdir(parents=True)
    histogram = np.zeros((classes, 8192), np.int64)
    paths = sorted(images.iterdir())
    began = time.perf_counter()
    for path in paths:
        pixels = torch.from_numpy(read_image(str(path))).permute(2, 0, 1)[None].float() / 255
        confidence, label = predict(network, pixels, short_side=card.short_side)[0].max(0)
        code = encode_confidence(confidence.numpy())
        prediction = label.numpy().astype(np.uint8)
        histogram += confidence_histogram(prediction, code, classes)
        Image.fromarray(prediction).save(out / "predictions" / path.name, compress_level=1)
        Image.fromarray(code).save(out / "confidence" / path.name, compress_level=1)
    thresholds = class_balanced_thresholds(histogram, 0.1)
    for path in paths:
        prediction = np.asarray(Image.open(out / "predictions" / path.name))
        code = np.asarray(Image.open(out / "confidence" / path.name))
        kept = threshold_top1(prediction, decode_confidence(code), thresholds, 0.1)
        Image.fromarray(kept).save(out / "labels" / path.name, compress_level=1)
    return len(paths) / (time.perf_counter() - began)


def job(model: str, images: Path, out: Path, count: int) -> float:
    """Images per second from the first committed block to the manifest."""
    pseudo_label(checkpoint=model, images=str(images), out=str(out), rules=PseudoLabel(), block_size=8)
    began = min(path.stat().st_mtime for path in (out / "job" / "predict").iterdir())
    return (count - 8) / ((out / "manifest.parquet").stat().st_mtime - began)


def speed(a: Speed, root: Path) -> None:
    make_images(root / "images", a.images, a.size)
    model = make_model(root / "model", a.backbone, min(a.size))
    torch.set_num_threads(usable_cores())
    ensure_ray()
    some = max(10, a.images // 4)
    before = bare(model, root / "images", some)
    ours = job(model, root / "images", root / "job", a.images)
    plain = script(model, root / "images", root / "script")
    after = bare(model, root / "images", some)
    network = (before + after) / 2
    different = {}
    for kind in ("predictions", "confidence", "labels"):
        pairs = [(root / "job" / kind / path.name, path) for path in (root / "script" / kind).iterdir()]
        different[kind] = np.mean([np.mean(np.asarray(Image.open(x)) != np.asarray(Image.open(y))) for x, y in pairs])
    print(f"images per second: network {before:.2f} before and {after:.2f} after, job {ours:.2f}, script {plain:.2f}")
    print(f"job / network {ours / network:.2f}, job / script {ours / plain:.2f}")
    print("pixels that differ: " + ", ".join(f"{kind} {share:.3%}" for kind, share in different.items()))


# --- memory and resuming, of jobs in processes of their own ---------------------------------------------------------


def command(model: str, images: Path, out: Path) -> list[str]:
    words = ["--checkpoint", model, "--images", str(images), "--out", str(out), "--block-size", "32"]
    return [sys.executable, "-m", "pipelines.pseudo_label", *words]


def run(words: list[str], stop: Callable[[], bool] = lambda: False) -> tuple[float, dict[str, float]]:
    """Seconds until a command ended or was killed, and the peak MiB of its process and of each kind below it."""
    began = time.perf_counter()
    peaks: dict[str, float] = {}
    process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
    root = psutil.Process(process.pid)
    while process.poll() is None and not stop():
        for each in [root, *root.children(recursive=True)]:
            try:
                name = "driver" if each.pid == root.pid else each.name()
                peaks[name] = max(peaks.get(name, 0), each.memory_info().rss / 2**20)
            except psutil.NoSuchProcess:
                continue
        time.sleep(0.2)
    below = [] if process.poll() is not None else root.children(recursive=True)
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    elif process.returncode:
        raise SystemExit(f"the job ended with {process.returncode}")
    process.wait()
    psutil.wait_procs(below, timeout=60)
    return time.perf_counter() - began, peaks


def memory(a: Memory, root: Path) -> None:
    model = make_model(root / "model", "resnet10t", 32)
    for count in a.counts:
        make_images(root / "images", count, (32, 32))
        seconds, peaks = run(command(model, root / "images", root / "out"))
        others = {name: peak for name, peak in peaks.items() if name != "driver"}
        largest = max(others, key=others.__getitem__)
        print(
            f"{count} images: {seconds:.0f} s, driver {peaks['driver']:.0f} MiB, "
            f"largest other process {others[largest]:.0f} MiB ({largest})",
            flush=True,
        )
        shutil.rmtree(root / "images")
        shutil.rmtree(root / "out")


def resume(a: Resume, root: Path) -> None:
    make_images(root / "images", a.images, (180, 240))
    model = make_model(root / "model", "resnet18", 180)
    whole, _ = run(command(model, root / "images", root / "whole"))
    entries = root / "out" / "job" / "predict"
    half = -(-a.images // 32) // 2
    first, _ = run(command(model, root / "images", root / "out"), lambda: len(list(entries.glob("*.parquet"))) >= half)
    done = len(list(entries.glob("*.parquet")))
    predicted = len(list((root / "out" / "predictions").glob("*.png")))
    second, _ = run(command(model, root / "images", root / "out"))
    print(
        f"undisturbed {whole:.1f} s; killed after {first:.1f} s and resumed in {second:.1f} s: "
        f"{first + second - whole:+.1f} s"
    )
    print(f"{done} blocks of 32 were committed when it was killed; {predicted - 32 * done} images were predicted twice")


def main() -> None:
    a = tyro.extras.subcommand_cli_from_dict({"speed": Speed, "memory": Memory, "resume": Resume})
    with tempfile.TemporaryDirectory() as folder:
        {Speed: speed, Memory: memory, Resume: resume}[type(a)](a, Path(folder))  # type: ignore[operator, index]


if __name__ == "__main__":
    main()
