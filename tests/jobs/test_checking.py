"""The check of images and labels goes on where it was cut off, and looks anew at what has changed."""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.folders import Pair
from udaseg.data.manifest import MANIFEST, read_manifest
from udaseg.data.storage import children, exists, join, remove_folder, write_bytes
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs import checking
from udaseg.jobs import prepare as prepare_job
from udaseg.jobs.checking import CHECKED, check_pairs
from udaseg.jobs.output import mark
from udaseg.jobs.prepare import prepare
from udaseg.reports.dataset import contents_table
from udaseg.reports.tables import show

CLASSES = Classes(names=("road", "sky"), palette=((128, 64, 128), (70, 130, 180)))
COUNT = 12

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """images/00.png to 11.png, their labels, classes.json, and out/, which is prepare's."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (12, 16, 3)), ("labels", (12, 16))):
        (tmp_path / kind).mkdir()
        for number in range(COUNT):
            pixels = rng.integers(0, 2, shape).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number:02d}.png")
    (tmp_path / "classes.json").write_text(CLASSES.to_json())
    mark(str(tmp_path / "out"), "prepare")
    return tmp_path


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the images that are opened by blocks that are checked in this process."""
    names: list[str] = []
    inspect = checking.inspect

    def note(image_uri: str, *rest: object) -> object:
        names.append(Path(image_uri).stem)
        return inspect(image_uri, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(checking, "inspect", note)
    return names


def check(tree: Path, names: list[str], classes: Classes = CLASSES, first: int = 0) -> pa.Table:
    """Facts of images, which are one block."""
    plan = {
        "rows": list(range(first, first + len(names))),
        "images": [f"{tree}/images/{name}.png" for name in names],
        "labels": [f"{tree}/labels/{name}.png" for name in names],
    }
    return checking._check_blocks(pa.Table.from_pylist([plan]), classes, None, str(tree / "out"))


def run(tree: Path, **changes: object) -> list[dict]:
    given = {"images": tree / "images", "labels": tree / "labels", "classes": tree / "classes.json"} | changes
    prepare(**{name: str(value) for name, value in ({"out": tree / "out"} | given).items()})
    return read_manifest(str(given.get("out", tree / "out"))).drop_columns("dataset").to_pylist()


def kept(tree: Path) -> list[Path]:
    return sorted((tree / "out" / CHECKED).iterdir())


def test_a_block_is_opened_once(tree: Path, opened: list[str]) -> None:
    names = ["00", "01", "02"]
    facts = check(tree, names)
    assert sorted(opened) == names and len(kept(tree)) == 1
    again = check(tree, names, first=7)
    assert sorted(opened) == names and again["row"].to_pylist() == [7, 8, 9]
    assert again.drop_columns("row").equals(facts.drop_columns("row"))
    assert len(kept(tree)) == 1


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_what_has_changed_is_opened_again(tree: Path, opened: list[str], kind: str) -> None:
    """A file of the same size with the same time of change, as copies keep it, is another all the same."""
    names = ["00", "01", "02"]
    facts = check(tree, names)
    path = tree / kind / "01.png"
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.clear()
    again = check(tree, names)
    assert opened == ["01"] and facts["problem"].null_count == 3 and again["problem"].null_count == 2

    opened.clear()
    check(tree, names)
    assert opened == ["01"]  # what could not be used is


def test_other_classes_and_neighbours_are_another_check(tree: Path, opened: list[str]) -> None:
    check(tree, ["00", "01"])
    check(tree, ["00", "01"], Classes(names=("sky", "road"), palette=CLASSES.palette))
    check(tree, ["01"])
    assert len(opened) == 5 and len(kept(tree)) == 3


def test_what_is_kept_may_be_damaged(tree: Path, opened: list[str]) -> None:
    names = ["00", "01", "02"]
    facts = check(tree, names)
    (path,) = kept(tree)
    whole = path.read_bytes()
    for damaged in (b"", whole[:-9], whole[: len(whole) // 3], *(_flipped(whole, at) for at in range(0, 400, 7))):
        path.write_bytes(damaged)
        assert check(tree, names).equals(facts)
    pq.write_table(facts.slice(0, 2), path)
    opened.clear()
    assert check(tree, names).equals(facts) and len(opened) == 3


def _flipped(content: bytes, at: int) -> bytes:
    return content[:at] + bytes([content[at] ^ 16]) + content[at + 1 :]


def test_another_machine_s_directory_is_left_alone(tree: Path) -> None:
    """A task on a node that does not see --out keeps nothing there."""
    shutil.rmtree(tree / "out")
    assert check(tree, ["00"])["problem"].null_count == 1
    assert not (tree / "out").exists()


def test_prepare_takes_what_is_kept_until_there_is_a_dataset(tree: Path) -> None:
    expected = run(tree, out=tree / "whole")
    assert not (tree / "whole" / CHECKED).exists()
    broken = tree / "labels/05.png"
    content = broken.read_bytes()
    broken.write_bytes(b"\0")
    with pytest.raises(DatasetError, match=r"labels/05\.png: not an image"):
        run(tree)
    taken = 0
    for path in kept(tree):  # so that it shows whether they are taken
        facts = pq.read_table(path)
        taken += facts["problem"].null_count
        pq.write_table(facts.set_column(1, "height", pa.array([999] * len(facts), pa.int32())), path)
    broken.write_bytes(content)
    rows = run(tree)
    assert taken == COUNT - 1 and sum(row["height"] == 999 for row in rows) == taken
    assert [row | {"height": 12} for row in rows] == expected
    assert not (tree / "out" / CHECKED).exists()
    assert run(tree, overwrite="yes") == expected  # nothing is taken from a dataset that is there


def test_prepare_goes_on_in_a_store(tree: Path, store: Callable[[str, str], str]) -> None:
    expected = run(tree)
    out = store("prepared", "data/set")
    broken = tree / "labels/05.png"
    content = broken.read_bytes()
    broken.write_bytes(b"\0")
    with pytest.raises(DatasetError, match=r"labels/05\.png: not an image"):
        run(tree, out=out)
    assert children(join(out, CHECKED)) and not exists(join(out, "manifest.parquet"))
    broken.write_bytes(content)
    assert run(tree, out=out) == expected
    assert not children(join(out, CHECKED))


def test_what_was_just_written_to_a_store_is_not_trusted(
    store: Callable[[str, str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its time of change may be a whole second, in which the same file can be written once more."""
    uri = store("checking", "a.png")
    write_bytes(uri, b"1")
    assert checking._versions([uri]) is None
    later = time.time() + 60
    monkeypatch.setattr(time, "time", lambda: later)
    settled = checking._versions([uri])
    assert settled is not None and settled == checking._versions([uri])
    write_bytes(uri, b"22")
    assert checking._versions([uri]) != settled
    assert checking._versions([join(uri, "missing")]) is None


def test_what_cannot_be_reached_is_kept_as_no_problem(tree: Path) -> None:
    away = Pair("away", f"{tree}/gone/a.png", None, "val")
    with pytest.raises(UnreachableError, match=r"gone/a\.png: could not be reached"):
        check_pairs([away], CLASSES, None, out=str(tree / "out"))
    assert not (tree / "out" / CHECKED).exists()


def test_an_image_more_changes_one_block_or_two() -> None:
    def blocks(names: list[int]) -> set[tuple[str, ...]]:
        pairs = [Pair(str(n), f"s3://fleet/{n:05d}.jpg", None, "train") for n in names]
        rows = list(checking._blocks(pairs))
        assert [row for block in rows for row in block] == list(range(len(pairs)))
        assert max(map(len, rows)) <= 32 and 6 < len(pairs) / len(rows) < 10
        return {tuple(pairs[row].image_id for row in block) for block in rows}

    names = list(range(4000))
    whole = blocks(names)
    for less in (0, 1234, 3999):
        assert len(whole - blocks(names[:less] + names[less + 1 :])) <= 2


def test_a_folder_is_removed_wherever_it_is(store: Callable[[str, str], str]) -> None:
    home = store("checking", "data/set")
    folder = join(home, CHECKED)
    remove_folder(folder)
    for name in ("a", "b c"):
        write_bytes(join(folder, name), b"1")
    write_bytes(join(home, "beside"), b"1")
    remove_folder(folder)
    assert not exists(join(folder, "a")) and not exists(join(folder, "b c")) and exists(join(home, "beside"))


def pairs(tree: Path, *splits: str) -> list[Pair]:
    return [
        Pair(f"{n:02d}", f"{tree}/images/{n:02d}.png", f"{tree}/labels/{n:02d}.png", split)
        for n, split in enumerate(splits)
    ]


def test_places_are_those_of_the_training_images(tree: Path, ray_session: None) -> None:
    both = check_pairs(pairs(tree, "train", "train", "val"), CLASSES, None, out=str(tree / "out"))[1]
    train = check_pairs(pairs(tree, "train", "train"), CLASSES, None, out=str(tree / "out"))[1]
    assert np.array_equal(both, train) and train.sum() == 2 * 64 * 128


def test_another_depth_range_is_another_check(tree: Path, opened: list[str]) -> None:
    """16 bits are no image without a range, and what was found with one does not make them so."""
    Image.fromarray(np.full((12, 16), 300, np.uint16)).save(tree / "images" / "00.png")
    plan = {"rows": [0], "images": [f"{tree}/images/00.png"], "labels": [None]}
    uris = pa.list_(pa.string())
    schema = pa.schema([("rows", pa.list_(pa.int64())), ("images", uris), ("labels", uris)])
    table = pa.Table.from_pylist([plan], schema=schema)
    for depth_range, bad in (((0.0, 1000.0), False), (None, True)):
        facts = checking._check_blocks(table, CLASSES, depth_range, str(tree / "out"))
        assert facts["problem"][0].is_valid == bad


def test_facts_are_in_the_order_of_the_images_whichever_is_checked_first(
    tree: Path, ray_session: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checking, "_KEPT", 1)
    monkeypatch.setattr(checking, "track", lambda blocks, *_: reversed(list(blocks)))
    facts, _ = check_pairs(pairs(tree, *12 * ["train"]), CLASSES, None, out=str(tree / "out"))
    assert facts["row"].to_pylist() == list(range(12))


def test_each_block_of_a_task_is_kept(tree: Path, opened: list[str]) -> None:
    def plan(n: int) -> dict[str, object]:
        rows = [2 * n, 2 * n + 1]
        return {"rows": rows} | {kind: [f"{tree}/{kind}/{m:02d}.png" for m in rows] for kind in ("images", "labels")}

    table = pa.Table.from_pylist([plan(n) for n in range(3)])
    first = checking._check_blocks(table, CLASSES, None, str(tree / "out"))
    assert len(opened) == 6 and len(kept(tree)) == 3
    assert checking._check_blocks(table, CLASSES, None, str(tree / "out")).equals(first) and len(opened) == 6


def test_a_dataset_is_called_as_its_directory_and_what_is_passed_over_is_told(
    tree: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (tree / "images" / "x.heic").write_bytes(b"x")
    run(tree)
    assert set(read_manifest(str(tree / "out"))["dataset"].to_pylist()) == {"out"}
    assert "heic" in capsys.readouterr().err


def test_a_folder_beside_is_not_below() -> None:
    uris = ["/data/out/a.png", "/data/out2/a.png", "/data/outer.png", None]
    assert prepare_job._relative(uris, "/data/out") == ["a.png", *uris[1:]]


def test_the_table_counts_each_split(capsys: pytest.CaptureFixture[str]) -> None:
    split = [("train", [30, 10]), ("train", [0, 40]), ("train", None), ("val", [5, 0]), ("test", None)]
    common = {"image_uri": "a", "height": 1, "width": 1, "dataset": "d"}
    table = [
        common | {"image_id": str(n), "split": s, "class_pixels": p, "label_uri": None if p is None else "l"}
        for n, (s, p) in enumerate(split)
    ]
    show(contents_table(pa.Table.from_pylist(table, schema=MANIFEST), CLASSES, title="t"))
    shown = capsys.readouterr().out.replace("│", " ").replace("%", "")
    lines = [line.split() for line in shown.splitlines()]
    found = {words[0]: words[1:] for words in lines if words}
    assert found["images"] == ["1", "3", "1"] and found["labelled"] == ["0", "2", "1"]
    assert found["road"] == ["37.50", "100.00"] and found["sky"] == ["62.50", "0.00"]
