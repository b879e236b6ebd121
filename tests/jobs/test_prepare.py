"""`udaseg prepare`: what it writes, to the pixel, and what it refuses, by name."""

from __future__ import annotations

import io
import json
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from pipelines.prepare import main
from udaseg.data import layouts as datasets
from udaseg.data.classes import Classes, read_classes
from udaseg.data.dataset_input import split_folders
from udaseg.data.images import decode_label
from udaseg.data.manifest import read_manifest
from udaseg.data.storage import filesystem, join, resolve
from udaseg.errors import DatasetError, UnreachableError
from udaseg.jobs import prepare as prepare_module
from udaseg.jobs.checking import CHECKED, check_image
from udaseg.jobs.output import MARKER, mark
from udaseg.jobs.prepare import prepare

CLASSES = Classes(names=("road", "sky", "car"), palette=((128, 64, 128), (70, 130, 180), (0, 0, 142)))
SIZE = (12, 16)  # height, width


def png(array: np.ndarray) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(array).save(stream, "PNG")
    return stream.getvalue()


def raw_png(depth: int, size: tuple[int, int], rows: bytes) -> bytes:
    """A grey PNG of `depth` bits and a size (width, height), which Pillow cannot write; rows begin with filter 0."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def put_image(path: Path, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*SIZE, 3), dtype=np.uint8)).save(path)


def put_label(path: Path, seed: int = 0, ids: tuple[int, ...] = (0, 1, 2, 255)) -> np.ndarray:
    label = np.random.default_rng(seed).choice(np.array(ids, np.uint8), SIZE)
    put(path, png(label))
    return label


def counts(label: np.ndarray, num_classes: int = 3) -> list[int]:
    return [int((label == c).sum()) for c in range(num_classes)]


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """images/{a.png, b/c.jpg, b/d e.webp}, their labels and classes.json."""
    for seed, (image, label) in enumerate((("a.png", "a"), ("b/c.jpg", "b/c"), ("b/d e.webp", "b/d e"))):
        put_image(tmp_path / "images" / image, seed)
        put_label(tmp_path / "labels" / f"{label}.png", seed)
    (tmp_path / "classes.json").write_text(CLASSES.to_json())
    (tmp_path / "given.json").write_text(CLASSES.to_json())
    return tmp_path


def run(tree: Path, **changes: object) -> list[datasets.Problem]:
    arguments = {"images": "images", "labels": "labels", "classes": "classes.json", "out": "out"} | changes
    paths = ("images", "labels", "classes", "splits", "root", "out")
    return prepare(**{k: tree / v if k in paths and v is not None else v for k, v in arguments.items()})


def refusal(tree: Path, **changes: object) -> str:
    """The message of a refusal that wrote nothing but what was checked."""
    with pytest.raises(DatasetError) as error:
        run(tree, **changes)
    out = tree / str(changes.get("out", "out"))
    assert not out.exists() or {path.name for path in out.iterdir()} == {MARKER, CHECKED}
    return str(error.value)


pytestmark = pytest.mark.usefixtures("ray_session")


# -- what is written


def test_counts_pixels_exactly(tree: Path) -> None:
    assert run(tree, name="mini", split="day") == []
    manifest = read_manifest(str(tree / "out"))
    rows = manifest.to_pylist()
    assert [row["image_id"] for row in rows] == ["a", "b/c", "b/d e"]
    assert {(row["dataset"], row["split"], row["height"], row["width"]) for row in rows} == {("mini", "day", *SIZE)}
    for row in rows:
        label = np.asarray(Image.open(row["label_uri"]))
        assert row["class_pixels"] == counts(label)
        assert 0 < sum(row["class_pixels"]) < label.size  # some are ignored
        assert row["image_uri"].startswith(f"{tree}/images/{row['image_id']}.")
    assert read_classes(str(tree / "out")) == CLASSES
    assert not (tree / "out" / "skipped.json").exists()
    index = pa.ipc.open_file(tree / "out" / "index.arrow").read_all()
    assert index.equals(manifest)


@pytest.mark.parametrize(("name", "road_and_car"), [("cityscapes", (7, 26)), ("cityscapes_train_ids", (0, 13))])
def test_class_lists_by_name(tree: Path, name: str, road_and_car: tuple[int, int]) -> None:
    for file in (tree / "labels").rglob("*.png"):
        Image.fromarray(np.resize(np.array(road_and_car, np.uint8), SIZE)).save(file)
    assert prepare(**{k: str(tree / k) for k in ("images", "labels", "out")}, classes=name) == []
    names = read_classes(str(tree / "out")).names
    assert len(names) == 19
    for row in read_manifest(str(tree / "out")).to_pylist():
        pixels = {names[k]: count for k, count in enumerate(row["class_pixels"]) if count}
        assert pixels == {"road": SIZE[0] * SIZE[1] // 2, "car": SIZE[0] * SIZE[1] // 2}


def test_unlabelled(tree: Path) -> None:
    run(tree, labels=None)
    for row in read_manifest(str(tree / "out"), "train").to_pylist():
        assert row["label_uri"] is None and row["class_pixels"] is None
    assert not (tree / "out" / "class_places.arrow").exists()


def test_uris_are_relative_below_the_dataset(tree: Path) -> None:
    mark(str(tree), "prepare")  # its directory already, before the images came into it
    run(tree, out=".", classes="given.json")
    row = read_manifest(str(tree))["image_uri"].to_pylist()[2]
    assert row == "images/b/d e.webp"
    for base in (str(tree), tree.as_uri()):
        fs, path = filesystem(resolve(row, base))
        assert fs.get_file_info(path).is_file


def test_file_uris(tree: Path) -> None:
    for kind in ("images", "labels"):
        (tree / kind / "b").rename(tree / kind / "50% b?#")  # what a URI must quote
    uri = tree.as_uri()
    arguments = {"labels": join(uri, "labels"), "classes": join(uri, "classes.json")}
    prepare(images=join(uri, "images"), out=join(uri, "out"), **arguments)
    rows = read_manifest(join(uri, "out")).to_pylist()
    assert [row["image_id"] for row in rows] == ["50% b?#/c", "50% b?#/d e", "a"]
    for row in rows:
        assert row["image_uri"].startswith("file:///")
        fs, path = filesystem(row["label_uri"])
        assert row["class_pixels"] == counts(np.asarray(Image.open(fs.open_input_file(path))))
    mark(str(tree), "prepare")
    arguments["classes"] = join(uri, "given.json")
    prepare(images=join(uri, "images"), out=str(tree), **arguments)  # a path above a URI
    assert read_manifest(str(tree))["image_uri"].to_pylist()[0] == "images/50% b?#/c.jpg"


def test_deterministic(tree: Path) -> None:
    for i in range(70):
        put_image(tree / "images" / f"many/{i}.png", i)
        put_label(tree / "labels" / f"many/{i}.png", i)
    run(tree)
    names = ("manifest.parquet", "index.arrow", "class_rows.arrow", "class_places.arrow", "classes.json")
    first = [(tree / "out" / name).read_bytes() for name in names]
    run(tree, overwrite=True)
    assert first == [(tree / "out" / name).read_bytes() for name in names]
    ids = read_manifest(str(tree / "out"))["image_id"].to_pylist()
    assert ids == sorted(ids) and len(ids) == 73
    labels = np.stack([np.asarray(Image.open(file)) for file in (tree / "labels").rglob("*.png")])
    places = pa.ipc.open_file(tree / "out" / "class_places.arrow").read_all()
    for class_id, images in enumerate(places["images"].to_pylist()):
        for i, j in np.ndindex(64, 128):  # the middle of each place
            assert images[i * 128 + j] == (labels[:, int((i + 0.5) * 12 / 64), j // 8] == class_id).sum()


def test_raw_ids_of_16_bits(tree: Path) -> None:
    raw = np.random.default_rng(0).choice(np.array([7, 300, 60000], np.uint16), SIZE)
    put(tree / "images/labels16/x.png", png(np.zeros((*SIZE, 3), np.uint8)))
    put(tree / "labels16/x.png", png(raw))
    mapped = Classes(names=CLASSES.names, palette=CLASSES.palette, raw_to_train={7: 2, 300: 255, 60000: 0})
    (tree / "raw.json").write_text(mapped.to_json())
    run(tree, images="images/labels16", labels="labels16", classes="raw.json")
    assert read_manifest(str(tree / "out"))["class_pixels"].to_pylist() == [
        [int((raw == 60000).sum()), 0, int((raw == 7).sum())]
    ]


def test_splits_file(tree: Path) -> None:
    (tree / "splits.json").write_text(json.dumps({"train": ["b/c", "a"], "val": ["b/d e"]}))
    run(tree, splits="splits.json")
    rows = read_manifest(str(tree / "out")).to_pylist()
    assert [(row["image_id"], row["split"]) for row in rows] == [("a", "train"), ("b/c", "train"), ("b/d e", "val")]


def test_splits_name_images_however_their_accents_are_written(tree: Path) -> None:
    for folder, suffix in (("images", ".webp"), ("labels", ".png")):
        path = tree / folder / "b" / f"d e{suffix}"
        path.rename(path.with_name(f"d e\u0301{suffix}"))  # as archives made on macOS have it
    (tree / "splits.json").write_text(json.dumps({"train": ["b/c", "a"], "val": ["b/d \u00e9"]}))
    run(tree, splits="splits.json")
    rows = read_manifest(str(tree / "out")).to_pylist()
    assert {row["image_id"]: row["split"] for row in rows} == {"a": "train", "b/c": "train", "b/d e\u0301": "val"}


def test_colour_labels_with_suffixes(tree: Path) -> None:
    ids = {}
    for path in sorted((tree / "labels").rglob("*.png")):
        ids[path.stem] = np.asarray(Image.open(path)) % 3
        put(path.with_name(f"{path.stem}_gt.png"), png(np.array(CLASSES.palette, np.uint8)[ids[path.stem]]))
    run(tree, label_suffix="_gt", label_colors="palette")
    rows = read_manifest(str(tree / "out")).to_pylist()
    assert [row["class_pixels"] for row in rows] == [counts(ids[row["image_id"].split("/")[-1]]) for row in rows]
    assert read_classes(str(tree / "out")).color_to_train == {"128,64,128": 0, "70,130,180": 1, "0,0,142": 2}


# -- what is warned of


def test_warns_of_what_is_mostly_a_mistake(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(tree)
    assert "warning" not in capsys.readouterr().err
    for path in (tree / "labels").rglob("*.png"):
        put(path, png(np.where(np.arange(192).reshape(SIZE) < 48, 0, 255).astype(np.uint8)))
    message = refusal(tree, strict=True, out="strict")
    run(tree, overwrite=True)
    warned = capsys.readouterr().err.splitlines()
    assert [line.partition(" ")[0] for line in warned] == ["warning:"] * 3
    assert message.splitlines()[1:] == [f"  {line.removeprefix('warning: ')}" for line in warned]
    assert "0 and 255 are the only values" in warned[0] and "'sky', 'car'" in warned[1] and "75.00 %" in warned[2]
    assert read_manifest(str(tree / "out"))["class_pixels"].to_pylist() == [[48, 0, 0]] * 3


def test_an_image_stored_turned_has_the_size_that_is_shown(tree: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    image = Image.open(tree / "images/a.png").transpose(Image.Transpose.ROTATE_90)
    image.save(tree / "images/a.png", exif=exif)
    assert image.size == SIZE
    run(tree)
    row = read_manifest(str(tree / "out")).to_pylist()[0]
    assert (row["height"], row["width"]) == SIZE


# -- label encodings


def test_decode_label() -> None:
    ids = np.array([[0, 1, 2, 3]], np.uint8)
    palette = Image.fromarray(ids).convert("P")
    palette.putdata([0, 1, 2, 3])
    palette.putpalette([9, 9, 9] * 4)
    stream = io.BytesIO()
    palette.save(stream, "PNG")  # Pillow writes 2 bits
    for data in (png(ids), png(ids.astype(np.uint16)), raw_png(2, (4, 1), b"\0\x1b"), stream.getvalue()):
        assert np.array_equal(decode_label(data), ids)
    assert np.array_equal(decode_label(raw_png(4, (4, 1), b"\0\x01\x2f")), [[0, 1, 2, 15]])
    assert np.array_equal(decode_label(png(ids == 1)), ids == 1)


# -- layouts


def test_folders_layout(tree: Path) -> None:
    root = tree / "root"
    train = put_label(root / "train/labels/a.png", 1)
    val = put_label(root / "val/labels/a.png", 2)
    for split in ("train", "val", "test"):
        put_image(root / split / "images/a.jpg")
    put_image(root / "test/images/b.jpg")
    (root / "notes").mkdir()
    (root / "classes.json").write_text(CLASSES.to_json())
    run(tree, images=None, labels=None, classes=None, layout="folders", root="root")
    rows = read_manifest(str(tree / "out")).to_pylist()
    assert [(row["image_id"], row["split"], row["class_pixels"]) for row in rows] == [
        ("test/a", "test", None),
        ("test/b", "test", None),
        ("train/a", "train", counts(train)),
        ("val/a", "val", counts(val)),
    ]
    (root / "val/labels/a.png").rename(root / "val/labels/z.png")
    (root / "val/images/a.jpg").rename(root / "val/images/z.jpg")
    assert {pair.image_id for pair in datasets.LAYOUTS["folders"].pairs(str(root))} == {
        "test/a", "test/b", "train/a", "val/z"
    }  # a is in two splits still  # fmt: skip
    (root / "test/images/a.jpg").unlink()
    assert [pair.image_id for pair in datasets.LAYOUTS["folders"].pairs(str(root))] == ["b", "a", "z"]
    (root / "classes.json").unlink()
    arguments = {"images": None, "labels": None, "classes": None, "layout": "folders", "out": "other"}
    with pytest.raises(DatasetError, match="without a class list; give one by --classes"):
        run(tree, **arguments, root="root")


def test_cityscapes_layout(tree: Path) -> None:
    root = tree / "root"
    labels = {}
    for split, city in (("train", "ulm"), ("train", "bonn"), ("val", "lindau"), ("test", "berlin")):
        image_id = f"{city}/{city}_000000_000019"
        put_image(root / "leftImg8bit" / split / f"{image_id}_leftImg8bit.png")
        if split != "test":
            labels[image_id] = put_label(
                root / "gtFine" / split / f"{image_id}_gtFine_labelIds.png", len(city), (*range(34),)
            )
            put_label(root / "gtFine" / split / f"{image_id}_gtFine_instanceIds.png")
    run(tree, images=None, labels=None, classes=None, layout="cityscapes", root="root")
    rows = {row["image_id"]: row for row in read_manifest(str(tree / "out")).to_pylist()}
    assert [row["split"] for row in rows.values()] == ["test", "train", "train", "val"]
    assert rows["berlin/berlin_000000_000019"]["class_pixels"] is None
    raw_of_train = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]
    for image_id, label in labels.items():
        assert rows[image_id]["class_pixels"] == [int((label == raw).sum()) for raw in raw_of_train]
    assert read_classes(str(tree / "out")).names[13] == "car"


# -- refusals


def put_bomb(tree: Path) -> None:
    put(tree / "images/a.png", raw_png(8, (20_000, 20_000), b""))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-40])


def put_rgb_label(tree: Path) -> None:
    put_image(tree / "labels/a.png")


def put_unknown_ids(tree: Path) -> None:
    label = np.zeros(SIZE, np.uint8)
    label[0, :5], label[1, :2] = 7, 200
    put(tree / "labels/a.png", png(label))


def put_splits(content: object) -> Callable[[Path], None]:
    return lambda tree: put(tree / "splits.json", json.dumps(content).encode())


ALL = ["a", "b/c", "b/d e"]
BROKEN = {
    "truncated image": (lambda tree: cut(tree / "images/a.png"), "images/a.png: cannot be decoded: "),
    "truncated jpeg": (lambda tree: cut(tree / "images/b/c.jpg"), "images/b/c.jpg: cannot be decoded: "),
    "no image": (lambda tree: put(tree / "images/a.png", b"text"), "images/a.png: not an image in a known format (4 b"),
    "empty file": (lambda tree: put(tree / "images/a.png", b""), "images/a.png: not an image in a known format (0 b"),
    "16-bit image": (lambda tree: put(tree / "images/a.png", png(np.ones(SIZE, np.uint16))), "--depth-range LOW HIGH"),
    "bomb": (put_bomb, "images/a.png: cannot be decoded: Image size (400000000 pixels) exceeds limit"),
    "truncated label": (lambda tree: cut(tree / "labels/a.png"), "labels/a.png: cannot be decoded: "),
    "label size": (
        lambda tree: put(tree / "labels/a.png", png(np.zeros((5, 6), np.uint8))),
        "labels/a.png: label is 6 x 5 pixels (width x height), its image 16 x 12",
    ),
    "label channels": (put_rgb_label, "labels/a.png: label has 3 channels (mode RGB), not one channel of ids"),
    "label ids": (put_unknown_ids, "labels/a.png: label ids outside the class list: 7 (5 pixels), 200 (2 pixels)"),
    "no label": (lambda tree: (tree / "labels/a.png").unlink(), "images/a.png: image without label"),
    "no image of label": (lambda tree: (tree / "images/a.png").unlink(), "labels/a.png: label without image"),
    "duplicate id": (lambda tree: put_image(tree / "images/a.jpg"), "images/a.jpg and "),
    "unknown id in splits": (put_splits({"train": [*ALL, "b/x"]}), "splits.json: there is no image 'b/x'"),
    "in no split": (put_splits({"train": ["a"], "val": ["b/c"]}), "images/b/d e.webp: in no split of "),
}  # fmt: skip


@pytest.mark.parametrize("case", BROKEN)
def test_refuses_an_image(tree: Path, case: str) -> None:
    spoil, reason = BROKEN[case]
    spoil(tree)
    message = refusal(tree, splits="splits.json" if "split" in case else None)
    assert f"{tree}/" in message and reason in message
    assert "no dataset was written" in message


def test_shows_20_problems_of_all_kinds(tree: Path) -> None:
    (tree / "labels/a.png").unlink()
    cut(tree / "images/b/c.jpg")
    for i in range(30):
        put_label(tree / "labels" / f"lone/{i}.png")
    message = refusal(tree)
    assert "problems: 32\n" in message and message.endswith("\n  and 12 more")
    assert message.count("\n") == 22


def test_skip(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    cut(tree / "images/b/c.jpg")
    put_label(tree / "labels/lone.png")
    put_image(tree / "images/twice.png")
    put_image(tree / "images/twice.jpg")
    put_label(tree / "labels/twice.png")
    skipped = run(tree, on_error="skip")
    assert sorted(problem.image_id for problem in skipped) == ["b/c", "lone", "twice", "twice"]
    assert read_manifest(str(tree / "out"))["image_id"].to_pylist() == ["a", "b/d e"]
    assert json.loads((tree / "out/skipped.json").read_text()) == [problem._asdict() for problem in skipped]
    printed = capsys.readouterr().out
    assert "problems: 4" in printed and all(problem.text in printed for problem in skipped)

    (tree / "images/b/c.jpg").unlink()
    for name in ("labels/lone.png", "labels/b/c.png", "labels/twice.png", "images/twice.png", "images/twice.jpg"):
        (tree / name).unlink()
    assert run(tree, on_error="skip", overwrite=True) == []
    assert not (tree / "out/skipped.json").exists()


def test_images_in_folders_by_the_names_of_splits_are_warned_of(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for kind in ("images", "labels"):
        (tree / kind / "b").rename(tree / kind / "validation")
        (file,) = (tree / kind).glob("a.png")
        put(tree / kind / "train" / "a.png", file.read_bytes())
        file.unlink()
    assert run(tree) == []
    assert (
        "warning: images lie in the folders train, validation, and are all of split 'train'" in capsys.readouterr().err
    )
    assert run(tree, split="val", overwrite=True) == [] and "lie in the folders" not in capsys.readouterr().err
    with pytest.raises(DatasetError, match=r"--strict refuses what is warned of\n.*lie in the folders"):
        run(tree, strict=True, overwrite=True)
    pairs = [datasets.Pair(name, f"{name}.png", None, "train") for name in ("train", "val")]
    assert split_folders(pairs) == [], "these are files"


@pytest.mark.parametrize("on_error", ["refuse", "skip"])
def test_what_cannot_be_reached_is_not_left_out(tree: Path, on_error: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A mount or a store that is away for a minute is no fault of its images."""
    with pytest.raises(UnreachableError, match=r"gone/a\.png: could not be reached"):
        check_image(f"{tree}/gone/a.png", None, classes=CLASSES, lookup=CLASSES.lookup(), depth_range=None)
    check_all = prepare_module.check_pairs

    def away(pairs: Any, *rest: Any, **out: str) -> Any:
        (tree / "images/b").rename(tree / "away")
        return check_all(pairs, *rest, **out)

    monkeypatch.setattr(prepare_module, "check_pairs", away)
    with pytest.raises(UnreachableError, match="could not be reached"):
        run(tree, on_error=on_error)
    assert not (tree / "out/manifest.parquet").exists()


def test_skip_refuses_to_skip_everything(tree: Path) -> None:
    for path in (tree / "labels").rglob("*.png"):
        put(path, b"")
    assert "no image can be used" in refusal(tree, on_error="skip")


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"images": "nowhere"}, "nowhere: no such folder"),
        ({"images": "classes.json"}, "classes.json: a file, where a folder is to be named"),
        ({"labels": "nowhere"}, "nowhere: no such folder"),
        ({"images": "empty"}, "empty: no file in this folder or below ends in .png or .jpg"),
        ({"labels": "empty"}, "empty: no file in this folder or below ends in .png"),
        ({"classes": None}, "without a class list; give one by --classes"),
        ({"classes": "nowhere.json"}, "nowhere.json: no such file, nor is it cityscapes or cityscapes_train_ids"),
        ({"classes": "bad.json"}, "bad.json: not a class list"),
        ({"splits": "nowhere.json"}, "nowhere.json: no such file"),
        ({"splits": "bad.json"}, "bad.json: not a list of splits"),
        ({"splits": "text.txt"}, "text.txt: not JSON"),
        ({"splits": "twice.json"}, "'a' is in split 'train' and in 'val'"),
        ({"splits": "bad.json", "split": "val"}, "give either --splits or --split"),
        ({"root": "images"}, "--root belongs to --layout"),
        ({"images": None}, "give either --images, or --layout and --root"),
        ({"layout": "folders"}, "give either --images, or --layout and --root"),
        ({"images": None, "layout": "kitti"}, "no layout 'kitti'; there are folders, cityscapes"),
        ({"images": None, "layout": "folders"}, "--layout needs --root"),
        ({"images": None, "layout": "folders", "root": "images"}, "--labels, --splits and --split belong to --images"),
        (
            {"images": None, "labels": None, "layout": "folders", "root": "images"},
            "images: no folder <split>/images in this folder",
        ),
        (
            {"images": None, "labels": None, "layout": "cityscapes", "root": "images"},
            "images/leftImg8bit: no such folder",
        ),
    ],
)
def test_refuses_arguments(tree: Path, changes: dict[str, object], reason: str) -> None:
    (tree / "empty").mkdir()
    (tree / "bad.json").write_text('{"train": "a"}')
    (tree / "text.txt").write_text("a b")
    (tree / "twice.json").write_text('{"train": ["a"], "val": ["a"]}')
    assert reason in refusal(tree, **changes)


def test_refuses_an_unknown_scheme(tree: Path) -> None:
    with pytest.raises(DatasetError, match=r"gopher://host/: .*[Uu]nrecognized"):
        prepare(images="gopher://host/images", classes=str(tree / "classes.json"), out=str(tree / "out"))


def test_refuses_to_overwrite(tree: Path) -> None:
    run(tree)
    before = (tree / "out/manifest.parquet").read_bytes()
    with pytest.raises(DatasetError, match="there is a dataset in this directory already; replace it by --overwrite"):
        run(tree, labels=None)
    assert (tree / "out/manifest.parquet").read_bytes() == before
    run(tree, labels=None, overwrite=True)
    assert read_manifest(str(tree / "out"))["label_uri"].null_count == 3


# -- the command line


def test_main(tree: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["--images", f"{tree}/images", "--classes", f"{tree}/classes.json", "--out", f"{tree}/out"]
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "images checked: 3 of 3" in printed and "road" in printed
    assert main([*arguments, "--labels", f"{tree}/labels", "--overwrite"]) == 0
    assert main(arguments) == 2
    assert capsys.readouterr().err.startswith(f"error: {tree}/out: there is a dataset")
    assert main(["--imagse", "x"]) == 2
    assert "--imagse" in capsys.readouterr().err


@pytest.mark.full
def test_main_starts_ray(tree: Path) -> None:
    arguments = ["--images", f"{tree}/images", "--classes", f"{tree}/classes.json", "--out", f"{tree}/out"]
    command = [sys.executable, "-m", "pipelines.prepare", *arguments]
    cwd = Path(__file__).parents[2]
    done = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    assert read_manifest(str(tree / "out")).num_rows == 3
