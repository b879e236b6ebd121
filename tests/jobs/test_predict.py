"""One image in this process: `udaseg.load(...).predict`, and `udaseg predict` for files, folders and datasets."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, draw, make_checkpoint, make_dataset

import udaseg
from pipelines.predict import main
from udaseg.checkpoints.predictor import Predictor
from udaseg.data.pictures import overlay
from udaseg.errors import CheckpointError, DatasetError


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("model") / "model", 0)


@pytest.fixture(scope="module")
def predictor(model: str) -> Predictor:
    return udaseg.load(model, device="cpu")


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A dataset of four images, a folder of two, a file that is no image."""
    make_dataset(tmp_path / "data", "source", train=3, val=1)
    for n, name in enumerate(("a.jpg", "b/c d.png")):
        (tmp_path / "folder" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("target", n)[0]).save(tmp_path / "folder" / name)
    (tmp_path / "text.png").write_text("hello")
    return tmp_path


def wanted(predictor: Predictor, pixels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The network's own classes and probabilities of an image of the size that it was trained at."""
    image = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    with torch.inference_mode():
        probability = predictor.network(image, "target", detail="everywhere").logits.softmax(1)[0]
    return probability.argmax(0).numpy(), probability.amax(0).numpy()


def test_it_is_what_the_network_finds(predictor: Predictor, files: Path) -> None:
    pixels = draw("source", 0)[0]
    label, confidence = wanted(predictor, pixels)
    assert predictor.classes == CLASSES and len(np.unique(label)) > 1
    path = files / "data/images/000.png"
    for image in (path, str(path), path.as_uri(), Image.open(path), pixels):
        found = predictor.predict(image)
        assert found.label.dtype == np.uint8 and np.array_equal(found.label, label)
        assert found.confidence.dtype == np.float32
        np.testing.assert_allclose(found.confidence, confidence, rtol=1e-5)
    mirrored = predictor.predict(pixels, flip=True).confidence
    assert not np.allclose(mirrored, confidence)


def test_an_image_that_is_stored_turned_is_predicted_as_it_is_shown(predictor: Predictor, files: Path) -> None:
    exif, stream = Image.Exif(), io.BytesIO()
    exif[0x0112] = 8
    shown = draw("source", 1)[0]
    Image.fromarray(shown).transpose(Image.Transpose.ROTATE_270).save(stream, "PNG", exif=exif)
    (files / "turned.png").write_bytes(stream.getvalue())
    for image in (files / "turned.png", Image.open(files / "turned.png")):
        assert np.array_equal(predictor.predict(image).label, predictor.predict(shown).label)


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        (np.zeros((4, 4), np.uint8), r"an array of uint8 of shape \(4, 4\)"),
        (np.zeros((4, 4, 3)), "an array of float64"),
        (np.zeros((0, 4, 3), np.uint8), r"shape \(0, 4, 3\)"),
        (np.zeros((1, 60_000, 3), np.uint8), "60000 x 1 pixels are too long and narrow"),
        (Image.new("I;16", (4, 4)), "pixels of mode I;16"),
        ("/nowhere/a.png", "/nowhere/a.png"),
    ],
)
def test_refuses_what_is_no_image(predictor: Predictor, image: object, reason: str) -> None:
    with pytest.raises(DatasetError, match=reason):
        predictor.predict(image)  # type: ignore[arg-type]


def test_refuses_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a model directory"):
        udaseg.load(tmp_path)


# -- the command


def test_writes_label_maps_and_overlays(
    model: str, predictor: Predictor, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [model, f"{files}/data/images/003.png", f"{files}/folder", "--out", f"{files}/out", "--overlay"]
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    found = {str(path.relative_to(files / "out")) for path in (files / "out").rglob("*.png")}
    assert found == {f"{kind}/{name}.png" for kind in ("labels", "overlays") for name in ("003", "a", "b/c d")}
    for name, file in (("003", "data/images/003.png"), ("a", "folder/a.jpg"), ("b/c d", "folder/b/c d.png")):
        pixels = np.asarray(Image.open(files / file))
        label = predictor.predict(pixels).label
        stored = Image.open(files / "out" / "labels" / f"{name}.png")
        assert np.array_equal(np.asarray(stored), label)
        assert tuple(stored.getpalette()[:9]) == sum(CLASSES.palette, ())  # type: ignore[index]
        half = (pixels.astype(int) + np.array(CLASSES.palette)[label] + 1) // 2
        assert np.array_equal(np.asarray(Image.open(files / "out" / "overlays" / f"{name}.png")), half)
        (line,) = (line for line in lines if line.startswith(f"{files}/out/labels/{name}.png: "))
        most = np.bincount(label.ravel(), minlength=3).argmax()
        assert line.split(": ")[1].startswith(f"{CLASSES.names[most]} {100 * (label == most).mean():.1f} %")


def test_a_dataset_is_predicted_and_again(model: str, files: Path) -> None:
    words = [model, f"{files}/data", "--out", f"{files}/out"]
    assert main(words) == 0
    first = {path: path.read_bytes() for path in (files / "out").rglob("*.png")}
    assert {path.stem for path in first} == {"000", "001", "002", "003"}
    assert main(words) == 0
    assert {path: path.read_bytes() for path in (files / "out").rglob("*.png")} == first


def test_what_cannot_be_read_is_told_when_the_rest_is_done(
    model: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [model, f"{files}/text.png", f"{files}/folder/a.jpg", "--out", f"{files}/out"]
    assert main(words) == 2
    assert (files / "out/labels/a.png").exists() and not (files / "out/labels/text.png").exists()
    error = capsys.readouterr().err.splitlines()
    assert error[0] == "error: 1 of 2 images were not predicted"
    assert error[1].startswith(f"  {files}/text.png: not an image in a known format")


@pytest.mark.parametrize(
    ("images", "out", "reason"),
    [
        (["folder/a.jpg", "a.png"], "out", "would both be labels/a.png"),
        (["folder"], "folder/b/out", "lies in the folder of images"),
        (["out/x.png"], "out", "lies in the folder of predictions"),
        (["nothing.png"], "out2", "nothing.png: no such file or folder"),
    ],
)
def test_refuses_names_that_do_not_fit(
    model: str, files: Path, capsys: pytest.CaptureFixture[str], images: list[str], out: str, reason: str
) -> None:
    Image.new("RGB", (8, 8)).save(files / "a.png")
    (files / "out").mkdir()
    Image.new("RGB", (8, 8)).save(files / "out" / "x.png")
    assert main([model, *(f"{files}/{name}" for name in images), "--out", f"{files}/{out}"]) == 2
    assert reason in capsys.readouterr().err
    assert [path.name for path in (files / "out").iterdir()] == ["x.png"] and not (files / "out2").exists()


def test_what_is_ignored_keeps_its_pixels() -> None:
    image = np.full((1, 2, 3), 11, np.uint8)
    found = np.asarray(overlay(image, np.array([[255, 1]], np.uint8), CLASSES))
    assert found.tolist() == [[[11, 11, 11], [41, 71, 96]]]
