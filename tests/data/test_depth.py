"""Images of one band and more than 8 bits: scaled as is said, wherever they are read, and refused otherwise."""

from __future__ import annotations

import dataclasses
import io
import json
import struct
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, make_checkpoint, make_dataset

from udaseg.checkpoints.directory import copy_model, read_card
from udaseg.checkpoints.exporting import metadata
from udaseg.checkpoints.predictor import _pixels, load
from udaseg.data.depth import other_range, scaled
from udaseg.data.images import decode_colours, decode_image, inspect, read_image
from udaseg.data.index import open_index
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.errors import CheckpointError, DatasetError
from udaseg.jobs.adapt.inputs import hold_out
from udaseg.jobs.checking import check_image
from udaseg.jobs.predict import predict_to
from udaseg.jobs.pseudo_label.job import _depth_range
from udaseg.types import DepthRange

RANGE: DepthRange = (1000, 3000)


def raw(number: int = 0) -> np.ndarray:
    """(40, 56) uint16, whose first row has what matters."""
    values = np.random.default_rng(number).integers(0, 5000, (40, 56)).astype(np.uint16)
    values[0, :8] = [0, 999, 1000, 1004, 2000, 2999, 3000, 65535]
    return values


def encoded(values: np.ndarray, form: str = "PNG", **how: object) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values).save(buffer, form, **how)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def thermal(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of two images of 16 bits, and a model that was trained on such."""
    folder = tmp_path_factory.mktemp("thermal")
    (folder / "images").mkdir()
    rows = []
    for number in (0, 1):
        uri = f"images/{number}.png"
        (folder / uri).write_bytes(encoded(raw(number)))
        facts = inspect(str(folder / uri), None, CLASSES, CLASSES.lookup(), RANGE)
        sizes = {"height": facts.height, "width": facts.width, "class_pixels": None, "label_uri": None}
        rows.append({"image_id": str(number), "image_uri": uri, "dataset": "d", "split": "train", **sizes})
    write_dataset(str(folder), pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES, depth_range=RANGE)
    copy_model(make_checkpoint(folder / "plain", 0), str(folder / "model"), depth_range=RANGE)
    return folder


@pytest.mark.parametrize("kind", ["16 bits", "16 bits, TIFF", "32 bits", "floats"])
def test_values_are_scaled_between_the_ends(kind: str) -> None:
    values = raw()
    content = {
        "16 bits": lambda: encoded(values),
        "16 bits, TIFF": lambda: encoded(values, "TIFF"),
        "32 bits": lambda: encoded(values.astype(np.int32), "TIFF"),
        "floats": lambda: encoded(values.astype(np.float32), "TIFF"),
    }[kind]()
    found = decode_image(content, RANGE)
    assert found.dtype == np.uint8 and found.shape == (40, 56, 3)
    assert (found == found[..., :1]).all()
    assert found[0, :8, 0].tolist() == [0, 0, 0, 1, 128, 255, 255, 255]
    with pytest.raises(DatasetError, match=r"pixels of mode (I;16|I|F), 0 to 65535; say .* --depth-range LOW HIGH"):
        decode_image(content)


def test_floats_may_hold_what_is_no_number() -> None:
    values = np.array([[np.nan, np.inf, -np.inf, 0.25]], np.float32)
    assert scaled(values, (0.0, 1.0)).tolist() == [[0, 255, 0, 64]]
    with pytest.raises(DatasetError, match="none of them a finite number"):
        decode_image(encoded(np.full((2, 2), np.nan, np.float32), "TIFF"))


def test_sixteen_bits_beside_alpha_are_refused_rather_than_halved() -> None:
    def chunk(kind: bytes, content: bytes) -> bytes:
        body = kind + content
        return struct.pack(">I", len(content)) + body + struct.pack(">I", zlib.crc32(body))

    header, pixels = (
        struct.pack(">IIBBBBB", 1, 1, 16, 4, 0, 0, 0),
        zlib.compress(b"\0" + struct.pack(">HH", 1000, 65535)),
    )
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    for depth_range in (None, RANGE):
        with pytest.raises(DatasetError, match=r"16 bits beside an alpha channel.*leave alpha out"):
            decode_image(png, depth_range)
        with pytest.raises(DatasetError, match=r"16 bits beside an alpha channel.*leave alpha out"):
            _pixels(Image.open(io.BytesIO(png)), depth_range)


def test_eight_bits_stay_as_they_are_and_labels_are_no_depths() -> None:
    colours = np.random.default_rng(0).integers(0, 255, (4, 5, 3), np.uint8)
    for pixels in (colours, colours[..., 0]):
        assert (decode_image(encoded(pixels), RANGE) == decode_image(encoded(pixels))).all()
    with pytest.raises(DatasetError, match="convert the image to 8-bit RGB"):
        decode_colours(encoded(raw()))
    red, green, blue = np.moveaxis(colours.astype(int), -1, 0)
    assert (decode_colours(encoded(colours)) == red * 65536 + green * 256 + blue).all()


def test_orientation_is_honoured_too() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    found = decode_image(encoded(raw(), exif=exif), RANGE)
    assert (found == np.rot90(decode_image(encoded(raw()), RANGE), -1)).all()


def test_a_dataset_reads_its_images_with_the_range_that_prepare_was_told(thermal: Path) -> None:
    index = open_index(str(thermal))
    assert index.depth_range == RANGE
    for row in (0, 1):
        assert (index.image(row)[..., 0] == scaled(raw(row), RANGE)).all()
    check = partial(check_image, str(thermal / "images/0.png"), None, classes=CLASSES, lookup=CLASSES.lookup())
    assert "problem" not in check(depth_range=RANGE)
    assert "--depth-range" in check(depth_range=None)["problem"]


def test_what_is_held_out_keeps_the_range(thermal: Path, tmp_path: Path) -> None:
    manifest = hold_out(read_manifest(str(thermal)), str(thermal))
    write_dataset(str(tmp_path), manifest, CLASSES, depth_range=open_index(str(thermal)).depth_range)
    assert (open_index(str(tmp_path)).image(1) == open_index(str(thermal)).image(1)).all()
    assert open_index(make_dataset(tmp_path / "plain", "source", train=1, val=1)).depth_range is None


@pytest.mark.parametrize("wrong", ["[1, 2, 3]", '"a"', "[5, 5]", "[1, null]"])
def test_a_range_in_a_file_is_checked(thermal: Path, tmp_path: Path, wrong: str) -> None:
    from udaseg.data.depth import depth_range_of

    table = pa.table({"a": [1]}).replace_schema_metadata({"depth_range": wrong})
    with pytest.raises(DatasetError, match=r"index\.arrow: depth_range"):
        depth_range_of(table, "index.arrow")


def test_a_card_keeps_the_range_and_raw_files_are_read_with_it(thermal: Path, tmp_path: Path) -> None:
    card = read_card(str(thermal / "model"))
    assert card.depth_range == RANGE and read_card(str(thermal / "plain")).depth_range is None
    assert card == dataclasses.replace(read_card(str(thermal / "plain")), depth_range=RANGE)
    model, file = load(str(thermal / "model"), device="cpu"), thermal / "images" / "0.png"
    wanted = model.predict(read_image(str(file), RANGE))
    for image in (file, Image.open(file)):
        assert (model.predict(image).label == wanted.label).all()
    with pytest.raises(DatasetError, match="--depth-range"):
        load(str(thermal / "plain"), device="cpu").predict(file)
    copy_model(str(thermal / "plain"), str(tmp_path / "broken"), depth_range=[9, 1])
    with pytest.raises(CheckpointError, match=r"depth_range is 9 1; LOW must be below HIGH"):
        read_card(str(tmp_path / "broken"))


def test_a_dataset_has_its_own_range_and_another_than_the_models_is_warned_of(
    thermal: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy_model(str(thermal / "plain"), str(tmp_path / "other"), depth_range=(0, 65535))
    predict_to(str(tmp_path / "a"), str(thermal / "plain"), [str(thermal)])
    assert "warning" not in capsys.readouterr().err
    predict_to(str(tmp_path / "b"), str(tmp_path / "other"), [str(thermal)])
    assert "was prepared with --depth-range 1000 3000, " in capsys.readouterr().err
    labels = [np.asarray(Image.open(tmp_path / out / "labels" / "0.png")) for out in "ab"]
    assert (labels[0] == labels[1]).all()
    assert (
        other_range(RANGE, RANGE, "m", "d")
        == other_range(None, RANGE, "m", "d")
        == other_range(RANGE, None, "m", "d")
        == []
    )


def test_labelling_reads_with_the_datasets_range_or_with_the_models(thermal: Path, tmp_path: Path) -> None:
    model, plain, images = (str(thermal / name) for name in ("model", "plain", "images"))
    assert _depth_range([model], images) == _depth_range([plain], str(thermal)) == RANGE
    assert _depth_range([plain], images) is None
    with pytest.raises(CheckpointError, match=r"to be read by `udaseg prepare --depth-range LOW HIGH`"):
        _depth_range([model, plain], images)


def test_an_exported_model_says_how_images_become_bytes(thermal: Path) -> None:
    card = read_card(str(thermal / "model"))
    assert json.loads(metadata(card, None))["depth_range"] == list(RANGE)
