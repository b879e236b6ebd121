"""One image in this process: `udaseg.load(...).predict`, and `udaseg predict` for files, folders and datasets."""

from __future__ import annotations

import io
import shutil
import signal
import struct
import subprocess
import sys
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, draw, make_checkpoint, make_dataset

import udaseg
from pipelines.predict import main
from udaseg.checkpoints.predictor import Predictor
from udaseg.data.folders import IMAGE_SUFFIXES
from udaseg.data.pictures import overlay
from udaseg.errors import CheckpointError, DatasetError
from udaseg.jobs import predict as predict_module


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
        (torch.zeros(1, 3, 4, 4), r"an image of type Tensor; .* `udaseg\.predict` takes batches"),
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
    with pytest.raises(CheckpointError, match="modle: no such directory"):
        udaseg.load(tmp_path / "modle")


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


def test_an_image_that_a_gpu_cannot_hold_stops_no_other(
    model: str, files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = predict_module._predict_image

    def predict(predictor: Predictor, image_id: str, *rest: Any) -> None:
        if image_id == "a":
            raise torch.OutOfMemoryError("CUDA out of memory")
        real(predictor, image_id, *rest)

    monkeypatch.setattr(predict_module, "_predict_image", predict)
    assert main([model, f"{files}/folder", "--out", f"{files}/out"]) == 2
    assert (files / "out/labels/b/c d.png").exists() and not (files / "out/labels/a.png").exists()
    assert f"{files}/folder/a.jpg: too large for the GPU's memory" in capsys.readouterr().err


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


@pytest.mark.parametrize(
    ("above", "images", "labels"), [("", "images", "Masks"), ("val/", "images", "Masks"), ("", "img_dir", "ann_dir")]
)
def test_label_maps_beside_images_are_not_predicted(
    model: str, files: Path, capsys: pytest.CaptureFixture[str], above: str, images: str, labels: str
) -> None:
    root, out = files / "tree", files / "out"
    for folder in (images, labels, "masks of cars"):
        shutil.copytree(files / "folder", root / above / folder)
    assert main([model, str(root), "--out", str(out)]) == 2
    where = f"{root}/{above}".rstrip("/")
    found = f"error: {where}: holds {images}/ and {labels}/, and label maps are no photo"
    assert capsys.readouterr().err.startswith(found)
    assert not out.exists()
    assert main([model, str(root / above / images), "--out", str(out)]) == 0
    shutil.rmtree(root / above / labels)
    assert main([model, str(root), "--out", str(out)]) == 0


def test_pictures_that_are_passed_over_are_told(model: str, files: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("1.HEIC", "b/2.heic", "b/3.mp4", "notes.txt"):
        (files / "folder" / name).touch()
    assert main([model, str(files / "folder"), "--out", str(files / "out")]) == 0
    endings = " or ".join(IMAGE_SUFFIXES)
    said = f"warning: {files}/folder: passed over, as images end in {endings}: 2 of .heic, 1 of .mp4\n"
    assert capsys.readouterr().err == said
    for path in (files / "folder").rglob("*.*"):
        if path.suffix in IMAGE_SUFFIXES:
            path.unlink()
    assert main([model, str(files / "folder"), "--out", str(files / "out")]) == 2
    assert "but there are 2 of .heic, 1 of .mp4; convert them" in capsys.readouterr().err


def test_a_name_as_long_as_is_allowed(model: str, files: Path) -> None:
    name = "x" * 251
    (files / f"{name}.png").write_bytes((files / "data/images/003.png").read_bytes())
    assert main([model, str(files / f"{name}.png"), "--out", str(files / "out")]) == 0
    assert [path.name for path in (files / "out" / "labels").iterdir()] == [f"{name}.png"]


def test_what_is_ignored_keeps_its_pixels() -> None:
    image = np.full((1, 2, 3), 11, np.uint8)
    found = np.asarray(overlay(image, np.array([[255, 1]], np.uint8), CLASSES))
    assert found.tolist() == [[[11, 11, 11], [41, 71, 96]]]


def test_nothing_of_an_earlier_prediction_is_left_beside_a_later_one(model: str, tmp_path: Path) -> None:
    for folder, number in (("long", 6), ("short", 2)):
        (tmp_path / folder).mkdir()
        film(tmp_path / folder / "clip.mp4", number=number)
        Image.fromarray(draw("target", number)[0]).save(tmp_path / folder / "a.png")
    out = tmp_path / "out"
    for folder, more in (("long", ["--overlay"]), ("short", [])):
        words = [f"{tmp_path}/{folder}/clip.mp4", f"{tmp_path}/{folder}/a.png"]
        assert main([model, *words, "--out", str(out), *more]) == 0
    assert {str(path.relative_to(out)) for path in out.rglob("*.*g") if path.is_file()} == {
        "labels/a.png",
        "labels/clip/000000.png",
        "labels/clip/000001.png",
    }
    assert not list((out / "overlays").iterdir())


def test_a_reader_that_has_seen_enough_ends_it_quietly(model: str, files: Path) -> None:
    words = [sys.executable, "-m", "pipelines", "predict", model, str(files / "folder"), "--out", str(files / "out")]
    run = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None and run.stderr is not None
    run.stdout.close()
    assert run.stderr.read() == "" and run.wait() == 128 + signal.SIGPIPE


# -- videos


RATE = Fraction(30000, 1001)


def film(file: Path, size: tuple[int, int] = (40, 56), number: int = 6) -> None:
    with av.open(file, "w") as container:
        stream = container.add_stream("libx264", rate=RATE, options={"crf": "5"})
        stream.height, stream.width = size
        stream.pix_fmt = "yuv444p" if size[0] % 2 else "yuv420p"
        for n in range(number):
            frame = av.VideoFrame.from_ndarray(draw("source", n, size)[0], format="rgb24")
            container.mux(stream.encode(frame))
        container.mux(stream.encode())


def frames(file: Path) -> tuple[Fraction | None, list[np.ndarray]]:
    with av.open(file) as container:
        stream = container.streams.video[0]
        return stream.average_rate, [frame.to_ndarray(format="rgb24") for frame in container.decode(stream)]


def stored(file: Path) -> np.ndarray:
    return np.asarray(Image.open(file))


def test_a_video_is_predicted_frame_by_frame(
    model: str,
    predictor: Predictor,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("udaseg.jobs.predict._SECONDS_BETWEEN_LINES", 0.0)
    film(tmp_path / "clip.MP4")
    Image.fromarray(draw("target", 0)[0]).save(tmp_path / "a.png")
    out = tmp_path / "out"
    assert main([model, f"{tmp_path}/clip.MP4", f"{tmp_path}/a.png", "--out", str(out), "--overlay"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{tmp_path}/clip.MP4: frame 1 of 6" and len(lines) == 8
    _, shown = frames(tmp_path / "clip.MP4")
    labels = [predictor.predict(pixels).label for pixels in shown]
    assert sorted(path.name for path in (out / "labels" / "clip").iterdir()) == [f"{n:06d}.png" for n in range(6)]
    for number, label in enumerate(labels):
        assert np.array_equal(stored(out / "labels" / "clip" / f"{number:06d}.png"), label)
    share = np.bincount(np.ravel(labels), minlength=3) / np.size(labels)
    most = share.argmax()
    assert lines[6].startswith(f"{out}/labels/clip: 6 frames; {CLASSES.names[most]} {100 * share[most]:.1f} %")
    rate, overlays = frames(out / "overlays" / "clip.mp4")
    assert rate == RATE and len(overlays) == 6
    for found, pixels, label in zip(overlays, shown, labels, strict=True):
        assert found.shape == pixels.shape
        assert np.abs(found - np.asarray(overlay(pixels, label, CLASSES)).astype(int)).mean() < 8  # H.264 loses some
    assert (out / "labels" / "a.png").exists() and (out / "overlays" / "a.png").exists()


def test_a_transport_stream_by_an_mpeg_s_name_is_predicted(model: str, tmp_path: Path) -> None:
    film(tmp_path / "camera.ts")
    (tmp_path / "camera.ts").rename(tmp_path / "camera.mpg")
    assert main([model, f"{tmp_path}/camera.mpg", "--out", f"{tmp_path}/out"]) == 0
    assert len(list((tmp_path / "out/labels/camera").iterdir())) == 6


def test_a_video_that_is_stored_turned_is_predicted_as_it_is_shown(
    model: str, predictor: Predictor, tmp_path: Path
) -> None:
    """By a telephone held upright, which writes a quarter turn into the header of the track."""
    film(tmp_path / "turned.mp4", (39, 56))
    content = (tmp_path / "turned.mp4").read_bytes()
    at = content.index(b"tkhd") + 44  # the matrix of a header of version 0
    one = 1 << 16
    assert struct.unpack(">9i", content[at : at + 36]) == (one, 0, 0, 0, one, 0, 0, 0, 1 << 30)
    clockwise = struct.pack(">9i", 0, one, 0, -one, 0, 0, 0, 0, 1 << 30)
    (tmp_path / "turned.mp4").write_bytes(content[:at] + clockwise + content[at + 36 :])
    assert main([model, f"{tmp_path}/turned.mp4", "--out", f"{tmp_path}/out", "--overlay"]) == 0
    _, shown = frames(tmp_path / "turned.mp4")
    label = predictor.predict(np.rot90(shown[0], -1).copy()).label
    assert label.shape == (56, 39) and np.array_equal(stored(tmp_path / "out/labels/turned/000000.png"), label)
    assert [frame.shape for frame in frames(tmp_path / "out/overlays/turned.mp4")[1]] == [(56, 39, 3)] * 6


def test_what_is_no_video_or_breaks_off_is_told(
    model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    film(tmp_path / "cut.mp4")
    content = (tmp_path / "cut.mp4").read_bytes()
    (tmp_path / "cut.mp4").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.mov").write_text("hello")
    (tmp_path / "list.mkv").write_text(f"ffconcat version 1.0\nfile {tmp_path}/cut.mp4\n")
    (tmp_path / "none.avi").touch()
    names = ["cut.mp4", "text.mov", "list.mkv", "none.avi"]
    assert main([model, *(f"{tmp_path}/{name}" for name in names), "--out", f"{tmp_path}/out", "--overlay"]) == 2
    first, *others = capsys.readouterr().err.splitlines()
    assert first == "error: 4 of 4 images were not predicted"
    for name, line in zip(names, others, strict=True):
        assert line.startswith(f"  {tmp_path}/{name}: not a video in a known format")
    for name in ("damaged.mkv", "damaged.avi"):
        film(tmp_path / name)
        content = (tmp_path / name).read_bytes()
        (tmp_path / name).write_bytes(content[: len(content) * 2 // 3])
        assert main([model, f"{tmp_path}/{name}", "--out", f"{tmp_path}/{name}.out", "--overlay"]) == 2
        kept = len(list((tmp_path / f"{name}.out/labels/damaged").iterdir()))
        assert 0 < kept < 6 and len(frames(tmp_path / f"{name}.out/overlays/damaged.mp4")[1]) == kept
        said = capsys.readouterr().err
        assert said == f"error: {tmp_path}/{name}: was cut off, it ends after frame {kept - 1}\n"
    monkeypatch.setitem(sys.modules, "av", None)
    assert main([model, f"{tmp_path}/cut.mp4", "--out", f"{tmp_path}/out2"]) == 2
    assert capsys.readouterr().err == f"error: {tmp_path}/cut.mp4 needs av: pip install 'udaseg[video]'\n"
    assert not (tmp_path / "out2").exists()
