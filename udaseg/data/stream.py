"""Sample the index, stream the pixels.

One training sample is a pure function of (seed, global sample index): which image of each stream, which crop. That is
the plan. One Ray Dataset of plan rows is read, decoded and cropped to fixed uint8 in tasks, and dealt to the workers in
order, so that step k holds the samples [k G, (k+1) G) of a global batch G whatever the number of workers, and a run
that starts again at step k sees what the uninterrupted one would have seen.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.fs as pafs
import ray
import ray.train
from PIL import Image
from ray.data import ExecutionOptions

from udaseg.data.datasets import read_image, read_label
from udaseg.data.schema import DatasetError, absolute, filesystem, join, read_bytes, read_classes, resolve
from udaseg.rng import keyed, permute
from udaseg.types import IGNORE

ROWS_PER_BLOCK = 16
"""A block of about this many samples is one Ray task: smaller ones cost more to schedule than to decode."""


@dataclass(frozen=True, kw_only=True)
class StreamPlan:
    """Where one stream of a plan draws its images, and how."""

    directory: str
    """Dataset directory, with its index."""
    split: str = "train"
    labelled: bool
    """Whether labels are read."""
    soft: bool = False
    """Whether their confidence is read too."""
    rare_class: bool = False
    """Rare-class sampling instead of uniform."""
    rare_temperature: float = 0.01
    rare_min_pixels: int = 3000
    rare_min_crop_pixels: int = 1500
    short_side: int | None = None
    """In place of the plan's."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """All samples of a stage."""

    seed: int
    """Key of the run and stage."""
    batch_size: int
    """Samples a step over all workers."""
    steps: int
    crop: tuple[int, int]
    """Height and width in pixels."""
    short_side: int
    """Pixels of the short side after the resize, before the random scale."""
    scale: tuple[float, float]
    streams: Mapping[str, StreamPlan]

    def load(self, index: int) -> dict[str, np.ndarray]:
        """The sample at a global index: `<stream>_image` (h, w, 3) uint8; if labelled, `<stream>_label` (h, w) uint8;
        if soft, `<stream>_confidence` (h, w) uint16, see `udaseg.thresholds.encode_confidence`."""
        sample: dict[str, np.ndarray] = {"index": np.int64(index)}  # type: ignore[dict-item]
        for name, stream in self.streams.items():
            row, rare = draw_row(stream, index, self.seed, name)
            dataset = open_index(stream.directory)
            image = Image.fromarray(dataset.image(row))
            label = Image.fromarray(dataset.train_ids(row)) if stream.labelled else None
            rng = keyed(self.seed, index, f"{name}.crop")
            for attempt in range(10):
                box = self._crop_box(image.size, stream.short_side or self.short_side, rng)
                cropped = None
                if label is not None:
                    cropped = np.asarray(_resize(label, box, self.crop, Image.Resampling.NEAREST))
                if rare is None or cropped is None or attempt == 9:
                    break
                if int((cropped == rare).sum()) >= stream.rare_min_crop_pixels:
                    break
            sample[f"{name}_image"] = np.asarray(_resize(image, box, self.crop, Image.Resampling.BILINEAR))
            if cropped is not None:
                sample[f"{name}_label"] = cropped
            if stream.soft:
                confidence = Image.fromarray(dataset.confidence(row))
                sample[f"{name}_confidence"] = np.asarray(_resize(confidence, box, self.crop, Image.Resampling.NEAREST))
        return sample

    def empty(self) -> dict[str, np.ndarray]:
        """A row that only fills the last block; its index is -1."""
        sample: dict[str, np.ndarray] = {"index": np.int64(-1)}  # type: ignore[dict-item]
        for name, stream in self.streams.items():
            sample[f"{name}_image"] = np.zeros((*self.crop, 3), np.uint8)
            if stream.labelled:
                sample[f"{name}_label"] = np.full(self.crop, IGNORE, np.uint8)
            if stream.soft:
                sample[f"{name}_confidence"] = np.zeros(self.crop, np.uint16)
        return sample

    def _crop_box(
        self, size: tuple[int, int], short_side: int, rng: np.random.Generator
    ) -> tuple[float, float, float, float]:
        """A random crop of a random scale, in pixels of the original image, never larger than the image."""
        width, height = size
        factor = rng.uniform(*self.scale) * short_side / min(width, height)
        factor = max(factor, self.crop[0] / height, self.crop[1] / width)
        box_height, box_width = self.crop[0] / factor, self.crop[1] / factor
        top, left = rng.uniform(0, height - box_height + 1e-9), rng.uniform(0, width - box_width + 1e-9)
        return left, top, min(left + box_width, width), min(top + box_height, height)


# --- the index ------------------------------------------------------------------------------------------------------


class Index:
    """A dataset's rows and per-class row lists, memory-mapped: no process holds them as Python objects."""

    def __init__(self, directory: str) -> None:
        self.directory = directory
        self.table = pa.ipc.open_file(_memory_map(join(directory, "index.arrow"))).read_all()
        self.splits: dict[str, list[int]] = json.loads((self.table.schema.metadata or {}).get(b"splits", b"{}"))
        self._class_rows = pa.ipc.open_file(_memory_map(join(directory, "class_rows.arrow"))).read_all()
        self.classes = read_classes(directory)
        self._lookup = self.classes.lookup()

    def rows(self, split: str) -> tuple[int, int]:
        """The range of rows of a split. Raises DatasetError where it has none."""
        if split not in self.splits:
            raise DatasetError(f"{self.directory}: no rows of split {split!r}; it has {', '.join(self.splits)}")
        start, stop = self.splits[split]
        return start, stop

    def lacks(self, split: str, column: str) -> bool:
        """Whether images of a split have no value in a column, or there is no such column."""
        start, stop = self.rows(split)
        return column not in self.table.column_names or bool(self.table[column].slice(start, stop - start).null_count)

    def uri(self, row: int, column: str) -> str:
        """The address in a URI column of a row."""
        value = self.table[column][row].as_py()
        if value is None:
            raise DatasetError(f"{self.directory}: image {self.table['image_id'][row]} has no {column}")
        return resolve(value, self.directory)

    def image(self, row: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB of a row. Raises DatasetError, naming the file, where it cannot be read."""
        return read_image(self.uri(row, "image_uri"))

    def train_ids(self, row: int) -> np.ndarray:
        """(H, W) uint8 train ids of a row's label. Raises DatasetError on an id outside the class list."""
        uri = self.uri(row, "label_uri")
        raw = read_label(uri)
        mapped = self._lookup[raw]
        if (mapped < 0).any():
            raise DatasetError(f"{uri}: label ids {np.unique(raw[mapped < 0]).tolist()} are not in classes.json")
        return mapped.astype(np.uint8)

    def confidence(self, row: int) -> np.ndarray:
        """(H, W) uint16 confidence codes of a row's pseudo-label."""
        return read_label(self.uri(row, "confidence_uri"))

    @functools.lru_cache(maxsize=64)  # noqa: B019 - an index lives as long as its process
    def rare_classes(self, split: str, temperature: float, min_pixels: int) -> tuple[np.ndarray, list[np.ndarray]]:
        """P(c) and the rows that hold at least `min_pixels` of c, for the classes that have such rows.

        P(c) ~ exp((1 - f_c) / T) with f_c the class's share of labelled pixels (DAFormer, eq. 6-7).
        """
        here = self._class_rows.filter(pc.equal(self._class_rows["split"], split))
        pixels = [here["pixels"][k].values.to_numpy() for k in range(len(self.classes))]
        rows = [here["rows"][k].values.to_numpy() for k in range(len(self.classes))]
        enough = [r[: int(np.searchsorted(-p, -min_pixels, side="right"))] for r, p in zip(rows, pixels, strict=True)]
        totals = np.array([p.sum() for p in pixels], np.float64)
        if not any(len(r) for r in enough):
            raise DatasetError(
                f"{self.directory}: no image of split {split!r} has {min_pixels} pixels of any class; "
                "lower data.source.rare_min_pixels"
            )
        logit = (1 - totals / totals.sum()) / temperature
        logit[[not len(r) for r in enough]] = -np.inf
        probability = np.exp(logit - logit.max())
        return probability / probability.sum(), enough


@functools.lru_cache(maxsize=16)
def open_index(directory: str) -> Index:
    """The index of a dataset directory, opened once a process."""
    return Index(directory)


def first_image(directory: str) -> str:
    """The address of one training image of a dataset directory."""
    index = open_index(absolute(directory))
    return index.uri(index.rows("train")[0], "image_uri")


def draw_row(stream: StreamPlan, index: int, seed: int, name: str) -> tuple[int, int | None]:
    """The manifest row that global sample `index` takes from a stream, and the class it was drawn for, if for one.

    "Uniform" is a permutation of the split per pass, so that every image is seen once before any is seen twice.
    """
    table = open_index(stream.directory)
    start, stop = table.rows(stream.split)
    if not stream.rare_class:
        past, position = divmod(index, stop - start)
        return start + int(permute(np.array([position]), stop - start, seed, name, past)[0]), None
    probability, rows = table.rare_classes(stream.split, stream.rare_temperature, stream.rare_min_pixels)
    rng = keyed(seed, index, f"{name}.rare_class")
    chosen = int(rng.choice(len(probability), p=probability))
    return int(rows[chosen][rng.integers(len(rows[chosen]))]), chosen


def _resize(
    image: Image.Image, box: tuple[float, float, float, float], crop: tuple[int, int], resample: Image.Resampling
) -> Image.Image:
    return image.resize((crop[1], crop[0]), resample=resample, box=box)


def _memory_map(uri: str) -> pa.MemoryMappedFile:
    """Map a file; a remote one is first copied to this machine, under a name made of its address and size."""
    fs, path = filesystem(uri)
    if not isinstance(fs, pafs.LocalFileSystem):
        info = fs.get_file_info(path)
        name = hashlib.sha256(f"{uri} {info.size} {info.mtime_ns}".encode()).hexdigest()[:24]
        local = Path(tempfile.gettempdir()) / f"udaseg-index-{os.getuid()}" / name
        if not local.exists():
            local.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            temporary = local.with_suffix(f".{os.getpid()}")
            temporary.write_bytes(read_bytes(uri))
            temporary.replace(local)
        path = str(local)
    try:
        return pa.memory_map(path)
    except FileNotFoundError:
        raise DatasetError(f"{uri}: missing; make the dataset anew with `udaseg prepare --overwrite`") from None


# --- the stream -----------------------------------------------------------------------------------------------------


def sample_index(row: np.ndarray, *, start: int, batch_size: int, world_size: int, steps_per_block: int) -> np.ndarray:
    """The global sample index of rows of the plan dataset, which deals one block to each rank in turn.

    Block j goes to rank j % W and holds `steps_per_block` steps of that rank's share, so that after any number of
    whole rounds every rank has the same steps.
    """
    share = batch_size // world_size
    block, within = np.divmod(row, steps_per_block * share)
    turn, rank = np.divmod(block, world_size)
    step = start + turn * steps_per_block + within // share
    return step * batch_size + rank * share + within % share


def plan_dataset(plan: Plan, *, start: int, world_size: int) -> ray.data.Dataset:
    """The Ray Dataset of a plan from step `start` on, in the order that `sample_index` says, padded to whole blocks."""
    share = plan.batch_size // world_size
    steps_per_block = max(1, min(ROWS_PER_BLOCK // share, plan.steps - start))
    rounds = max(1, -(-(plan.steps - start) // steps_per_block))
    rows_per_block = steps_per_block * share
    rows = rounds * world_size * rows_per_block
    end = plan.steps * plan.batch_size

    def load(block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        index = sample_index(
            block["id"], start=start, batch_size=plan.batch_size, world_size=world_size, steps_per_block=steps_per_block
        )
        with ThreadPoolExecutor(4) as threads:  # remote reads wait; a decode holds no lock
            samples = list(threads.map(lambda g: plan.load(int(g)) if g < end else plan.empty(), index))
        return {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}

    dataset = (
        # few coarse blocks, cut in order: thousands of blocks in one list take a minute to schedule
        ray.data.range(rows, override_num_blocks=max(1, rows // (16 * rows_per_block)))
        .repartition(target_num_rows_per_block=rows_per_block, strict=True)
        .map_batches(load, batch_size=None, batch_format="numpy", num_cpus=1)
    )
    dataset.context.execution_options.preserve_order = True
    dataset.context.enable_progress_bars = False
    return dataset


class PlanDataConfig(ray.train.DataConfig):
    """Deals a plan to the workers. Ray Train asks it at every start of a worker group, and so after every loss of one.

    Only here is the number of workers known, and the step that the last registered checkpoint resumes at. A CPU for the
    data tasks is waited for `wait` seconds.
    """

    def __init__(self, plan: Plan, run_dir: str, *, wait: float) -> None:
        super().__init__(execution_options=ExecutionOptions(preserve_order=True))
        self.plan = plan
        self.run_dir = run_dir
        self.wait = wait

    def configure(self, datasets, world_size, worker_handles, worker_node_ids, **kwargs):  # type: ignore[no-untyped-def]
        _await_cpu(world_size, self.wait)
        dataset = plan_dataset(self.plan, start=registered_step(self.run_dir), world_size=world_size)
        dataset.set_name("plan")
        dataset.context.execution_no_progress_timeout_s = -1  # a consumer may pause for a checkpoint
        shards = dataset.streaming_split(world_size, equal=True, locality_hints=worker_node_ids)
        return [{"plan": shard} for shard in shards]


def _await_cpu(world_size: int, seconds: float) -> None:
    """Make sure that the workers, which are in place, leave a CPU to data tasks: Ray Data would wait without a word.

    Raises RuntimeError where none was had in time; on a cluster that grows, the request starts a node.
    """
    request = _nothing.remote()
    try:
        ray.get(request, timeout=seconds)
    except ray.exceptions.GetTimeoutError:
        ray.cancel(request)
        has = ray.cluster_resources().get("CPU", 0)
        raise RuntimeError(
            f"{world_size} workers leave no CPU for data tasks; waited {seconds:g} s for one, the cluster has {has:g}"
        ) from None


@ray.remote(num_cpus=1)
def _nothing() -> None: ...


def registered_step(run_dir: str) -> int:
    """Steps done according to the last checkpoint that Ray Train has registered in a run directory; 0 without one."""
    fs, path = filesystem(run_dir)
    try:
        result = ray.train.Result.from_path(path, storage_filesystem=fs)
    except (RuntimeError, FileNotFoundError):
        return 0
    return int((result.metrics or {}).get("step", 0))


def iterate(shard: ray.data.DataIterator, *, share: int) -> Iterator[dict[str, np.ndarray]]:
    """One rank's steps: columns of `share` samples each."""
    return iter(shard.iter_batches(batch_size=share, batch_format="numpy", prefetch_batches=2))
