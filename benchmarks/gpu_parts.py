"""The parts of `benchmarks.gpu`: each a generator of results, which one failing recipe does not end."""

from __future__ import annotations

import contextlib
import gc
import os
import platform
import resource
import statistics
import subprocess
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode, conv_flop_count

from benchmarks.gpu_results import Result, Settings, described
from udaseg.components.augment import strong
from udaseg.config import PseudoLabel, Stage
from udaseg.data.confidence import distribution_size, encode_confidence, encode_distribution
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.job_config import Cluster, Inference
from udaseg.methods.supervised import Supervised
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.training.batches import to_batches
from udaseg.training.kernels import checkpoint_networks, compile_networks, set_precision
from udaseg.training.step import RunState, build_state, queue_step, train_step

CLASSES = len(CITYSCAPES_CLASSES)
PEAK_TFLOPS = {"H100": 989, "H200": 989, "A100": 312, "L4": 121}
"""Dense bf16 matrix products of a GPU whose name holds the key, after its maker."""
TOLERANCE = {"cpu": (1e-3, 5e-2), "fp32": (5e-2, 0.3)}
"""What a value may be off, relative to the largest of it and 0.05, at the first and at any later step: against the CPU,
where sums are in another order, and in bf16 against single precision. Optimisers like Adam double a difference in small
gradients, and pixels at a threshold fall to the other side, hence the later ones."""
SPEED = {
    "daformer": {},
    "vfm": {},
    "vfm ViT-B": {"model.backbone": "vit_base_patch14_dinov2"},
    "mic": {},
    "bcl": {},
    "sdca": {},
}
"""Recipes whose speed is measured, with what is overridden in them."""
SMALLER = {"resnet101": "resnet26", "mit_b5": "mit_b0"} | dict.fromkeys(
    ("vit_large_patch14_dinov2", "vit_base_patch14_dinov2"), "test_vit"
)


def _convolution_backward(
    gradient: Any, x: Any, weight: Any, bias: Any, stride: Any, padding: Any, dilation: Any, transposed: bool,
    output_padding: Any, groups: int, wanted: tuple[bool, ...], **others: Any,
) -> int:  # fmt: skip
    """The gradients of input and weight cost what the convolution does, each; torch's count forgets the groups."""
    return int(conv_flop_count(x, weight, gradient, transposed=transposed)) * (wanted[0] + wanted[1])


FLOPS = {torch.ops.aten.convolution_backward: _convolution_backward}


# --- what the parts share -------------------------------------------------------------------------------------------


def _each(items: Iterable[str], measure: Callable[[str], Result]) -> Iterator[Result]:
    """The results of the items that can be measured, and the errors of the others."""
    for item in items:
        began = time.perf_counter()
        try:
            result = measure(item)
        except Exception as error:
            result = {"error": described(error)}
        gc.collect()  # networks whose layers refer to themselves
        if torch.cuda.is_initialized():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        yield {"of": item, **result, "took": round(time.perf_counter() - began, 1)}


def _stage(name: str, s: Settings, values: dict[str, Any] | None = None) -> Stage:
    """The last stage of a recipe that adapts, from random weights; with `s.tiny` on a small network and crop."""
    stages = override(RECIPES[name](), {"model.pretrained": False, **(values or {})}).stages
    stage = next((x for x in reversed(stages) if not isinstance(x.method, Supervised.Config)), stages[-1])
    stage = replace(stage, init_from=None, pseudo_label=None, translated_by=None, steps=1000)
    if not s.tiny:
        return stage
    model = replace(stage.model, backbone=SMALLER.get(stage.model.backbone, stage.model.backbone), head_channels=16)
    model = replace(model, detail_crop=stage.model.detail_crop and (32, 32))
    method = stage.method
    for field, value in {"contrast_size": 9, "group_size": 2, "ignore_bottom": 0}.items():
        if getattr(method, field, None) not in (None, 1):
            method = replace(method, **{field: value})
    streams = {name: replace(stream, crop=None) for name, stream in stage.data.streams().items()}
    data = replace(stage.data, batch_size=2, crop=(64, 64), group_size=method.group_size or 1, **streams)
    return replace(stage, model=model, method=method, data=data)


def _small(s: Settings) -> list[str]:
    return (
        ["bcl_small", "proda_small", "camix_small"] if s.tiny else [name for name in RECIPES if name.endswith("_small")]
    )


def _columns(stage: Stage, first: int = 0) -> dict[str, np.ndarray]:
    """A batch as it is streamed: blocks of classes, each of a colour with some noise, the first rows unlabelled."""
    count = stage.data.batch_size
    rng = np.random.default_rng(first)
    colours = np.random.default_rng(0).integers(0, 256, (CLASSES, 3))
    columns: dict[str, np.ndarray] = {"index": np.arange(first, first + count)}
    for name, stream in stage.data.streams().items():
        height, width = stream.crop or stage.data.crop
        coarse = rng.integers(0, CLASSES, (count, -(-height // 32), -(-width // 32)))
        label = coarse.repeat(32, 1).repeat(32, 2)[:, :height, :width].astype(np.uint8)
        noise = rng.integers(-20, 21, (count, height, width, 1))
        columns[f"{name}_image"] = (colours[label] + noise).clip(0, 255).astype(np.uint8)
        label[:, : height // 8] = 255
        columns[f"{name}_label"] = label
        if stream.labels == "soft":
            columns[f"{name}_confidence"] = encode_confidence(rng.random(label.shape).astype(np.float32))
        for column, on in (("distribution", stream.labels == "distribution"), ("prior", stream.prior)):
            if on:
                share = rng.random((count, CLASSES, *distribution_size(height, width)))
                columns[f"{name}_{column}"] = encode_distribution(share / share.sum(1, keepdims=True))
        if stream.labels == "candidates":
            columns[f"{name}_candidates"] = np.zeros((count, 1, CLASSES), np.uint8)
    return columns


def _state(stage: Stage, device: str, *, bf16: bool = False) -> RunState:
    return build_state(stage, CLASSES, seed=1, init=None, device=torch.device(device), bf16=bf16)


def _step(state: RunState, stage: Stage, columns: dict[str, np.ndarray], device: str) -> dict[str, float]:
    batches = to_batches(columns, stage.data, seed=1, device=torch.device(device))
    return {name: float(value) for name, value in train_step(state, batches, stage, seed=1).items()}


def _finish(device: str) -> None:
    if device == "cuda":
        torch.cuda.synchronize()


def _median_seconds(function: Callable[[], object], device: str, *, seconds: float, most: int = 50) -> float:
    """Median duration of a call that is repeated for so long, but `most` times, after two that warm up."""
    for _ in range(2):
        function()
    _finish(device)
    times: list[float] = []
    while not times or (sum(times) < seconds and len(times) < most):
        began = time.perf_counter()
        function()
        _finish(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times)


def _memory(device: str) -> float:
    """MiB at the peak: allocated on a GPU, resident on a CPU."""
    if device == "cuda":
        return round(torch.cuda.max_memory_allocated() / 2**20)
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10)


# --- machine --------------------------------------------------------------------------------------------------------


def machine(s: Settings) -> Iterator[Result]:
    packages = ("torch", "torchvision", "timm", "kornia", "ray", "numpy", "pyarrow", "segmentation-models-pytorch")
    yield {"python": platform.python_version(), "cores": len(os.sched_getaffinity(0)), **dict(map(_version, packages))}
    yield {"commit": _said("git", "rev-parse", "--short", "HEAD"), "cuda": torch.version.cuda}
    if s.device == "cuda":
        card = torch.cuda.get_device_properties(0)
        yield {
            "card": card.name,
            "gib": round(card.total_memory / 2**30, 1),
            "multiprocessors": card.multi_processor_count,
        }
        yield {"nvidia_smi": _said("nvidia-smi", "--query-gpu=driver_version,clocks.sm,power.limit", "--format=csv")}
        yield {"cudnn": torch.backends.cudnn.version(), "nccl": ".".join(map(str, torch.cuda.nccl.version()))}


def _version(package: str) -> tuple[str, str | None]:
    try:
        return package, version(package)
    except PackageNotFoundError:
        return package, None


def _said(*words: str) -> str | None:
    try:
        return subprocess.run(words, capture_output=True, text=True, timeout=10).stdout.strip() or None
    except (OSError, subprocess.TimeoutExpired):
        return None


# --- agreement ------------------------------------------------------------------------------------------------------


def agreement(s: Settings) -> Iterator[Result]:
    set_precision(Cluster(gpu=True, tf32=False, cudnn_benchmark=False), torch.device(s.device))
    steps = 2 if s.tiny else 3

    def values(name: str, device: str, bf16: bool) -> list[dict[str, float]]:
        stage = _stage(name, s)
        state = _state(stage, device, bf16=bf16)
        for module in state.method.modules():  # what is dropped is drawn by the device
            if isinstance(module, nn.modules.dropout._DropoutNd):
                module.p = 0.0
            if hasattr(module, "drop_prob"):
                module.drop_prob = 0.0
        return [_step(state, stage, _columns(stage, 1000 * step), device) for step in range(steps)]

    def measure(name: str) -> Result:
        runs = {"cpu": values(name, "cpu", False), "fp32": values(name, s.device, False)}
        runs["bf16"] = values(name, s.device, True)
        result: Result = {"first": runs["fp32"][0], "ok": True}
        for kind, base in (("fp32", "cpu"), ("bf16", "fp32")):
            off = [_largest_difference(x, y) for x, y in zip(runs[kind], runs[base], strict=True)]
            at_first, later = TOLERANCE[base]
            result[f"{kind} against {base}"] = [f"{value:.2g} ({term})" for value, term in off]
            result["ok"] &= off[0][0] <= at_first and all(value <= later for value, _ in off)
        return result

    yield from _each(_small(s), measure)


def _largest_difference(mine: dict[str, float], theirs: dict[str, float]) -> tuple[float, str]:
    return max((abs(mine[k] - v) / max(abs(v), 0.05), k) for k, v in theirs.items())


# --- synchronisation ------------------------------------------------------------------------------------------------


def synchronisation(s: Settings) -> Iterator[Result]:
    def measure(name: str) -> Result:
        stage = _stage(name, s)
        state = _state(stage, s.device)
        batches = to_batches(_columns(stage), stage.data, seed=1, device=torch.device(s.device))
        train_step(state, batches, stage, seed=1)
        _finish(s.device)
        columns = _columns(stage, 1000)
        with warnings.catch_warnings(record=True) as seen, _synchronisation_warns(s.device):
            warnings.simplefilter("always")
            batches = to_batches(columns, stage.data, seed=1, device=torch.device(s.device))
            queue_step(state, batches, stage, seed=1)
        waits = Counter(
            f"{Path(w.filename).name}:{w.lineno}" for w in seen if "called a synchronizing" in str(w.message)
        )
        return {"ok": not waits, "waits": sum(waits.values()), "where": dict(waits.most_common(12))}

    yield from _each(_small(s), measure)


@contextlib.contextmanager
def _synchronisation_warns(device: str) -> Iterator[None]:
    if device == "cuda":
        torch.cuda.set_sync_debug_mode("warn")
    try:
        yield
    finally:
        if device == "cuda":
            torch.cuda.set_sync_debug_mode("default")


# --- published ------------------------------------------------------------------------------------------------------


def published(s: Settings) -> Iterator[Result]:
    def measure(name: str) -> Result:
        name, *checkpointed = name.split()
        stage = _stage(name, s)
        state = _state(stage, s.device, bf16=RECIPES[name]().bf16 and not s.tiny)
        if checkpointed:
            checkpoint_networks(state.method)
        values = _step(state, stage, _columns(stage), s.device)
        parameters = sum(p.numel() for p in state.method.student.parameters()) / 1e6
        return {"mib": _memory(s.device), "million parameters": round(parameters, 1), "values": values}

    same = ("_synthia", "_acdc")  # steps of the same networks and crops
    names = [name for name in RECIPES if not name.endswith(("_small", "_demo", *same))]
    names.sort(key=lambda name: "_" in name)  # variants of a method last: time may end before them
    names[:0] = [f"{name} grad_checkpointing" for name in ("daformer", "mic", "vfm")]
    yield from _each(["vfm", "vfm grad_checkpointing"] if s.tiny else names, measure)


# --- speed and compiled ---------------------------------------------------------------------------------------------


def speed(s: Settings) -> Iterator[Result]:
    yield from _each(["vfm ViT-B"] if s.tiny else SPEED, lambda name: _speed(name, s, compiled=False))


def compiled(s: Settings) -> Iterator[Result]:
    names = ["vfm ViT-B"] if s.tiny else ["vfm ViT-B", "daformer", "vfm", "sdca", "mic", "bcl"]
    yield from _each(names, lambda name: _speed(name, s, compiled=True))


def _speed(name: str, s: Settings, *, compiled: bool) -> Result:
    set_precision(Cluster(gpu=True), torch.device(s.device))
    stage = _stage(name.split()[0], s, SPEED[name])
    state = _state(stage, s.device, bf16=not s.tiny)  # a CPU is slow in it
    batches = to_batches(_columns(stage), stage.data, seed=1, device=torch.device(s.device))
    with FlopCounterMode(display=False, custom_mapping=FLOPS) as counter:
        train_step(state, batches, stage, seed=1)
    began = time.perf_counter()
    if compiled:
        compile_networks(state.method, "eager" if s.tiny else "inductor")
        train_step(state, batches, stage, seed=1)
        _finish(s.device)
        if s.device == "cuda":
            torch.cuda.reset_peak_memory_stats()  # not that of the step before
    compiling = time.perf_counter() - began

    def step() -> None:  # as the worker takes it, which reads losses now and then
        queue_step(state, batches, stage, seed=1)

    seconds = _median_seconds(step, s.device, seconds=0 if s.tiny else 3)
    state.read()
    rate = counter.get_total_flops() / seconds / 1e12
    card = torch.cuda.get_device_name() if s.device == "cuda" else "CPU"
    peak = next((tflops for key, tflops in PEAK_TFLOPS.items() if key in card), None)
    return {
        "batch": f"{stage.data.batch_size} x {'x'.join(map(str, stage.data.crop))}",
        "steps_per_second": round(1 / seconds, 3),
        "images_per_second": round(len(batches) * stage.data.batch_size / seconds, 2),
        "tflops": round(rate, 2),
        "mfu": peak and round(rate / peak, 3),
        "mib": _memory(s.device),
        **({"compile_seconds": round(compiling, 1)} if compiled else {}),
        **_profile(step, s.device),
    }


def _profile(step: Callable[[], object], device: str) -> Result:
    """The ten kernels that take most of the device's time, as shares of it, and how long it does nothing."""
    from torch.autograd import DeviceType
    from torch.profiler import ProfilerActivity, profile

    kinds = [ProfilerActivity.CUDA if device == "cuda" else ProfilerActivity.CPU]  # noting what the host does slows it
    _finish(device)
    with profile(activities=kinds) as profiler:
        began = time.perf_counter()
        for _ in range(2):
            step()
        _finish(device)
        wall = time.perf_counter() - began
    events = profiler.key_averages()
    if device == "cuda":  # operations carry the time of their kernels too
        kernels = [e for e in events if e.device_type == DeviceType.CUDA and not e.is_user_annotation]
        spent = {e.key: e.self_device_time_total / 1e6 for e in kernels}
    else:
        spent = {e.key: e.self_cpu_time_total / 1e6 for e in events}
    busy = sum(spent.values())
    dearest = sorted(spent.items(), key=lambda item: -item[1])[:10]
    return {
        "idle": round(max(0.0, 1 - busy / wall), 3),
        "kernels": {key[:80]: round(value / busy, 3) for key, value in dearest},
    }


# --- pipeline -------------------------------------------------------------------------------------------------------


def pipeline(s: Settings) -> Iterator[Result]:
    from udaseg.checkpoints.directory import STATE_FILE
    from udaseg.data.manifest import digest
    from udaseg.data.synthetic import write_pair
    from udaseg.jobs.resources import usable_cores
    from udaseg.jobs.run_directory import read_registered
    from udaseg.jobs.train import make_plan, stage_directory, train
    from udaseg.rng import key_to_seed

    steps = 8 if s.tiny else 60
    with tempfile.TemporaryDirectory() as folder, _ray():
        root = Path(folder)
        write_pair(root / "pair", train=12 if s.tiny else 48, val=4)
        data = _prepared(root / "pair")
        stage = replace(RECIPES["dacs_small"]().stages[-1], steps=steps, init_from=None)
        values = {"log_every": steps // 4, "checkpoint_every": steps // 2}
        if s.tiny:
            values |= {"data.batch_size": 2, "data.crop": (64, 64)}
        recipe = override(replace(RECIPES["dacs_small"](), stages=(stage,)), values)
        (stage,) = recipe.stages
        threads = usable_cores()
        out = str(root / "run")
        cluster = Cluster(gpu=s.device == "cuda", threads=threads)
        train(recipe, source=data["source"], target=data["target"], out=out, cluster=cluster)
        rows = _steps_of(out)[1:]
        yield {"data_wait": statistics.median(row["data_wait"] for row in rows), "last": rows[-1]}

        torch.set_num_threads(threads)
        set_precision(cluster, torch.device(s.device))
        device = torch.device(s.device)
        seed = key_to_seed(recipe.seed, 0, *(digest(str(data[domain])) for domain in stage.data.domains()))
        plan = make_plan(stage, data, seed)
        half, whole = (Path(path) / STATE_FILE for _, path in read_registered(stage_directory(out, recipe, 0)))

        def resumed() -> tuple[dict[str, Tensor], float]:
            """What the checkpoint at the half becomes in a plain loop, and the median seconds of its steps."""
            state = build_state(stage, 8, seed=seed, init=None, device=device, bf16=False)
            state.load(half)
            times = []
            while state.step < steps:
                samples = [plan.load(g + state.step * plan.batch_size) for g in range(plan.batch_size)]
                columns = {key: np.stack([sample[key] for sample in samples]) for key in samples[0]}
                began = time.perf_counter()
                train_step(state, to_batches(columns, stage.data, seed=seed, device=device), stage, seed=seed)
                _finish(s.device)
                times.append(time.perf_counter() - began)
            return {name: tensor.cpu() for name, tensor in state.method.state_dict().items()}, statistics.median(times)

        final = build_state(stage, 8, seed=seed, init=None, device=torch.device("cpu"), bf16=False)
        final.load(whole)
        (first, bare), (second, _) = resumed(), resumed()
        off, own = _distance(first, final.method.state_dict()), _distance(first, second)
        # kernels that add in no fixed order part two runs of one loop as far as they part it from the run
        yield {"resumed_off": off, "repeated_off": own, "ok": off <= max(10 * own, 1e-3 if s.device == "cuda" else 0)}
        took = statistics.median(row["step_seconds"] for row in rows)
        yield {"step_seconds": took, "bare_step_seconds": bare, "ratio": round(took / bare, 3)}


def _distance(mine: dict[str, Tensor], theirs: dict[str, Tensor]) -> float:
    """The largest difference of any two values, relative to the largest value of their tensor."""
    return max(
        float((mine[name].double() - tensor.double()).abs().max() / tensor.double().abs().max().clamp_min(1e-6))
        for name, tensor in theirs.items()
        if tensor.numel()
    )


@contextlib.contextmanager
def _ray() -> Iterator[None]:
    import ray

    from udaseg.jobs.ray_session import ensure_ray
    from udaseg.jobs.resources import usable_cores

    ensure_ray(num_cpus=usable_cores() + 2)
    try:
        yield
    finally:
        ray.shutdown()


def _prepared(root: Path) -> dict[str, str | None]:
    """Dataset directories of the pair of folders in `root`."""
    from udaseg.jobs.prepare import prepare

    for domain in ("source", "target"):
        classes, out = str(root / "classes.json"), str(root / f"{domain}-dataset")
        prepare(layout="folders", root=str(root / domain), classes=classes, out=out)
    return {domain: str(root / f"{domain}-dataset") for domain in ("source", "target")}


def _steps_of(out: str) -> list[Result]:
    from udaseg.jobs.run_directory import read_metrics

    return [row for row in read_metrics(out) if row.get("event", "step") == "step"]


# --- pseudo_label ---------------------------------------------------------------------------------------------------


def pseudo_label(s: Settings) -> Iterator[Result]:
    from benchmarks.pseudo_label import make_images, make_model
    from udaseg.checkpoints.directory import load_model
    from udaseg.jobs.pseudo_label.job import pseudo_label as label

    size, count, batch, block = ((64, 128), 16, 2, 8) if s.tiny else ((512, 1024), 464, 8, 64)
    with tempfile.TemporaryDirectory() as folder, _ray():
        root = Path(folder)
        make_images(root / "images", count, size)
        model = make_model(root / "model", "resnet10t" if s.tiny else "resnet50", min(size))
        inference = Inference(gpu=s.device == "cuda", batch_size=batch, actors=1)
        label(checkpoint=model, images=str(root / "images"), out=str(root / "out"), rules=PseudoLabel(),
              block_size=block, inference=inference)  # fmt: skip
        began = min(path.stat().st_mtime for path in (root / "out" / "job" / "predict").iterdir())
        job = (count - block) / ((root / "out" / "manifest.parquet").stat().st_mtime - began)
        network = load_model(model)[0].to(s.device)
        images = torch.rand(batch, 3, *size, device=s.device)
        with torch.inference_mode():
            bare = batch / _median_seconds(lambda: network(images, "target"), s.device, seconds=2)
        yield {"job_images_per_second": round(job, 2), "bare": round(bare, 2), "ratio": round(job / bare, 3)}


# --- augmentation ---------------------------------------------------------------------------------------------------


def augmentation(s: Settings) -> Iterator[Result]:
    def measure(name: str) -> Result:
        stage, device = _stage(name, s), torch.device(s.device)
        state, columns = _state(stage, s.device), _columns(stage)
        batches = to_batches(columns, stage.data, seed=1, device=device)
        target = batches["target"]
        limit = 0 if s.tiny else 1.5
        weak_view = _median_seconds(
            lambda: to_batches(columns, stage.data, seed=1, device=device), s.device, seconds=limit
        )
        strong_view = _median_seconds(
            lambda: strong(target.image, target.index, seed=1, purpose="mixed"), s.device, seconds=limit
        )
        step = _median_seconds(lambda: train_step(state, batches, stage, seed=1), s.device, seconds=limit)
        share = (weak_view + strong_view) / (weak_view + step)
        return {"weak": weak_view, "strong": strong_view, "step": step, "share": round(share, 4)}

    yield from _each(["dacs_small"] if s.tiny else ["dacs_small", "dacs"], measure)


# --- data -----------------------------------------------------------------------------------------------------------


def data(s: Settings) -> Iterator[Result]:
    from udaseg.jobs.train import train

    sizes = {"source": (105, 191), "target": (102, 204)} if s.tiny else {"source": (1052, 1914), "target": (1024, 2048)}
    with tempfile.TemporaryDirectory() as folder, _ray():
        root = Path(folder)
        for domain, size in sizes.items():
            _write_images(root / domain / "train", size, 4 if s.tiny else 12, 16 if s.tiny else 96)
        (root / "classes.json").write_text(CITYSCAPES_CLASSES.to_json())
        prepared = _prepared(root)

        def measure(name: str) -> Result:
            stage = replace(_stage(name.split()[0], s, SPEED[name]), steps=8 if s.tiny else 60)
            stage = replace(stage, optim=replace(stage.optim, warmup_steps=0))
            target = stage.data.target
            if target is not None and target.labels != "none":  # of another stage, which is left out
                stage = replace(stage, data=replace(stage.data, target=replace(target, labels="true")))
            whole = override(RECIPES[name.split()[0]](), {"log_every": stage.steps // 4, "checkpoint_every": 10**6})
            recipe = replace(whole, stages=(stage,), bf16=not s.tiny)
            out = str(root / name.replace(" ", "-"))
            train(recipe, source=prepared["source"], target=prepared["target"], out=out,
                  cluster=Cluster(gpu=s.device == "cuda"))  # fmt: skip
            row = _steps_of(out)[-1]
            return {key: round(row[key], 4) for key in ("data_wait", "images_per_second", "step_seconds")}

        yield from _each(["vfm ViT-B"] if s.tiny else ["vfm ViT-B", "daformer", "sdca", "mic", "bcl", "vfm"], measure)


def _write_images(folder: Path, size: tuple[int, int], pictures: int, count: int) -> None:
    """A few pictures of blocks with noise and their labels, under `count` names."""
    for kind in ("images", "labels"):
        (folder / kind).mkdir(parents=True)
    for number in range(count):
        source = [folder / kind / f"{number % pictures:04d}.png" for kind in ("images", "labels")]
        if number >= pictures:
            for path in source:
                os.link(path, path.with_name(f"{number:04d}.png"))
            continue
        rng = np.random.default_rng(number)
        coarse = rng.integers(0, CLASSES, (-(-size[0] // 64), -(-size[1] // 64)))
        label = coarse.repeat(64, 0).repeat(64, 1)[: size[0], : size[1]].astype(np.uint8)
        image = label[..., None] * np.array([13, 7, 11]) + rng.integers(0, 12, (*size, 3))
        Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(source[0], compress_level=1)
        Image.fromarray(label).save(source[1], compress_level=1)
