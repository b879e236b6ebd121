"""What strangers may send: images that swell, ids that lead elsewhere, links in a circle, checkpoints with code."""

from __future__ import annotations

import json
import os
import pickle
import struct
import subprocess
import sys
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from tiny import draw, make_checkpoint, make_dataset

from pipelines.pseudo_label import main
from udaseg.checkpoints.directory import load_model, read_card
from udaseg.checkpoints.tensor_files import read_torch
from udaseg.config import PseudoLabel
from udaseg.data import images as decoding
from udaseg.data.classes import read_classes
from udaseg.data.folders import files
from udaseg.data.images import read_image
from udaseg.data.listing import list_images
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.errors import CheckpointError, DatasetError
from udaseg.job_config import Inference
from udaseg.jobs.ledger import open_ledger
from udaseg.jobs.pseudo_label.actors import PredictActor
from udaseg.jobs.pseudo_label.tasks import Work

ROOT = Path(__file__).parents[1]


def png(width: int, height: int) -> bytes:
    """A small file that claims, and can be unpacked to, any number of black pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    pack = zlib.compressobj(9)
    rows = b"".join(pack.compress(bytes(1 + (width + 7) // 8)) for _ in range(height)) + pack.flush()
    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


# --- images ---------------------------------------------------------------------------------------------------------


def test_a_decompression_bomb_is_not_decoded(tmp_path: Path) -> None:
    bomb = tmp_path / "bomb.png"
    bomb.write_bytes(png(12_000, 12_000))
    assert bomb.stat().st_size < 100_000
    with pytest.raises(DatasetError, match=r"bomb.png: 12000 x 12000 pixels; more than 67,108,864 are not decoded"):
        read_image(str(bomb))
    (tmp_path / "fine.png").write_bytes(png(300, 200))
    assert read_image(str(tmp_path / "fine.png")).shape == (200, 300, 3)


def test_a_huge_file_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(decoding, "MAX_BYTES", 1000)
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (50, 50, 3), np.uint8)).save(tmp_path / "a.png")
    with pytest.raises(DatasetError, match=r"a.png: .* bytes; files of more than 1,000 are not read"):
        read_image(str(tmp_path / "a.png"))


CRASHING_DECODER = """
import ctypes, io
import PIL.Image

decode = PIL.Image.open

def open_or_crash(file, *args, **kwargs):
    if isinstance(file, io.BytesIO) and file.getvalue().startswith(b"crash"):
        ctypes.string_at(0)  # in this thread; a signal that another one takes would leave it time to go on
    return decode(file, *args, **kwargs)

PIL.Image.open = open_or_crash
"""


@pytest.mark.full
def test_an_image_that_crashes_its_decoder_is_listed_as_failed(tmp_path: Path) -> None:
    """Every process of the job has a decoder that ends with a segmentation fault on some files."""
    (tmp_path / "patch").mkdir()
    (tmp_path / "patch" / "sitecustomize.py").write_text(CRASHING_DECODER)
    images, out = tmp_path / "images", tmp_path / "out"
    images.mkdir()
    for n in range(12):
        Image.fromarray(draw("target", n)[0]).save(images / f"{n:03d}.png")
    for name in ("004", "005", "010"):
        (images / f"{name}.png").write_bytes(b"crash")
    words = ["--checkpoint", make_checkpoint(tmp_path / "model", 0), "--images", str(images), "--out", str(out)]
    job = subprocess.run(
        [sys.executable, "-m", "pipelines.pseudo_label", *words, "--block-size", "3", "--inference.no-gpu"],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "patch")},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert job.returncode == 0, job.stderr[-3000:]
    failed = {row["image_id"]: row["reason"] for row in json.loads((out / "failed.json").read_text())}
    assert set(failed) == {"004", "005", "010"}
    assert all("crashes the process that decodes it" in reason for reason in failed.values())
    assert len(read_manifest(str(out))) == len(list((out / "labels").iterdir())) == 9


def test_an_image_that_swells_when_it_is_scaled_is_listed_as_failed(tmp_path: Path) -> None:
    """1 x 1,000,000 pixels are few, but as high as the network wants them they would be 40 million columns."""
    images = tmp_path / "images"
    images.mkdir()
    Image.new("RGB", (1_000_000, 1)).save(images / "line.png")
    Image.new("RGB", (56, 40)).save(images / "fine.png")
    (images / "bomb.png").write_bytes(png(12_000, 12_000))
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    ledger = open_ledger(str(tmp_path / "job"), lambda: list_images(str(images)), block_size=8, job={})
    classes = read_card(checkpoint).classes
    work = Work(
        checkpoints=(checkpoint,),
        out=str(tmp_path / "out"),
        ledger=ledger,
        classes=classes,
        rules=PseudoLabel(),
        inference=Inference(gpu=False),
    )
    counts = PredictActor(work, 1)({"block": np.array([0])})
    assert counts["images"].tolist() == [1] and counts["failed"].tolist() == [2]
    entry = ledger.entry("predict", 0)
    assert entry["image_id"] == ["fine"] and entry["failed_id"] == ["bomb", "line"]
    assert "more than" in entry["failed_reason"][0] and "too long and narrow" in entry["failed_reason"][1]


# --- paths ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("image_id", "reason"),
    [
        ("../../escaped", "lead out"),
        ("/etc/escaped", "lead out"),
        ("a/./b", "lead out"),
        ("a//b", "lead out"),
        ("", "lead out"),
        ("line\nbreak", "cannot be a file's name"),
        ("nul\0", "cannot be a file's name"),
        ("x" * 300, "cannot be a file's name"),
        ("000.png/001", "another image's file"),
    ],
)
def test_an_id_that_leaves_the_output_folder_is_refused(image_id: str, reason: str, tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, "target", train=2, val=0)
    rows = read_manifest(dataset).to_pylist()
    rows[0]["image_id"] = image_id
    write_dataset(dataset, pa.Table.from_pylist(rows, schema=MANIFEST), read_classes(dataset))
    with pytest.raises(DatasetError, match=reason):
        list(list_images(dataset))


def test_a_split_that_leaves_the_output_folder_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, "target", train=2, val=0)
    rows = [row | {"split": "../../x"} for row in read_manifest(dataset).to_pylist()]
    write_dataset(dataset, pa.Table.from_pylist(rows, schema=MANIFEST), read_classes(dataset))
    with pytest.raises(DatasetError, match=r"split '../../x' would lead out"):
        list(list_images(dataset))


def test_an_id_that_is_there_twice_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path, "target", train=3, val=0)
    rows = read_manifest(dataset).to_pylist()
    rows[2]["image_id"] = rows[0]["image_id"]
    write_dataset(dataset, pa.Table.from_pylist(rows, schema=MANIFEST), read_classes(dataset))
    with pytest.raises(DatasetError, match="two images are called '000'"):
        list(list_images(dataset))


def test_links_in_a_circle_are_refused_and_others_followed(tmp_path: Path) -> None:
    images, elsewhere = tmp_path / "images", tmp_path / "elsewhere"
    for folder in (images / "a" / "b", elsewhere):
        folder.mkdir(parents=True)
        Image.new("RGB", (4, 4)).save(folder / "x.png")
    (images / "linked").symlink_to(elsewhere)
    assert [name for name, _ in files(str(images), [".png"])] == ["a/b/x", "linked/x"]
    (images / "a" / "b" / "back").symlink_to(images / "a")
    with pytest.raises(DatasetError, match=r"back: a symbolic link that leads back to .*images/a"):
        files(str(images), [".png"])
    (images / "a" / "b" / "back").unlink()
    (elsewhere / "up").symlink_to(images)
    with pytest.raises(DatasetError, match="symbolic link"):
        files(f"file://{images}", [".png"])
    (elsewhere / "up").unlink()
    (images / "self").symlink_to(images / "self")  # leads nowhere at all
    assert [name for name, _ in files(str(images), [".png"])] == ["a/b/x", "linked/x", "self"], "for reading to refuse"


def test_an_archive_is_not_unpacked(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    archive = tmp_path / "fleet.zip"
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr("../../escaped.png", png(4, 4))
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    assert main(["--checkpoint", checkpoint, "--images", str(archive), "--out", str(tmp_path / "out")]) == 2
    assert "an archive; unpack it" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


# --- checkpoints ----------------------------------------------------------------------------------------------------


class Code:
    """Runs a command when it is unpickled."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


@pytest.mark.parametrize("part", ["predictor", "teacher"])
def test_code_in_a_checkpoint_is_not_run(part: str, tmp_path: Path) -> None:
    checkpoint = Path(make_checkpoint(tmp_path / "model", 0))
    code = Code(f"touch {tmp_path / 'ran'}")
    if part == "predictor":
        (checkpoint / "model.safetensors").write_bytes(pickle.dumps(code))
    else:
        torch.save({"method": code}, checkpoint / "state.pt")
    with pytest.raises(CheckpointError, match=r"cannot be read|not a checkpoint of tensors"):
        load_model(str(checkpoint), part)  # type: ignore[arg-type]
    assert not (tmp_path / "ran").exists()
    if part == "teacher":  # the same file does run it where it is trusted
        torch.load(checkpoint / "state.pt", weights_only=False)
        assert (tmp_path / "ran").exists()


def test_a_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    """A few kilobytes would unpack to any size."""
    checkpoint = Path(make_checkpoint(tmp_path / "model", 0))
    torch.save({"method": {"teacher.network.x": torch.zeros(1 << 20)}}, tmp_path / "plain.pt")
    with (
        zipfile.ZipFile(tmp_path / "plain.pt") as plain,
        zipfile.ZipFile(checkpoint / "state.pt", "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for entry in plain.infolist():
            bomb.writestr(entry.filename, plain.read(entry))
    assert (checkpoint / "state.pt").stat().st_size < 20_000
    with pytest.raises(CheckpointError, match="compressed"):
        load_model(str(checkpoint), "teacher")


@pytest.mark.parametrize(
    ("field", "value", "reason"),
    [
        ("model.backbone", "hf-hub:stranger/network", "from elsewhere"),
        ("model.backbone", "local-dir:/tmp/x", "from elsewhere"),
        ("model.head_channels", "16", "not a model card"),
        ("short_side", 10**9, "short_side is 1000000000"),
        ("short_side", "40", "not a model card"),
        ("step", None, "not a model card"),
        ("surprise", 1, "not a model card"),
    ],
)
def test_a_card_with_other_values_than_a_run_writes_is_refused(
    field: str, value: object, reason: str, tmp_path: Path
) -> None:
    checkpoint = Path(make_checkpoint(tmp_path / "model", 0))
    card = json.loads((checkpoint / "model.json").read_text())
    *section, name = field.split(".")
    (card[section[0]] if section else card)[name] = value
    (checkpoint / "model.json").write_text(json.dumps(card))
    with pytest.raises(CheckpointError, match=reason):
        read_card(str(checkpoint))


def test_a_file_of_weights_with_one_compressed_entry_is_refused(tmp_path: Path) -> None:
    torch.save({"a": torch.zeros(4)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as whole, zipfile.ZipFile(tmp_path / "b.pt", "w") as copy:
        for entry in whole.infolist():
            bomb = entry.filename.endswith("data/0")
            copy.writestr(entry.filename, whole.read(entry), zipfile.ZIP_DEFLATED if bomb else zipfile.ZIP_STORED)
    with pytest.raises(CheckpointError, match="compressed"):
        read_torch(str(tmp_path / "b.pt"))
