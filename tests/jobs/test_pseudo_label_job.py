"""`udaseg pseudo-label` on a real Ray: files and thresholds against a plain loop, what fails, and a real kill."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ray import tune
from tiny import digests, draw, make_checkpoint, make_dataset

from pipelines.pseudo_label import main
from udaseg.checkpoints.directory import load_model
from udaseg.components.thresholds import image_threshold, union_pseudo_label
from udaseg.config import PseudoLabel
from udaseg.data.images import read_image
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest
from udaseg.errors import DatasetError
from udaseg.job_config import Inference
from udaseg.jobs.pseudo_label.job import pseudo_label
from udaseg.models.inference import predict

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    return make_checkpoint(tmp_path_factory.mktemp("model"), 0)


def probabilities(checkpoint: str, dataset: str) -> list[np.ndarray]:
    network, card = load_model(checkpoint)
    index = open_index(dataset)
    images = [
        torch.tensor(index.image(row)).permute(2, 0, 1)[None].float() / 255 for row in range(*index.rows("train"))
    ]
    return [predict(network, image, short_side=card.short_side)[0].numpy() for image in images]


def label_in_a_trial(folder: Path, settings: dict[str, Any]) -> Any:
    """`pseudo_label` as stages of a sweep call it: in a trial of Ray Tune, which has a CPU and no other."""
    run = tune.RunConfig(storage_path=str(folder), verbose=0)
    (result,) = tune.Tuner(lambda config: {"shares": pseudo_label(**settings)}, run_config=run).fit()
    if result.error:
        raise result.error
    return result.metrics["shares"]


@pytest.mark.full
@pytest.mark.parametrize("rule", ["top1", "any_class"])
def test_what_is_kept_follows_the_rule(rule: str, checkpoint: str, tmp_path: Path, ray_session: None) -> None:
    dataset = make_dataset(tmp_path / "data", "target", train=5, val=1, labelled=False)
    out = tmp_path / "out"
    rules = PseudoLabel(share=0.3, image_share=0.05, rule=rule)  # type: ignore[arg-type]
    settings: dict[str, Any] = {"checkpoint": checkpoint, "images": dataset, "out": str(out), "split": "train"}
    settings |= {"rules": rules, "block_size": 2}
    shares = pseudo_label(**settings) if rule == "top1" else label_in_a_trial(tmp_path, settings)
    rows = read_manifest(str(out), "train").to_pylist()
    assert [row["image_id"] for row in rows] == [f"{n:03d}" for n in range(5)]
    wrong = total = 0
    for row, probability in zip(rows, probabilities(checkpoint, dataset), strict=True):
        label = np.asarray(Image.open(out / row["label_uri"]))
        prediction = np.asarray(Image.open(out / "predictions" / f"{row['image_id']}.png"))
        confidence = np.asarray(Image.open(out / row["confidence_uri"]))
        assert confidence.dtype == np.uint16 and np.array_equal(prediction, probability.argmax(0))
        assert row["class_pixels"] == np.bincount(label.ravel(), minlength=256)[:3].tolist()
        assert (label[label != 255] == prediction[label != 255]).all()
        expected = union_pseudo_label(probability, shares.thresholds, rules.image_share, rule=rules.rule)  # type: ignore[arg-type]
        wrong += int((label != expected).sum())
        total += label.size
        own_share = probability.max(0) > image_threshold(probability.max(0), rules.image_share)
        assert (label[own_share] != 255).mean() > 0.9  # stored confidence is rounded, which ties some pixels
    assert wrong / total < 0.01
    assert not (out / ".partial").exists()


def test_one_job_with_everything(checkpoint: str, tmp_path: Path, ray_session: None) -> None:
    """Two sizes, images that cannot be read, entropy, a second network, truth, layouts for other tools, a report."""
    dataset = Path(make_dataset(tmp_path / "data", "target", train=7, val=0))
    small, _ = draw("target", 1, (40, 48))
    Image.fromarray(small).save(dataset / "images" / "001.png")
    (dataset / "images" / "002.png").write_bytes(b"not an image")
    (dataset / "images" / "003.png").unlink()
    other = make_checkpoint(tmp_path / "other", 1)
    out = tmp_path / "out"
    arguments = {
        **{"checkpoint": Path(checkpoint), "images": dataset, "out": out, "agree_with": other},
        **{"truth": True, "source": dataset, "layouts": ("cityscapes", "coco_stuff"), "block_size": 4},
        "rules": PseudoLabel(rule="fixed", measure="entropy", threshold=0.012),
        "inference": Inference(batch_size=3, flip=True, min_actors=1, actors=2, gpu=False),
    }
    with pytest.raises(DatasetError, match="2 images could not be read"):
        pseudo_label(**arguments, max_failed=0.2)  # type: ignore[arg-type]
    with pytest.raises(DatasetError, match=r"001.png: the true label and its image differ in size"):
        pseudo_label(**arguments, max_failed=2)  # type: ignore[arg-type]
    Image.fromarray(draw("target", 1, (40, 48))[1]).save(dataset / "labels" / "001.png")
    pseudo_label(**arguments, max_failed=2)  # type: ignore[arg-type]

    failed = {row["image_id"]: row["reason"] for row in json.loads((out / "failed.json").read_text())}
    assert set(failed) == {"002", "003"}
    assert "not an image" in failed["002"] and "cannot be read" in failed["003"]
    rows = read_manifest(str(out)).to_pylist()
    assert [row["image_id"] for row in rows] == ["000", "001", "004", "005", "006"]

    networks = [load_model(uri) for uri in (checkpoint, other)]
    kept_right = kept = 0
    agreed = unsure = 0.0
    for row in rows:
        image = read_image(str(dataset / "images" / f"{row['image_id']}.png"))
        pixels = torch.tensor(image).permute(2, 0, 1)[None].float() / 255
        each = [predict(n, pixels, short_side=card.short_side, flip=True)[0].numpy() for n, card in networks]
        mean = (each[0] + each[1]) / 2
        entropy = 1 + (mean * np.log(np.maximum(mean, 1e-30))).sum(0) / np.log(3)
        agree = each[0].argmax(0) == each[1].argmax(0)
        expected = np.where(agree & (entropy >= 0.012), mean.argmax(0), 255)
        label = np.asarray(Image.open(out / row["label_uri"]))
        assert (row["height"], row["width"]) == label.shape == image.shape[:2]
        assert (label != expected).mean() < 0.01
        agreed, unsure = agreed + agree.mean(), unsure + (expected[agree] == 255).mean()
        code = np.asarray(Image.open(out / "entropy" / f"{row['image_id']}.png"))
        assert code.dtype == np.uint16 and (code[~agree] == 0).mean() > 0.99
        truth = np.asarray(Image.open(dataset / "labels" / f"{row['image_id']}.png"))
        kept_right += int((label == truth).sum())
        kept += int((label != 255).sum())
        city = out / "cityscapes" / "gtFine" / "train" / "fleet" / f"{row['image_id']}_gtFine_labelTrainIds.png"
        coco = out / "coco_stuff" / "annotations" / "train" / f"{row['image_id']}.png"
        assert all(np.array_equal(np.asarray(Image.open(path)), label) for path in (city, coco))
        shown = out / "cityscapes" / "leftImg8bit" / "train" / "fleet" / f"{row['image_id']}_leftImg8bit.png"
        assert np.array_equal(np.asarray(Image.open(shown)), image)
    assert 0.1 < agreed / 5 < 0.95 and 0.1 < unsure / 5 < 0.9, "or nothing is tested"
    report = json.loads((out / "report.json").read_text())
    assert report["accuracy_kept"] == pytest.approx(kept_right / kept)
    assert 0 <= report["calibration_error"] <= 1 and report["failed_images"] == 2
    page = (out / "report.html").read_text()
    assert "reliability diagram" in page and "not an image in a known format" in page


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """A bare folder of 80 images."""
    images = tmp_path / "images"
    for n in range(80):
        (images / f"drive{n % 3}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("target", n)[0]).save(images / f"drive{n % 3}" / f"{n:03d}.png")
    yield images


@pytest.mark.full  # more than a minute
def test_a_killed_job_goes_on_and_ends_with_the_same_bytes(
    folder: Path, checkpoint: str, tmp_path: Path, ray_session: None
) -> None:
    """SIGKILL of the driver in the middle of the first pass; the same command again."""
    import ray

    whole, out = tmp_path / "whole", tmp_path / "out"
    arguments = ["--checkpoint", checkpoint, "--images", str(folder), "--block-size", "2", "--inference.no-gpu"]
    assert main([*arguments, "--out", str(whole)]) == 0
    assert main([*arguments, "--out", str(whole)]) == 0  # finished: nothing is done
    assert main([*arguments, "--out", str(whole), "--rules.share", "0.3"]) == 2  # another job's

    driver = subprocess.Popen(
        [sys.executable, "-m", "pipelines.pseudo_label", *arguments, "--out", str(out)],
        cwd=ROOT,
        env=os.environ | {"RAY_ADDRESS": ray.get_runtime_context().gcs_address},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 200
    entries = out / "job" / "predict"
    while len(list(entries.glob("*.parquet"))) < 4:
        assert driver.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    driver.send_signal(signal.SIGKILL)
    driver.wait()
    before = {path.name: path.stat().st_mtime_ns for path in entries.glob("*.parquet")}
    assert len(before) < 40, "killed too late to show anything"
    assert not (out / "manifest.parquet").exists()
    for path in out.rglob("*.png"):  # whatever has its name is whole
        if ".partial" not in path.parts:
            Image.open(path).load()
    assert main([*arguments, "--out", str(out)]) == 0
    for name, written in before.items():
        assert (entries / name).stat().st_mtime_ns == written, "finished work must not be repeated"
    assert read_manifest(str(out)).num_rows == 80
    assert digests(out) == digests(whole)


def test_inputs_that_cannot_be_used_are_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")]

    def refused(*arguments: str) -> str:
        assert main([*arguments, *out]) == 2
        return capsys.readouterr().err

    assert "not a model directory" in refused("--checkpoint", str(tmp_path), "--images", str(tmp_path / "empty"))
    words = ("--checkpoint", checkpoint, "--images", str(tmp_path / "empty"))
    assert "no file" in refused(*words)
    assert "share" in refused(*words, "--rules.share", "1.5")
    assert "min_actors" in refused(*words, "--inference.actors", "2", "--inference.min-actors", "3")
    assert "--source" in refused(*words, "--rules.measure", "prototype")
    assert "checkpoints" in refused(*words, "--inference.network", "teacher")
    assert not (tmp_path / "out").exists()
    images = tmp_path / "images"
    images.mkdir()
    Image.fromarray(draw("target", 0)[0]).save(images / "a.png")
    assert main([*words[:3], str(images), "--out", str(images / "labels")]) == 2
    assert "outside of it" in capsys.readouterr().err
    shutil.copy(images / "a.png", images / "a.jpg")
    assert "two images are called 'a'" in refused(*words[:3], str(images))
