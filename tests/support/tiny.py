"""A tiny pair of domains and tiny recipes, for tests that run whole jobs."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import torch
from PIL import Image
from torch import Tensor

from udaseg.checkpoints.directory import ModelCard, save_model
from udaseg.config import Model, Recipe
from udaseg.data.classes import Classes, read_classes
from udaseg.data.manifest import MANIFEST, digest, write_dataset
from udaseg.data.places import at_places, count_places
from udaseg.data.storage import filesystem, join, write_bytes
from udaseg.jobs.train import make_plan
from udaseg.models.build import build_segmenter
from udaseg.overrides import override
from udaseg.recipes import RECIPES
from udaseg.rng import key_to_seed, keyed
from udaseg.training.batches import to_batches
from udaseg.training.step import build_state, train_step

CPU = torch.device("cpu")
CLASSES = Classes(names=("ground", "sky", "box"), palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)))
FIRST = Classes(names=CLASSES.names[:2], palette=CLASSES.palette[:2], raw_to_train={0: 0, 1: 1, 2: 0})
"""Boxes are ground: what there is before they are learned."""


def draw(domain: str, number: int, size: tuple[int, int] = (40, 56)) -> tuple[np.ndarray, np.ndarray]:
    """An image and its label: ground, sky and a box, in the colours of the domain."""
    rng = keyed(number, domain)
    height, width = size
    label = np.zeros(size, np.uint8)
    label[: int(rng.integers(12, 24))] = 1
    top, left = int(rng.integers(10, 24)), int(rng.integers(2, width - 20))
    label[top : top + 12, left : left + 16] = 2
    colours = np.array([[90, 90, 90], [150, 180, 220], [200, 40, 40]], np.float64)
    if domain == "target":
        colours = colours * 0.6 + np.array([40, 20, 0])
    image = colours[label] + rng.normal(0, 12, (height, width, 3))
    return image.clip(0, 255).astype(np.uint8), label


def make_dataset(
    folder: Path,
    domain: str,
    *,
    train: int = 10,
    val: int = 4,
    fewshot: int = 0,
    labelled: bool = True,
    classes: Classes = CLASSES,
    places: bool = False,
) -> str:
    """Write images, labels and the dataset directory, with `places` where the classes lie too; returns the latter."""
    rows, at = [], []
    splits = ["train"] * train + ["val"] * val + ["fewshot"] * fewshot
    for number, split in enumerate(splits):
        image, label = draw(domain, number)
        name = f"{number:03d}"
        for kind, pixels in (("images", image), ("labels", label)):
            (folder / kind).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / f"{name}.png")
        if split == "train":
            at.append(at_places(classes.lookup()[label].astype(np.uint8)))
        rows.append(
            {
                "image_id": name,
                "image_uri": f"images/{name}.png",
                "label_uri": f"labels/{name}.png" if labelled else None,
                "height": label.shape[0],
                "width": label.shape[1],
                "class_pixels": _class_pixels(label, classes) if labelled else None,
                "dataset": domain,
                "split": split,
            }
        )
    counts = count_places(np.stack(at), len(classes)) if places else None
    write_dataset(str(folder), pa.Table.from_pylist(rows, schema=MANIFEST), classes, counts)
    return str(folder)


def _class_pixels(label: np.ndarray, classes: Classes) -> list[int]:
    return np.bincount(classes.lookup()[label.ravel()], minlength=len(classes))[: len(classes)].tolist()


def tiny_recipe(name: str, *, steps: int = 4, **values: object) -> Recipe:
    """A small recipe cut down to `steps` steps a stage on 32x32 crops."""
    recipe = override(
        RECIPES[name](),
        {
            "steps": steps,
            "model.backbone": "test_byobnet",
            "model.head_channels": 16,
            "data.batch_size": 4,
            "data.short_side": 40,
            "data.crop": (32, 32),
            "checkpoint_every": 2,
            "log_every": 1,
        },
    )
    for i, stage in enumerate(recipe.stages):
        own = {"long_tail": (2,), "things": (2,), "group_size": 2, "old_classes": 2}
        fits = {
            f"stages.{i}.method.{name}": v
            for name, v in own.items()
            if getattr(stage.method, name, None) not in (None, 1)
        }
        if f"stages.{i}.method.group_size" in fits:
            fits[f"stages.{i}.data.group_size"] = 2
        recipe = override(recipe, fits)
    recipe = override(recipe, {key.replace("__", "."): value for key, value in values.items()})
    return replace(recipe, name=name)


def plain_loop(recipe: Recipe, source: str, rank: int = 0, ranks: int = 1) -> dict[str, Tensor]:
    """The network that a recipe of one stage, on the source alone, ends with: its samples and steps without a job."""
    (stage,) = recipe.stages
    seed = key_to_seed(recipe.seed, 0, digest(source))
    plan = make_plan(stage, {"source": source}, seed)
    state = build_state(stage, len(read_classes(source)), seed=seed, init=None, device=CPU, bf16=recipe.bf16)
    share = plan.batch_size // ranks
    for step in range(stage.steps):
        first = step * plan.batch_size + rank * share
        samples = [plan.load(index) for index in range(first, first + share)]
        columns = {name: np.stack([sample[name] for sample in samples]) for name in samples[0]}
        train_step(state, to_batches(columns, stage.data, seed=seed, device=CPU), stage, seed=seed)
    return dict(state.method.predictor.state_dict())


def make_checkpoint(folder: Path, seed: int) -> str:
    """An untrained network whose classifier is sharpened, so that confidences spread."""
    torch.manual_seed(seed)
    network = build_segmenter(3, backbone="test_byobnet", head_channels=16)
    torch.nn.init.normal_(network.net.head.classify.weight, std=2.0)  # type: ignore[union-attr, arg-type]
    model = Model(backbone="test_byobnet", head_channels=16)
    card = ModelCard(model=model, classes=CLASSES, short_side=40, recipe="none", stage="none", step=0)
    save_model(folder, network, card)
    return str(folder)


def digests(folder: Path) -> dict[str, str]:
    """A fingerprint of every file below a folder."""
    files = [path for path in sorted(folder.rglob("*")) if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def upload(folder: Path, uri: str) -> None:
    for path in folder.rglob("*"):
        if path.is_file():
            write_bytes(join(uri, *path.relative_to(folder).parts), path.read_bytes())


def listed(uri: str) -> dict[str, pafs.FileInfo]:
    fs, root = filesystem(uri)
    infos = fs.get_file_info(pafs.FileSelector(root, recursive=True, allow_not_found=True))
    return {info.path[len(root) + 1 :]: info for info in infos if info.is_file}


def tree(uri: str) -> dict[str, bytes]:
    fs, _ = filesystem(uri)
    return {name: fs.open_input_stream(info.path).read() for name, info in listed(uri).items()}
