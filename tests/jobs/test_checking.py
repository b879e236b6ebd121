"""The check of images and labels goes on where it was cut off, and looks anew at what has changed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data.classes import Classes
from udaseg.data.folders import Pair
from udaseg.data.manifest import read_manifest
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs import checking
from udaseg.jobs.checking import CHECKED, check_pairs
from udaseg.jobs.output import mark
from udaseg.jobs.prepare import prepare

CLASSES = Classes(names=("road", "sky"), palette=((128, 64, 128), (70, 130, 180)))
COUNT = 12

pytestmark = pytest.mark.usefixtures("ray_session")


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """images/00.png to 11.png, their labels, and classes.json."""
    rng = np.random.default_rng(0)
    for kind, shape in (("images", (12, 16, 3)), ("labels", (12, 16))):
        (tmp_path / kind).mkdir()
        for number in range(COUNT):
            pixels = rng.integers(0, 2, shape).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / kind / f"{number:02d}.png")
    (tmp_path / "classes.json").write_text(CLASSES.to_json())
    return tmp_path


def run(tree: Path, out: str = "out", **changes: object) -> list[dict]:
    given = {"images": tree / "images", "labels": tree / "labels", "classes": tree / "classes.json"} | changes
    prepare(out=str(tree / out), **{name: str(value) for name, value in given.items()})
    return read_manifest(str(tree / out)).drop_columns("dataset").to_pylist()


def spoil(path: Path, *, unseen: bool) -> None:
    """Break a file; `unseen`: so that its size and time of change stay as they were."""
    before = path.stat()
    path.write_bytes(b"\0" * before.st_size)
    if unseen:
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_a_refused_check_is_not_done_again(tree: Path) -> None:
    expected = run(tree, "whole")
    assert not (tree / "whole" / CHECKED).exists()
    whole = (tree / "labels/05.png").read_bytes()
    spoil(tree / "labels/05.png", unseen=True)
    with pytest.raises(DatasetError, match=r"labels/05\.png: not an image"):
        run(tree)
    assert list((tree / "out" / CHECKED).iterdir())

    # what would be noticed, if these files were opened once more
    spoil(tree / "images/02.png", unseen=True)
    spoil(tree / "labels/07.png", unseen=True)
    (tree / "labels/05.png").write_bytes(whole)
    (tree / "images/11.png").unlink()  # an image less, whose label is gone too
    (tree / "labels/11.png").unlink()
    assert run(tree) == expected[:-1]
    assert not (tree / "out" / CHECKED).exists()

    with pytest.raises(DatasetError, match="problems: 2"):  # nothing is taken from a dataset that is there
        run(tree, overwrite="yes")


@pytest.mark.parametrize("kind", ["images", "labels"])
def test_what_has_changed_is_checked_anew(tree: Path, kind: str) -> None:
    spoil(tree / "labels/05.png", unseen=False)
    with pytest.raises(DatasetError, match="problems: 1"):
        run(tree)
    spoil(tree / kind / "03.png", unseen=False)
    with pytest.raises(DatasetError, match="problems: 2"):
        run(tree)


def test_other_classes_are_checked_anew(tree: Path) -> None:
    spoil(tree / "images/00.png", unseen=False)
    with pytest.raises(DatasetError, match="problems: 1"):
        run(tree)
    (tree / "one.json").write_text(Classes(names=("road",), palette=((0, 0, 0),)).to_json())
    with pytest.raises(DatasetError, match=f"problems: {COUNT}"):
        run(tree, classes=tree / "one.json")


def test_what_is_kept_may_be_damaged(tree: Path) -> None:
    expected = run(tree, "whole")
    image = (tree / "images/00.png").read_bytes()
    spoil(tree / "images/00.png", unseen=False)
    with pytest.raises(DatasetError, match="problems: 1"):
        run(tree)
    for number, path in enumerate((tree / "out" / CHECKED).iterdir()):
        path.write_bytes(path.read_bytes()[:-9] if number % 2 else b"")
    (tree / "images/00.png").write_bytes(image)
    assert run(tree) == expected


def test_blocks_that_are_whole_are_kept_when_another_cannot_be_reached(tree: Path) -> None:
    pairs = [Pair(f"{n:02d}", f"{tree}/images/{n:02d}.png", f"{tree}/labels/{n:02d}.png", "train") for n in range(3)]
    mark(str(tree / "out"), "prepare")
    facts, places = check_pairs(pairs, CLASSES, None, out=str(tree / "out"))
    for path in ("images/00.png", "labels/01.png", "labels/02.png"):
        spoil(tree / path, unseen=True)
    away = Pair("away", f"{tree}/gone/a.png", None, "val")
    with pytest.raises(UnreachableError, match=r"gone/a\.png: could not be reached"):
        check_pairs([away, *pairs], CLASSES, None, out=str(tree / "out"))
    again, places_again = check_pairs(pairs, CLASSES, None, out=str(tree / "out"))
    assert again.equals(facts) and facts["problem"].null_count == 3
    np.testing.assert_array_equal(places_again, places)


def test_another_machine_s_directory_is_left_alone(tree: Path) -> None:
    """A task on a node that does not see --out keeps nothing there."""
    pairs = [Pair("00", f"{tree}/images/00.png", None, "train")]
    facts, _ = check_pairs(pairs, CLASSES, None, out=str(tree / "elsewhere"))
    assert facts["height"].to_pylist() == [12] and not (tree / "elsewhere").exists()


def test_an_image_more_changes_one_block(ray_session: None) -> None:
    def blocks(names: list[int]) -> set[tuple[str, ...]]:
        pairs = [Pair(str(n), f"s3://fleet/{n:05d}.jpg", None, "train") for n in names]
        rows = list(checking._blocks(pairs))
        assert [row for block in rows for row in block] == list(range(len(pairs)))
        assert max(map(len, rows)) <= 128 and 20 < len(pairs) / len(rows) < 45
        return {tuple(pairs[row].image_id for row in block) for block in rows}

    names = list(range(4000))
    whole = blocks(names)
    for less in (0, 1234, 3999):
        assert len(whole - blocks(names[:less] + names[less + 1 :])) <= 2
