"""`udaseg inspect`: a page with what is in datasets, and a warning for everything that is wrong with these."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, make_dataset

from pipelines.inspect import main
from udaseg.data.duplicates import duplicates
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset


def inspected(capsys: pytest.CaptureFixture[str], out: Path, *directories: Path) -> tuple[str, list[str]]:
    """The page and the warnings."""
    assert main([*map(str, directories), "--out", str(out)]) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{out}/inspection.html\n"
    return (out / "inspection.html").read_text(), captured.err.splitlines()


def test_good_datasets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    make_dataset(tmp_path / "source", "source", train=3, val=2)
    make_dataset(tmp_path / "target", "target", train=13, val=2, labelled=False)
    page, warnings = inspected(capsys, tmp_path / "out", tmp_path / "source", tmp_path / "target")
    assert warnings == [] and 'class="warning"' not in page
    assert "5 images, 5 of them labelled" in page and "15 images, 0 of them labelled" in page
    assert "train 3, val 2." in page and page.count("<td>56 x 40</td>") == 2
    assert len(re.findall("<img ", page)) == 5 + 12
    pixels = [
        sum(column) for column in zip(*read_manifest(str(tmp_path / "source"))["class_pixels"].to_pylist(), strict=True)
    ]
    shares = re.findall(r"</span>(\w+)</td><td>([\d.]+)</td>", page)
    assert shares == [(n, f"{100 * p / sum(pixels):.2f}") for n, p in zip(CLASSES.names, pixels, strict=True)]


def test_every_doubt_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    make_dataset(source, "source", train=3, val=2)
    make_dataset(target, "target", train=2, val=2, labelled=False)
    rows = read_manifest(str(source)).to_pylist()
    for row in rows:
        row["class_pixels"] = [2200, 40, 0]
    for file in ("classes.json", "index.arrow", "class_rows.arrow", "manifest.parquet"):
        (source / file).unlink()
    write_dataset(str(source), pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES)
    names = ["ground", "sky", "tram"]
    value = json.loads((target / "classes.json").read_text()) | {"names": names}
    (target / "classes.json").write_text(json.dumps(value))
    (source / "images/001.png").write_bytes((source / "images/000.png").read_bytes())  # twice in train
    (target / "images/003.png").write_bytes((target / "images/000.png").read_bytes())  # of train, and judged by
    (source / "images/004.png").unlink()
    page, warnings = inspected(capsys, tmp_path / "out", source, target)
    wanted = (
        f"{target}: its classes are not those of {source}: lacks 'box'; adds 'tram'",
        f"1 images are in several splits or datasets, by their bytes: {target} train 000 = {target} val 003",
        f"1 images are more than once in a split, by their bytes: {source} train 000 = {source} train 001",
        f"{source}: 1 of 3 classes never occur, 0.00 % of the pixels of 5 labels: 'box'",
        f"{source}: class 'ground' is 98.21 % of the labelled pixels",
        f"{source}: {source}/images/004.png: cannot be read: no such file",
    )
    assert len(warnings) == page.count('class="warning"') == len(wanted)
    for warning, text in zip(warnings, wanted, strict=True):
        assert warning.startswith(f"warning: {text}")


def test_duplicates_are_of_bytes(tmp_path: Path) -> None:
    contents = [b"ab", b"cd", b"ab", b"abc", b"", b"", b"cd", b"ab"]
    for n, content in enumerate(contents):
        (tmp_path / f"{n}").write_bytes(content)
    uris = [f"{tmp_path}/{n}" for n in range(len(contents))]
    assert duplicates([*uris, f"{tmp_path}/gone", f"{tmp_path}/gone"]) == [[0, 2, 7], [1, 6]]


def test_names_are_text(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "<b>data"
    make_dataset(folder, "source", train=1, val=0)
    page, _ = inspected(capsys, tmp_path / "out", folder)
    assert "<b>" not in page and "&lt;b&gt;data" in page
    assert Image.open(folder / "images/000.png").size == (56, 40)
