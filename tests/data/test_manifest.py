"""A dataset directory that is cut off, foreign, mixed of two or made anew in the same process."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.fs as pafs
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny import draw, make_dataset

from udaseg.data import index as index_module
from udaseg.data import manifest as manifest_module
from udaseg.data.classes import read_classes
from udaseg.data.index import open_index
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.data.plan import Plan, StreamPlan
from udaseg.errors import DatasetError

FILES = ("manifest.parquet", "index.arrow", "class_rows.arrow")


@pytest.fixture
def dataset(tmp_path: Path) -> Path:
    return Path(make_dataset(tmp_path / "data", "source", train=3, val=1))


def test_a_dataset_that_was_cut_off_while_made_anew_is_none(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its manifest would be of the older images, beside newer classes."""

    def full(uri: str, **_: object) -> None:
        raise OSError(f"{uri}: no space left on device")

    manifest, classes = read_manifest(str(dataset)), read_classes(str(dataset))
    monkeypatch.setattr(manifest_module, "writer", full)
    with pytest.raises(OSError, match="no space left"):
        write_dataset(str(dataset), manifest, classes)
    assert not (dataset / "manifest.parquet").exists()


def refused(directory: Path) -> str:
    with pytest.raises(DatasetError) as refusal:
        read_manifest(str(directory))
        open_index(str(directory))
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


def test_a_directory_that_is_not_there(dataset: Path) -> None:
    wrong = dataset.with_name("dtaa")
    assert refused(wrong) == f"{wrong}: no such directory"
    with pytest.raises(DatasetError, match="dtaa: no such directory"):
        read_classes(str(wrong))


def test_a_directory_that_is_no_dataset_is_called_so(tmp_path: Path) -> None:
    """`udaseg join` and `udaseg train` open indices alone."""
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "classes.json").write_text("{}")  # as a root of the layout `folders` has it
    for name, reason in ("dtaa", "no such directory"), ("root", "no manifest.parquet, so not a dataset"):
        with pytest.raises(DatasetError, match=f"/{name}: {reason}"):
            open_index(str(tmp_path / name))


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "cut", [lambda n: 0, lambda n: 1, lambda n: n // 2, lambda n: n - 1], ids=["0", "1", "half", "1less"]
)
def test_a_file_that_is_cut_off(name: str, cut: Callable[[int], int], dataset: Path) -> None:
    content = (dataset / name).read_bytes()
    (dataset / name).write_bytes(content[: cut(len(content))])
    message = refused(dataset)
    assert message.startswith(f"{dataset}/{name}: ") and "`udaseg prepare --overwrite`" in message


@pytest.mark.parametrize("name", FILES)
def test_files_of_two_datasets(name: str, dataset: Path, tmp_path: Path) -> None:
    other = Path(make_dataset(tmp_path / "other", "target", train=4, val=2))
    shutil.copy(other / name, dataset / name)
    assert "`udaseg prepare --overwrite`" in refused(dataset)


def change(column: str, values: list[object], type: pa.DataType | None = None) -> Callable[[pa.Table], pa.Table]:
    return lambda t: t.set_column(t.column_names.index(column), column, pa.array(values, type))


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda t: t.drop_columns(["width"]), "column 'width' is missing"),
        (change("height", ["40"] * 4), "column 'height' is of type string, not int32"),
        (change("height", [40, -40, 40, 40], pa.int32()), "height is -40 in row 1"),
        (change("width", [56, 56, 0, 56], pa.int32()), "width is 0 in row 2"),
        (change("split", ["train", None, "val", "val"]), "column 'split' is empty in row 1"),
        (change("image_uri", [1, 2, 3, 4]), "column 'image_uri' is of type int64, not string"),
        (change("class_pixels", [[1, 2, -3]] * 4), "column 'class_pixels' has entries that are no number of pixels"),
        (change("class_pixels", [[1, 2, None]] * 4, pa.list_(pa.int64())), "column 'class_pixels' has entries"),
    ],
)
def test_columns_that_are_no_manifests(spoil: Callable[[pa.Table], pa.Table], reason: str, dataset: Path) -> None:
    table = spoil(pq.read_table(dataset / "manifest.parquet"))
    assert set(table.column_names) <= set(MANIFEST.names)
    pq.write_table(table, dataset / "manifest.parquet")
    message = refused(dataset)
    assert message.startswith(f"{dataset}/manifest.parquet: ") and reason in message


def test_an_index_that_names_no_manifest_is_refused(dataset: Path) -> None:
    table = pa.ipc.open_file(dataset / "index.arrow").read_all()
    bare = table.replace_schema_metadata({b"splits": table.schema.metadata[b"splits"]})
    with pa.ipc.new_file(dataset / "index.arrow", bare.schema) as file:
        file.write_table(bare)
    with pytest.raises(DatasetError, match=r"not the one that the index\.arrow beside it"):
        open_index(str(dataset))


def test_a_dataset_that_is_made_anew_is_read_anew(tmp_path: Path) -> None:
    for count in (3, 7):
        directory = make_dataset(tmp_path / "data", "source", train=count, val=1)
        assert open_index(directory).rows("train") == (0, count)
        assert open_index(directory) is open_index(directory)


def test_images_that_were_changed_afterwards_are_named(dataset: Path) -> None:
    stream = StreamPlan(directory=str(dataset), labelled=True)
    plan = Plan(seed=0, batch_size=1, steps=3, crop=(32, 32), short_side=40, scale=(1, 1), streams={"source": stream})
    assert plan.load(0)["source_label"].shape == (32, 32)
    for kind, n in (("labels", 1), ("images", 0)):
        for path in sorted((dataset / kind).glob("*.png")):
            Image.fromarray(draw("source", 0, (40, 48))[n]).save(path)
        with pytest.raises(DatasetError, match=rf"{kind}/00\d.png: 48 x 40 pixels .* but 56 x 40 when the dataset was"):
            plan.load(0)
    for path in (dataset / "labels").glob("*.png"):
        Image.fromarray(np.full((40, 56), 77, np.uint8)).save(path)
    with pytest.raises(DatasetError, match=r"labels/00\d.png: label ids outside the class list: 77 \(\d+ pixels\)"):
        open_index(str(dataset)).train_ids(0)
    (dataset / "labels" / "000.png").unlink()
    with pytest.raises(DatasetError, match=r"labels/000.png: cannot be read: no such file"):
        open_index(str(dataset)).train_ids(0)


def test_a_dataset_that_is_made_anew_under_a_run_ends_it(tmp_path: Path) -> None:
    """Else it would go on with other images, which no resumed run could have."""
    directory = make_dataset(tmp_path / "data", "source", train=3, val=1)
    stream = StreamPlan(directory=directory, manifest=open_index(directory).manifest, labelled=True)
    plan = Plan(seed=0, batch_size=1, steps=3, crop=(32, 32), short_side=40, scale=(1, 1), streams={"source": stream})
    assert plan.load(0)["source_label"].shape == (32, 32)
    make_dataset(tmp_path / "data", "source", train=5, val=1)
    with pytest.raises(DatasetError, match="data: was made anew while it was trained on; begin another run"):
        plan.load(1)


@pytest.fixture
def in_a_store(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The dataset as in a store that answers slowly: what is read of it."""
    read: list[str] = []

    def slow(uri: str, to: str, *filesystems: pafs.FileSystem) -> None:
        read.append(uri)
        time.sleep(0.05)
        copy_files(uri, to, *filesystems)

    copy_files = pafs.copy_files
    store = pafs.SubTreeFileSystem("/", pafs.LocalFileSystem())
    monkeypatch.setattr(index_module, "filesystem", lambda uri: (store, uri))
    monkeypatch.setattr(pafs, "copy_files", slow)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "temporary"))
    return read


def test_threads_that_open_a_dataset_in_a_store_fetch_it_once(dataset: Path, in_a_store: list[str]) -> None:
    """As a data task does on a new node: copies that four threads write at once were mapped half written."""
    with ThreadPoolExecutor(4) as threads:
        found = list(threads.map(open_index, [str(dataset)] * 4))
    assert all(one is found[0] for one in found) and found[0].rows("train") == (0, 3)
    assert len(in_a_store) == len({*in_a_store}) == 2, "once each"


def test_a_copy_that_was_cut_off_is_fetched_again(dataset: Path, in_a_store: list[str]) -> None:
    open_index(str(dataset))
    copies = [p for p in Path(tempfile.gettempdir()).rglob("udaseg-index-*/*") if p.suffix != ".lock"]
    assert len(copies) == 2 and len(in_a_store) == 2
    for copy in copies:
        copy.write_bytes(copy.read_bytes()[:10])
    index_module._open.cache_clear()
    assert open_index(str(dataset)).rows("train") == (0, 3) and len(in_a_store) == 4


def test_a_manifest_of_another_dataset_is_told_by_the_index_beside_it(tmp_path: Path) -> None:
    first, second = make_dataset(tmp_path / "a", "source"), make_dataset(tmp_path / "b", "target")
    shutil.copy(Path(second) / "manifest.parquet", Path(first) / "manifest.parquet")
    with pytest.raises(DatasetError, match=r"not the one that the index\.arrow beside it"):
        read_manifest(first)
