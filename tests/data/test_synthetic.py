"""The embedded pair of domains: what every test and the demo that trains on it relies on."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.street_domains import CLASSES
from udaseg.data.street_scene import render
from udaseg.data.synthetic import write_pair
from udaseg.errors import DatasetError

SMALL = {"size": (32, 64), "train": 2, "val": 1}


@pytest.fixture(scope="module")
def scenes() -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Domain -> (40, H, W, 3) images and (40, H, W) labels."""
    pairs = {domain: [render(domain, i) for i in range(40)] for domain in ("source", "target")}
    return {domain: tuple(np.stack(part) for part in zip(*drawn, strict=True)) for domain, drawn in pairs.items()}


def shares(labels: np.ndarray) -> np.ndarray:
    """(8,) share of each class in the pixels."""
    return np.bincount(labels.ravel(), minlength=len(CLASSES)) / labels.size


def test_render_is_a_pure_function_of_its_arguments():
    image, label = render("target", 3, seed=5)
    again, label_again = render("target", 3, seed=5)
    assert image.shape == (128, 256, 3) and label.shape == (128, 256)
    assert image.dtype == label.dtype == np.uint8
    assert np.array_equal(image, again) and np.array_equal(label, label_again)
    for other in (render("target", 4, seed=5), render("target", 3, seed=6), render("source", 3, seed=5)):
        assert not np.array_equal(image, other[0])


@pytest.mark.parametrize("size", [(32, 64), (65, 130), (64, 48)])
def test_size_is_height_and_width(size: tuple[int, int]):
    image, label = render("source", 0, size=size)
    assert image.shape == (*size, 3) and label.shape == size


def test_labels_hold_all_classes_and_nothing_else(scenes):
    for _, labels in scenes.values():
        assert set(np.unique(labels)) == set(range(len(CLASSES)))


def test_classes_have_a_long_tail(scenes):
    for _, labels in scenes.values():
        share = shares(labels)
        assert share.max() / share.min() > 10
        assert all(0.005 < share[CLASSES.names.index(name)] < 0.06 for name in ("car", "person", "pole"))


def test_domains_differ_in_appearance_and_layout(scenes):
    (source, source_labels), (target, target_labels) = scenes["source"], scenes["target"]
    assert np.abs(source.mean((0, 1, 2)) - target.mean((0, 1, 2))).max() > 8
    assert np.abs(shares(source_labels) - shares(target_labels)).sum() > 0.1


def test_write_pair_leaves_a_readable_pair(tmp_path: Path):
    write_pair(tmp_path / "pair", seed=1, **SMALL)
    assert Classes.from_json((tmp_path / "pair" / "classes.json").read_text()) == CLASSES
    assert len(list((tmp_path / "pair").rglob("*.png"))) == 12
    for domain in ("source", "target"):
        for split, name, index in (("train", "0001.png", 1), ("val", "0000.png", 2)):  # validation follows training
            folder = tmp_path / "pair" / domain / split
            image, label = render(domain, index, seed=1, size=SMALL["size"])
            assert np.array_equal(np.asarray(Image.open(folder / "images" / name)), image)
            stored = Image.open(folder / "labels" / name)
            assert stored.mode == "P"
            assert np.array_equal(np.asarray(stored), label)
            assert np.array_equal(np.asarray(stored.convert("RGB")), np.asarray(CLASSES.palette, np.uint8)[label])


def test_write_pair_again_does_nothing(tmp_path: Path):
    write_pair(tmp_path, **SMALL)
    times = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    write_pair(tmp_path, **SMALL)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == times


def test_write_pair_finishes_an_interrupted_pair(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def fail(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("udaseg.data.synthetic.render", fail)
        write_pair(tmp_path, **SMALL)
    assert not (tmp_path / "synthetic.json").exists()
    write_pair(tmp_path, **SMALL)
    assert json.loads((tmp_path / "synthetic.json").read_text())["train"] == SMALL["train"]
    assert len(list(tmp_path.rglob("*.png"))) == 12


@pytest.mark.parametrize("change", [{"seed": 7}, {"train": 3}, {"size": (64, 128)}])
def test_write_pair_refuses_a_pair_of_other_arguments(tmp_path: Path, change: dict):
    write_pair(tmp_path, **SMALL)
    with pytest.raises(DatasetError, match=str(tmp_path)):
        write_pair(tmp_path, **(SMALL | change))


def test_write_pair_refuses_a_foreign_folder(tmp_path: Path):
    (tmp_path / "notes.txt").write_text("mine")
    with pytest.raises(DatasetError, match=str(tmp_path)):
        write_pair(tmp_path, **SMALL)
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
