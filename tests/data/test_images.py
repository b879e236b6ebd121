"""Images and labels are read as they are shown: turned as their EXIF orientation says, by every reader."""

from __future__ import annotations

import io
import struct
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, make_checkpoint

from udaseg.config import PseudoLabel
from udaseg.data.images import decode_image, decode_label, inspect, read_image
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.manifest import MANIFEST, write_dataset
from udaseg.data.plan import Plan, StreamPlan
from udaseg.errors import DatasetError
from udaseg.job_config import Inference
from udaseg.jobs.ledger import open_ledger
from udaseg.jobs.pseudo_label.actors import PredictActor
from udaseg.jobs.pseudo_label.tasks import Work, apply_thresholds, label_chunk

# How the pixels of an image as shown lie in a file of an orientation: where row and column 0 are shown.
STORED = {
    1: lambda shown: shown,
    2: lambda shown: shown[:, ::-1],  # row 0 is the top, column 0 the right side
    3: lambda shown: shown[::-1, ::-1],  # the bottom, the right
    4: lambda shown: shown[::-1],  # the bottom, the left
    5: lambda shown: shown.swapaxes(0, 1),  # the left, the top
    6: lambda shown: shown[:, ::-1].swapaxes(0, 1),  # the right, the top
    7: lambda shown: shown[::-1, ::-1].swapaxes(0, 1),  # the right, the bottom
    8: lambda shown: shown[::-1].swapaxes(0, 1),  # the left, the bottom
}
SIZE = (24, 40)


def encoded(shown: np.ndarray, orientation: int, form: str = "PNG") -> bytes:
    """A file of an orientation that shows an image."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    stream = io.BytesIO()
    pixels = np.ascontiguousarray(STORED.get(orientation, STORED[1])(shown))
    Image.fromarray(pixels).save(
        stream, form, exif=exif, **({"quality": 100, "subsampling": 0} if form == "JPEG" else {})
    )
    return stream.getvalue()


def picture(seed: int = 0) -> np.ndarray:
    """Four flat quarters of a size, so that JPEG keeps them and no two turns look alike."""
    quarters = np.random.default_rng(seed).integers(0, 256, (2, 2, 3))
    return np.kron(quarters, np.ones((SIZE[0] // 2, SIZE[1] // 2, 1))).astype(np.uint8)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("form", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_an_image_is_read_as_it_is_shown(form: str, orientation: int) -> None:
    shown = picture()
    found = decode_image(encoded(shown, orientation, form))
    assert found.shape == shown.shape
    error = np.abs(found.astype(int) - shown)
    error = error.reshape(2, SIZE[0] // 2, 2, SIZE[1] // 2, 3)[:, 2:-2, :, 2:-2]  # WebP blurs the edges
    assert error.max() <= (12 if form == "WEBP" else 3)


@pytest.mark.parametrize("orientation", STORED)
def test_a_label_is_read_as_it_is_shown(orientation: int) -> None:
    for label in (picture()[..., 0], picture()[..., 0].astype(np.uint16) * 200):
        assert np.array_equal(decode_label(encoded(label, orientation)), label)


def saved(pixels: np.ndarray | Image.Image, form: str, **how: object) -> bytes:
    stream = io.BytesIO()
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    image.save(stream, form, **how)  # type: ignore[arg-type]
    return stream.getvalue()


def tiff(bits: int, row: bytes, width: int, *, white_is_zero: bool = False) -> bytes:
    """A TIFF of a row of greys, which Pillow writes with 8 and more bits alone."""
    tags = {
        256: width,
        257: 1,
        258: bits,
        259: 1,
        262: 0 if white_is_zero else 1,
        273: 122,
        277: 1,
        278: 1,
        279: len(row),
    }
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, value) for tag, value in tags.items())
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + entries
    return head.ljust(122, b"\0") + row


def bmp(bits: int, row: bytes, width: int, greys: Sequence[int]) -> bytes:
    """A BMP of a row of places in a palette of greys."""
    palette = b"".join(bytes([grey] * 3 + [0]) for grey in greys)
    row = row.ljust(-(-len(row) // 4) * 4, b"\0")
    start = 54 + len(palette)
    head = struct.pack("<2sIHHI", b"BM", start + len(row), 0, 0, start)
    info = struct.pack("<IiiHHIIiiII", 40, width, 1, 1, bits, 0, len(row), 0, 0, len(greys), 0)
    return head + info + palette + row


IDS = np.random.default_rng(0).integers(0, 256, (9, 13)).astype(np.uint8)


@pytest.mark.parametrize("compression", ["raw", "packbits", "tiff_lzw", "tiff_adobe_deflate"])
@pytest.mark.parametrize("of", [np.uint8, np.uint16, np.int32])
def test_ids_in_tiff(of: type, compression: str) -> None:
    label = IDS.astype(of) * (1 if of is np.uint8 else 257)
    assert np.array_equal(decode_label(saved(label, "TIFF", compression=compression)), label)


def test_ids_in_tiff_of_other_modes() -> None:
    painted = Image.fromarray(IDS)
    painted.putpalette(np.random.default_rng(1).integers(0, 256, 768).tolist())
    for form in ("TIFF", "BMP", "PNG"):
        assert np.array_equal(decode_label(saved(painted, form)), IDS)
        assert np.array_equal(decode_label(saved(IDS % 2 == 1, form)), IDS % 2)
    assert np.array_equal(decode_label(saved(IDS, "BMP")), IDS)
    other_end = Image.frombytes("I;16B", IDS.shape[::-1], (IDS * np.uint16(200)).astype(">u2").tobytes())
    assert np.array_equal(decode_label(saved(other_end, "TIFF")), IDS * np.uint16(200))
    assert np.array_equal(decode_label(tiff(4, b"\x01\x2f", 4)), [[0, 1, 2, 15]])
    assert np.array_equal(decode_label(tiff(2, b"\x1b", 4)), [[0, 1, 2, 3]])
    for orientation in STORED:
        assert np.array_equal(decode_label(encoded(IDS, orientation, "TIFF")), IDS)
    assert np.array_equal(decode_label(bmp(4, b"\x01\x2f", 4, [9] * 16)), [[0, 1, 2, 15]])


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (saved(IDS.astype(np.float32), "TIFF"), r"label has numbers with fractions \(mode F\), not ids"),
        (saved(IDS.astype(np.int32) + 65500, "TIFF"), r"label holds values of 65500 to 657\d\d; ids of 0 to 65535"),
        (saved(IDS.astype(np.int32) - 1, "TIFF"), "label holds values of -1 to "),
        (tiff(8, b"\0\1\2\3", 4, white_is_zero=True), "label is a TIFF whose 0 is white"),
        (tiff(16, b"\0\1\2\3", 2, white_is_zero=True), "label is a TIFF whose 0 is white"),
        (bmp(4, b"\x01\x2f", 4, range(16)), "label is a BMP of 4 bits"),
        (bmp(8, b"\0\1\0\1", 4, [0, 255]), "label is a BMP of 8 bits"),
    ],
)
def test_labels_that_would_be_read_wrong_are_refused(data: bytes, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        decode_label(data)


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_there_is_not_turns_nothing(orientation: int) -> None:
    assert np.array_equal(decode_image(encoded(picture(), orientation)), picture())


@pytest.mark.filterwarnings("ignore:Corrupt EXIF")
def test_broken_exif_turns_nothing() -> None:
    stream = io.BytesIO()
    Image.fromarray(picture()).save(stream, "PNG", exif=b"Exif\0\0MM\0*\0\0\0\x08\xff\xff\x01\x12")
    assert np.array_equal(decode_image(stream.getvalue()), picture())


@pytest.fixture(scope="module")
def turned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A dataset of one image in each orientation, with labels as the image is shown, and what is shown."""
    folder = tmp_path_factory.mktemp("turned")
    rows = []
    for orientation in STORED:
        name = f"{orientation}"
        label = picture(orientation)[..., 0] % 3
        for kind, content in (("images", encoded(picture(orientation), orientation)), ("labels", encoded(label, 1))):
            (folder / kind).mkdir(exist_ok=True)
            (folder / kind / f"{name}.png").write_bytes(content)
        uris = {kind: f"{kind}s/{name}.png" for kind in ("image", "label")}
        facts = inspect(*(str(folder / uri) for uri in uris.values()), CLASSES, CLASSES.lookup())
        assert (facts.height, facts.width) == SIZE  # as the manifest has it, whatever lies in the file
        row = {"image_id": name, "height": facts.height, "width": facts.width, "class_pixels": facts.class_pixels}
        rows.append(row | {f"{kind}_uri": uri for kind, uri in uris.items()} | {"dataset": "d", "split": "train"})
    write_dataset(str(folder), pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES)
    return folder


def test_what_training_and_evaluation_read_is_as_shown(turned: Path) -> None:
    index = open_index(str(turned))
    plan = Plan(
        seed=0, batch_size=1, steps=16, crop=SIZE, short_side=SIZE[0], scale=(1, 1),
        streams={"source": StreamPlan(directory=str(turned), labelled=True)},
    )  # fmt: skip
    for row, orientation in enumerate(STORED):
        assert np.array_equal(index.image(row), picture(orientation))
        assert np.array_equal(index.train_ids(row), picture(orientation)[..., 0] % 3)
    for step in range(16):  # a crop is the whole image, which the label's quarters must fall together with
        sample = plan.load(step)
        assert np.array_equal(sample["source_image"][..., 0] % 3, sample["source_label"])


def test_pseudo_labels_are_as_the_image_is_shown(turned: Path, tmp_path: Path) -> None:
    """To the byte those of the same pictures stored upright, and so are their sizes in the manifest."""
    upright = tmp_path / "upright"
    upright.mkdir()
    for orientation in STORED:
        (upright / f"{orientation}.png").write_bytes(encoded(picture(orientation), 1))
    found = {}
    for name, images in (("turned", turned / "images"), ("upright", upright)):
        out = tmp_path / name / "out"
        ledger = open_ledger(
            str(tmp_path / name / "job"), lambda images=images: list_images(str(images)), block_size=8, job={}
        )
        job = Work(
            checkpoints=(make_checkpoint(tmp_path / "model", 0),), out=str(out), ledger=ledger, classes=CLASSES,
            rules=PseudoLabel(rule="fixed", threshold=0.4), inference=Inference(gpu=False),
        )  # fmt: skip
        PredictActor(job, 1)({"block": np.array([0])})
        apply_thresholds(job, np.full(3, 0.4, np.float32))({"block": np.array([0])})
        rows = label_chunk(ledger, [0], False)[0]
        assert list(zip(rows["height"].to_pylist(), rows["width"].to_pylist(), strict=True)) == [SIZE] * 8
        found[name] = {path.relative_to(out): path.read_bytes() for path in out.rglob("*.png")}
        for row in rows.to_pylist():
            assert Image.open(out / row["label_uri"]).size == SIZE[::-1] == read_image(row["image_uri"]).shape[1::-1]
    assert found["turned"] == found["upright"] and len(found["turned"]) == 24
