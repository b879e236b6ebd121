"""Files of strangers, mutated at random from a seed: a result as before, or a DatasetError, and nothing else.

A mutation of an image's pixels cannot be told from another image; that of a manifest is, by its digest.
"""

from __future__ import annotations

import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, draw, make_dataset

from udaseg.data.classes import Classes
from udaseg.data.images import decode_image, decode_label
from udaseg.data.index import DatasetIndex
from udaseg.data.manifest import read_manifest
from udaseg.errors import DatasetError

pytestmark = pytest.mark.full


def mutations(content: bytes, count: int, seed: int) -> Iterator[bytes]:
    """Cut off, with bits turned, or with pieces taken out, doubled or made zero."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        data = bytearray(content)
        for _ in range(int(rng.integers(1, 4))):
            if not data:
                break
            at, length = int(rng.integers(len(data))), int(rng.integers(1, 32))
            kind = rng.integers(5)
            if kind == 0:
                del data[at:]
            elif kind == 1:
                data[at] ^= 1 << int(rng.integers(8))
            elif kind == 2:
                del data[at : at + length]
            elif kind == 3:
                data[at:at] = data[at : at + length]
            else:
                data[at : at + length] = bytes(len(data[at : at + length]))
        yield bytes(data)


def encoded(pixels: np.ndarray, form: str, **how: object) -> bytes:
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, form, **how)  # type: ignore[arg-type]
    return stream.getvalue()


IMAGE, LABEL = draw("source", 0)


@pytest.mark.parametrize("form", ["PNG", "JPEG", "WEBP", "BMP", "TIFF"])
def test_images(form: str) -> None:
    content = encoded(IMAGE, form)
    outcomes = {"refused": 0, "read": 0}
    for data in mutations(content, 600, seed=1):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's, of odd metadata
            try:
                pixels = decode_image(data)
            except DatasetError as error:
                assert "\n" not in str(error)
                outcomes["refused"] += 1
            else:
                assert pixels.dtype == np.uint8 and pixels.ndim == 3 and pixels.shape[2] == 3 and pixels.size
                outcomes["read"] += 1
    assert outcomes["refused"] > 50, outcomes


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_label_maps(depth: type) -> None:
    refused = 0
    for data in mutations(encoded(LABEL.astype(depth), "PNG"), 600, seed=2):
        try:
            label = decode_label(data)
        except DatasetError:
            refused += 1
        else:
            assert label.dtype == np.uint16 and label.ndim == 2
    assert refused > 50


def test_a_png_is_read_whole_or_not_at_all() -> None:
    content = encoded(IMAGE, "PNG")
    for length in range(0, len(content) - 12, 37):  # less than its last mark
        with pytest.raises(DatasetError):
            decode_image(content[:length])


def test_class_lists() -> None:
    refused = 0
    for data in mutations(CLASSES.to_json().encode(), 2000, seed=3):
        try:
            classes = Classes.from_json(data)
        except DatasetError:
            refused += 1
        else:
            raw = json.loads(data)
            assert list(classes.names) == raw["names"] and [list(c) for c in classes.palette] == raw["palette"]
    assert refused > 1000


@pytest.mark.parametrize("name", ["manifest.parquet", "index.arrow", "class_rows.arrow"])
def test_dataset_directories(name: str, tmp_path: Path) -> None:
    directory = make_dataset(tmp_path / "data", "source", train=5, val=2)
    whole = read_manifest(directory)
    refused = 0
    for data in mutations((tmp_path / "data" / name).read_bytes(), 600, seed=4):
        (tmp_path / "data" / name).unlink()  # an index may be mapped
        (tmp_path / "data" / name).write_bytes(data)
        try:
            manifest, index = read_manifest(directory), DatasetIndex(directory)
        except DatasetError:
            refused += 1
        else:
            assert manifest.equals(whole)
            assert index.table.num_rows == whole.num_rows and index.rows("val") == (5, 7)
            index.rare_classes("train", 0.01, 1)
    assert refused > 300
