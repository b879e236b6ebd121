"""`udaseg pseudo-label` on a real Ray: files, thresholds and manifest against a plain loop, and what is refused."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, make_dataset

from pipelines.pseudo_label import list_images, main, pseudo_label
from udaseg.config import Model, PseudoLabel
from udaseg.data.schema import DatasetError, read_manifest
from udaseg.data.stream import open_index
from udaseg.inference import predict
from udaseg.models.build import build_segmenter
from udaseg.pseudo_label import image_threshold, union_pseudo_label
from udaseg.train import ModelCard, load_model, save_model


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """An untrained network whose classifier is sharpened, so that confidences spread."""
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head_channels=16)
    torch.nn.init.normal_(network.net.head.classify.weight, std=2.0)  # type: ignore[union-attr, arg-type]
    folder = tmp_path_factory.mktemp("model")
    model = Model(backbone="resnet10t", head_channels=16)
    card = ModelCard(model=model, classes=CLASSES, short_side=40, recipe="none", stage="none", step=0)
    save_model(folder, network, card)
    return str(folder)


def probabilities(checkpoint: str, dataset: str) -> list[np.ndarray]:
    network, card = load_model(checkpoint)
    index = open_index(dataset)
    images = [
        torch.tensor(index.image(row)).permute(2, 0, 1)[None].float() / 255 for row in range(*index.rows("train"))
    ]
    return [predict(network, image, short_side=card.short_side)[0].numpy() for image in images]


@pytest.mark.parametrize("rule", ["top1", "any_class"])
def test_what_is_kept_follows_the_rule(rule: str, checkpoint: str, tmp_path: Path, ray_session: None) -> None:
    dataset = make_dataset(tmp_path / "data", "target", train=5, val=1, labelled=False)
    out = tmp_path / "out"
    rules = PseudoLabel(share=0.3, image_share=0.05, rule=rule)  # type: ignore[arg-type]
    shares = pseudo_label(checkpoint=checkpoint, images=dataset, out=str(out), split="train", rules=rules)
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
        expected = union_pseudo_label(probability, shares.thresholds, rules.image_share, rule=rules.rule)
        wrong += int((label != expected).sum())
        total += label.size
        own_share = probability.max(0) > image_threshold(probability.max(0), rules.image_share)
        assert (label[own_share] != 255).mean() > 0.9  # stored confidence is rounded, which ties some pixels
    assert wrong / total < 0.01


def test_a_bare_folder_is_labelled_and_never_overwritten(checkpoint: str, tmp_path: Path, ray_session: None) -> None:
    make_dataset(tmp_path / "data", "target", train=3, val=0)
    out = str(tmp_path / "out")
    arguments = ["--checkpoint", checkpoint, "--images", str(tmp_path / "data" / "images"), "--out", out]
    assert main(arguments) == 0
    assert read_manifest(out, "train").num_rows == 3
    assert main(arguments) == 0  # is done already
    assert main([*arguments, "--rules.share", "0.3"]) == 2  # was begun with other rules


def test_inputs_that_cannot_be_used_are_refused(
    checkpoint: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    out = ["--out", str(tmp_path / "out")]
    assert main(["--checkpoint", str(tmp_path), "--images", str(tmp_path / "empty"), *out]) == 2
    assert "not a model directory" in capsys.readouterr().err
    assert main(["--checkpoint", checkpoint, "--images", str(tmp_path / "empty"), *out]) == 2
    assert "no file" in capsys.readouterr().err
    assert main(["--checkpoint", checkpoint, "--images", str(tmp_path / "empty"), *out, "--rules.share", "1.5"]) == 2
    assert "share" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_image_id_that_leaves_the_output_folder_is_refused(tmp_path: Path) -> None:
    import pyarrow as pa

    from udaseg.data.schema import MANIFEST, read_classes, write_dataset

    dataset = make_dataset(tmp_path, "target", train=2, val=0)
    rows = read_manifest(dataset).to_pylist()
    rows[0]["image_id"] = "../../escaped"
    write_dataset(dataset, pa.Table.from_pylist(rows, schema=MANIFEST), read_classes(dataset))
    with pytest.raises(DatasetError, match="would lead out"):
        list(list_images(dataset, None))
