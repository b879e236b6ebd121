"""What a folder of strangers holds: links to nothing and names that are no text are told, never left out."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from udaseg.data.dataset_input import find_pairs
from udaseg.data.folders import IMAGE_SUFFIXES, sort_out, walk
from udaseg.data.images import read_image
from udaseg.data.layouts import LAYOUTS
from udaseg.data.listing import list_images
from udaseg.data.storage import filesystem, read_bytes
from udaseg.errors import DatasetError


def test_what_cannot_be_read_is_among_the_images(tmp_path: Path) -> None:
    Image.new("RGB", (4, 4)).save(tmp_path / "good.png")
    (tmp_path / "annexed.png").symlink_to("/nowhere/SHA256-1.png")
    (tmp_path / "drive3").symlink_to("/mnt/nowhere")
    (tmp_path / "notes.txt").symlink_to("/nowhere/notes.txt")  # no image, there or not
    (tmp_path / ".#good.png").symlink_to("an editor's lock")
    os.mkfifo(tmp_path / "pipe.png")
    raw = os.fsencode(tmp_path)
    Path(os.fsdecode(raw + b"/caf\xe9.png")).write_bytes(b"x")
    os.mkdir(raw + b"/dir\xe9")
    reasons = {}
    for image_id, uri in walk(str(tmp_path), IMAGE_SUFFIXES):
        try:
            read_image(uri)
        except DatasetError as error:
            assert str(error).startswith(uri)
            reasons[image_id] = str(error).removeprefix(uri)
    assert reasons == {
        "annexed": ": cannot be read: a link to /nowhere/SHA256-1.png, where there is nothing",
        "caf\\xe9": ": cannot be read: its name is not UTF-8; rename it",
        "dir\\xe9": ": cannot be read: its name is not UTF-8; rename it",
        "drive3": ": cannot be read: a link to /mnt/nowhere, where there is nothing",
    }
    assert len(list(list_images(str(tmp_path)))) == 5


def test_hidden_folders_are_no_splits(tmp_path: Path) -> None:
    for split in ("train", ".cache"):
        (tmp_path / split / "images").mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(tmp_path / split / "images" / "a.png")
    (tmp_path / ".gone").symlink_to("/mnt/nowhere")
    assert [(p.image_id, p.split) for p in LAYOUTS["folders"].pairs(str(tmp_path))] == [("a", "train")]


def test_a_folder_of_a_layout_that_is_a_link_to_nothing_is_told(tmp_path: Path) -> None:
    (tmp_path / "train" / "images").mkdir(parents=True)
    Image.new("RGB", (4, 4)).save(tmp_path / "train" / "images" / "a.png")
    (tmp_path / "train" / "labels").symlink_to("/mnt/nowhere")
    with pytest.raises(DatasetError, match="train/labels: a link to /mnt/nowhere, where there is nothing"):
        list(LAYOUTS["folders"].pairs(str(tmp_path)))
    (tmp_path / "train" / "labels").unlink()
    (tmp_path / "val").symlink_to("/mnt/nowhere")
    with pytest.raises(DatasetError, match="val: a link to /mnt/nowhere"):
        list(LAYOUTS["folders"].pairs(str(tmp_path)))


@pytest.mark.parametrize(
    "name", ["a%20b", "what?", "#1", "[b]", "{x}", 'quo"te', "it's", "a b", "🚗", "s3:", "é" * 100, "back\\slash"]
)
def test_names_are_text(name: str, tmp_path: Path) -> None:
    folder = tmp_path / name
    folder.mkdir()
    Image.new("RGB", (4, 3)).save(folder / f"{name}.png")
    for base in (str(tmp_path), tmp_path.as_uri(), str(folder)):
        (row,) = list_images(base)
        assert row["image_id"] == (name if base == str(folder) else f"{name}/{name}")
        assert row["dataset"] == (name if base == str(folder) else tmp_path.name)
        assert read_image(row["image_uri"]).shape == (3, 4, 3)


COMPOSED, TAKEN_APART = "caf\u00e9", "cafe\u0301"


@pytest.mark.parametrize(("image", "label"), [(COMPOSED, TAKEN_APART), (TAKEN_APART, COMPOSED)])
def test_names_that_look_alike_pair(image: str, label: str, tmp_path: Path) -> None:
    for name in (f"i/{image}/{image}.jpg", "i/x.jpg", f"l/{label}/{label}.png", "l/y.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    pairs, _ = find_pairs(f"{tmp_path}/i", f"{tmp_path}/l", None, None, None, None, None)
    good, problems = sort_out(pairs)
    uris = f"{tmp_path}/i/{image}/{image}.jpg", f"{tmp_path}/l/{label}/{label}.png"
    assert [tuple(pair) for pair in good] == [(f"{image}/{image}", *uris, "train")]  # each as it stands on disk
    assert [problem.image_id for problem in problems] == ["x", "y"]
    (tmp_path / "i" / image / f"{label}.jpg").touch()
    good, problems = sort_out(find_pairs(f"{tmp_path}/i", f"{tmp_path}/l", None, None, None, None, None)[0])
    assert good == [] and sum("is not unique" in problem.text for problem in problems) == 2


@pytest.mark.parametrize("name", ["line\nbreak", "n" * 250, "tab\t"])
def test_names_that_no_output_can_have_are_refused(name: str, tmp_path: Path) -> None:
    Image.new("RGB", (4, 3)).save(tmp_path / f"{name}.png")
    with pytest.raises(DatasetError, match="cannot be a file's name") as refusal:
        list(list_images(str(tmp_path)))
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("name", ["zero\0byte", "caf\udce9", "half \ud800"])
def test_an_address_that_is_no_text_is_refused(name: str) -> None:
    for call in (filesystem, read_bytes):
        with pytest.raises(DatasetError, match="not UTF-8, or holds a zero byte") as refusal:
            call(f"/tmp/{name}")
        assert str(refusal.value).isprintable()
