"""Where classes lie: counted, smoothed, kept with a dataset, and cropped with its images."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from tiny import CLASSES, draw, make_dataset

from udaseg.config import Data, Stage, Stream
from udaseg.data.confidence import decode_distribution
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest, write_dataset
from udaseg.data.places import GRID, WINDOW, at_places, count_places, spatial_prior
from udaseg.errors import ConfigError, DatasetError
from udaseg.jobs.train import make_plan
from udaseg.methods.supervised import Supervised
from udaseg.types import IGNORE


def with_places(folder: Path) -> str:
    """A dataset of 10 training images with the places of their classes."""
    directory = make_dataset(folder, "source")
    ids = np.stack([at_places(draw("source", number)[1]) for number in range(10)])
    write_dataset(directory, read_manifest(directory), CLASSES, count_places(ids, 3))
    return directory


def test_a_map_of_any_size_is_looked_at_in_the_middle_of_each_place() -> None:
    for height, width in ((64, 128), (640, 1280), (7, 9), (1, 1)):
        label = np.random.default_rng(0).integers(0, 250, (height, width)).astype(np.uint8)
        found = at_places(label).reshape(GRID)
        for i, j in ((0, 0), (20, 77), (63, 127)):
            assert found[i, j] == label[int((i + 0.5) * height / 64), int((j + 0.5) * width / 128)]


def test_the_prior_is_each_class_s_share_of_the_labels_around_a_place() -> None:
    rng = np.random.default_rng(0)
    ids = rng.choice(np.array([0, 1, 2, IGNORE], np.uint8), (6, GRID[0] * GRID[1]))
    ids[:, : 20 * GRID[1]] = IGNORE
    counts = count_places(ids, 3)
    maps = ids.reshape(6, *GRID)
    prior = spatial_prior(counts)
    np.testing.assert_allclose(prior.sum(0), 1, rtol=1e-6)
    for i, j in ((0, 0), (18, 5), (20, 0), (40, 60), (63, 127)):
        window = maps[:, max(0, i - WINDOW // 2) : i + WINDOW // 2 + 1, max(0, j - WINDOW // 2) : j + WINDOW // 2 + 1]
        number = (window != IGNORE).sum()
        expected = [(window == c).sum() / number if number else 1 / 3 for c in range(3)]
        np.testing.assert_allclose(prior[:, i, j], expected, rtol=1e-6)
    assert (counts.reshape(3, *GRID)[1] == (maps == 1).sum(0)).all()


def test_a_dataset_keeps_it_until_it_is_made_anew(tmp_path: Path) -> None:
    directory = with_places(tmp_path)
    prior = open_index(directory).spatial_prior()
    labels = np.stack([draw("source", number)[1] for number in range(10)])
    assert prior.shape == (3, *GRID) and prior[1, 2].min() > 0.9 and prior[0, -2].min() > 0.5  # sky above, ground below
    assert abs(prior[2].mean() - (labels == 2).mean()) < 0.01
    write_dataset(directory, read_manifest(directory), CLASSES)
    assert not (tmp_path / "class_places.arrow").exists()


@pytest.mark.parametrize("spoil", ["missing", "cut", "foreign"])
def test_a_prior_that_is_not_there_or_of_another_dataset_is_refused(spoil: str, tmp_path: Path) -> None:
    directory = with_places(tmp_path / "one")
    file = Path(directory) / "class_places.arrow"
    if spoil == "missing":
        file.unlink()
    elif spoil == "cut":
        file.write_bytes(file.read_bytes()[:500])
    else:
        other = with_places(tmp_path / "two")
        table = read_manifest(other)
        write_dataset(other, table.slice(1), CLASSES, np.ones((3, GRID[0] * GRID[1]), np.int64))
        shutil.copy(Path(other) / "class_places.arrow", file)
    with pytest.raises(DatasetError, match=r"class_places\.arrow.*`udaseg prepare --overwrite`"):
        open_index(directory).spatial_prior()


def test_the_prior_is_cropped_where_the_target_s_image_is(tmp_path: Path) -> None:
    source, target = with_places(tmp_path / "source"), make_dataset(tmp_path / "target", "target")
    stream = Stream(labels="none", prior=True)
    data = Data(short_side=80, crop=(32, 48), target=stream)
    stage = Stage(name="s", method=Supervised.Config(), steps=2, data=data)
    plan = make_plan(stage, {"source": source, "target": target}, seed=5)
    prior = open_index(source).spatial_prior()
    for i in range(4):
        code = plan.load(i)["target_prior"]
        assert code.shape == plan.empty()["target_prior"].shape == (3, 4, 6) and code.dtype == np.uint16
        np.testing.assert_allclose(decode_distribution(code).sum(0), 1, atol=1e-2)
    whole = replace(plan, short_side=32, crop=(40, 56)).load(0)["target_prior"]  # a crop as large as an image
    rows = (np.arange(5) + 0.5) * 64 / 5
    expected = [prior[:, int(r) - 6 : int(r) + 7].mean((1, 2)) for r in rows]
    np.testing.assert_allclose(decode_distribution(whole).mean(2).T, expected, atol=0.12)


def test_a_prior_needs_a_source_and_images_that_are_not_rotated() -> None:
    stream = Stream(labels="none", prior=True)
    for changes, reason in (({"source": None}, "source is off"), ({"rotation": 5.0}, "set rotation to 0")):
        with pytest.raises(ConfigError, match=rf"target\.prior .*{reason}"):
            Data(**{"target": stream} | changes).check()  # type: ignore[arg-type]


def test_the_table_says_of_which_manifest_it_is(tmp_path: Path) -> None:
    directory = with_places(tmp_path)
    table = pa.ipc.open_file(str(Path(directory) / "class_places.arrow")).read_all()
    index = open_index(directory).table
    assert table.schema.metadata[b"manifest"] == index.schema.metadata[b"manifest"]
