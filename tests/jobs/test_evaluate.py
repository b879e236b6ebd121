"""Evaluation: as it is told, of all images of the split, in this process or on Ray."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from tiny import CLASSES, make_checkpoint, make_dataset

from pipelines.evaluate import main
from udaseg.checkpoints.directory import load_model, read_card, save_model
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest, write_dataset
from udaseg.errors import CheckpointError, ConfigError, DatasetError
from udaseg.evaluation.metrics import confusion, mean_iou
from udaseg.job_config import Inference
from udaseg.jobs import evaluate as evaluate_module
from udaseg.jobs.evaluate import Evaluator, evaluate, evaluate_to
from udaseg.jobs.join_datasets import join_datasets
from udaseg.models.inference import predict


def test_an_evaluator_predicts_as_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    uris, dataset = [make_checkpoint(tmp_path / str(n), n) for n in (0, 1)], make_dataset(tmp_path / "d", "target")
    inference = Inference(gpu=False, flip=True, scales=(0.5, 1.0), batch_size=3)
    (counts,) = Evaluator(uris, dataset, inference, 1)({"id": np.arange(4)})["counts"]
    index = open_index(dataset)
    for n, uri in enumerate(uris):
        network, card = load_model(uri)
        found, plain = np.zeros((3, 3), np.int64), np.zeros((3, 3), np.int64)
        for row in range(4):
            image = torch.tensor(index.image(row)).permute(2, 0, 1)[None].float() / 255
            for total, views in ((found, {"flip": True, "scales": (0.5, 1.0)}), (plain, {})):
                label = predict(network, image, **card.size(), **views)[0].argmax(0).numpy()
                total += confusion(index.train_ids(row), label, 3)
        assert np.array_equal(counts[n, 0], found) and not np.array_equal(found, plain)


def test_an_evaluator_takes_the_network_that_it_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    load = evaluate_module.load_model
    monkeypatch.setattr(evaluate_module, "load_model", lambda uri, part: (asked.append(part), load(uri))[1])
    Evaluator(
        [make_checkpoint(tmp_path / "m", 0)],
        make_dataset(tmp_path / "d", "target"),
        Inference(gpu=False, network="student"),
        1,
    )
    assert asked == ["student"]


def test_a_model_directory_has_no_student_to_evaluate(tmp_path: Path) -> None:
    _uri, _dataset = make_checkpoint(tmp_path / "m", 0), make_dataset(tmp_path / "d", "target")
    with pytest.raises(CheckpointError, match=r"state\.pt: missing; student and teacher"):
        evaluate(
            [make_checkpoint(tmp_path / "m", 0)],
            make_dataset(tmp_path / "d", "target"),
            inference=Inference(gpu=False, network="student"),
        )


def test_all_images_of_the_split_count(tmp_path: Path, ray_session: None) -> None:
    """More than a block of 16, of a split that is not the default."""
    dataset = make_dataset(tmp_path / "d", "target", train=35, val=2)
    uri = make_checkpoint(tmp_path / "m", 0)
    (counts,) = evaluate([uri], dataset, split="train", inference=Inference(gpu=False))
    assert counts.sum() == 35 * 40 * 56
    each = Evaluator([uri], dataset, Inference(gpu=False), 1)({"id": np.arange(*open_index(dataset).rows("train"))})
    assert np.array_equal(counts, each["counts"][0, 0, 0])


def test_a_split_with_some_labels_is_refused(tmp_path: Path) -> None:
    dataset = make_dataset(tmp_path / "d", "target", train=1, val=2)
    rows = read_manifest(dataset).to_pylist()
    rows[-1] |= {"label_uri": None, "class_pixels": None}
    write_dataset(dataset, pa.Table.from_pylist(rows, schema=read_manifest(dataset).schema), CLASSES)
    with pytest.raises(DatasetError, match="evaluation needs labels, and 1 of 2 images of split 'val' have none"):
        evaluate([make_checkpoint(tmp_path / "m", 0)], dataset, inference=Inference(gpu=False))


def test_evaluate_to_hands_on_what_it_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    seen = []

    def fake(checkpoints: list[str], dataset: str, **how: Any) -> dict[str, np.ndarray]:
        seen.append(how)
        return {"target": np.diag([3, 2, 1])[None]}

    monkeypatch.setattr(evaluate_module, "evaluate_parts", fake)
    uri, dataset = make_checkpoint(tmp_path / "m", 0), make_dataset(tmp_path / "d", "target", train=1, val=1)
    save_model(tmp_path / "m", load_model(uri)[0], replace(read_card(uri), old_classes=2))
    inference = Inference(gpu=False, flip=True)
    out = str(tmp_path / "out")
    evaluate_to(out, [uri], dataset, split="train", inference=inference)
    assert seen == [{"split": "train", "inference": inference}]
    assert any("old" in name for name in json.loads((tmp_path / "out" / "metrics.json").read_text()))
    for name in (evaluate_module.METRICS, evaluate_module.PICTURE):  # one of them is enough
        content = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).unlink()
        with pytest.raises(ConfigError, match="holds results already"):
            evaluate_to(out, [uri], dataset, split="train", inference=inference)
        (tmp_path / "out" / name).write_bytes(content)
    assert len(seen) == 1


def test_evaluation_warns_of_another_depth_range(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Stop(Exception):
        pass

    def stop() -> None:
        raise Stop

    monkeypatch.setattr(evaluate_module, "ensure_ray", stop)
    uri, dataset = make_checkpoint(tmp_path / "m", 0), make_dataset(tmp_path / "d", "target", train=1, val=1)
    save_model(tmp_path / "m", load_model(uri)[0], replace(read_card(uri), depth_range=(0.0, 10.0)))
    write_dataset(dataset, read_manifest(dataset), CLASSES, depth_range=(0.0, 20.0))
    with pytest.raises(Stop):
        evaluate([uri], dataset, inference=Inference(gpu=False))
    assert "was prepared with --depth-range 0 20, " in capsys.readouterr().err


def test_several_checkpoints_are_columns_of_one_table(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = [make_checkpoint(tmp_path / "runs" / name / "model", n) for n, name in enumerate(("dacs", "bcl"))]
    dataset, out = make_dataset(tmp_path / "d", "target", train=1, val=3), tmp_path / "out"
    assert main(["--checkpoint", *uris, "--dataset", dataset, "--out", str(out)]) == 0
    shown = [line.replace("│", " ").replace("┃", " ").split() for line in capsys.readouterr().out.splitlines()]
    rows = {words[0]: words[1:] for words in shown if words}
    each = evaluate(uris, dataset, inference=Inference(gpu=False))
    assert rows["class"] == ["dacs", "bcl"] and rows["mIoU"] == [f"{100 * mean_iou(counts):.1f}" for counts in each]
    assert rows["mIoU"][0] != rows["mIoU"][1]
    found = json.loads((out / "metrics.json").read_text())
    assert [row["checkpoint"] for row in found] == uris
    assert [row["confusion"] for row in found] == [counts.tolist() for counts in each]
    assert {path.name for path in out.glob("*.png")} == {"confusion_1.png", "confusion_2.png"}
    for twice in ([uris[0], f"{uris[0]}/"], [uris[0], "--checkpoint", uris[1]], []):
        assert main(["--checkpoint", *twice, "--dataset", dataset]) == 2


def test_joined_datasets_are_counted_each_too(
    tmp_path: Path, ray_session: None, capsys: pytest.CaptureFixture[str]
) -> None:
    uris = [make_checkpoint(tmp_path / "runs" / name / "model", n) for n, name in enumerate(("dacs", "bcl"))]
    parts = {
        name: make_dataset(tmp_path / name, name, train=1, val=count) for name, count in (("source", 2), ("target", 3))
    }
    unseen = make_dataset(tmp_path / "unseen", "unseen", train=1, val=0)
    join_datasets([*parts.values(), unseen], out=tmp_path / "all")
    each = {name: evaluate(uris, directory, inference=Inference(gpu=False)) for name, directory in parts.items()}
    capsys.readouterr()
    assert main(["--checkpoint", *uris, "--dataset", str(tmp_path / "all"), "--out", str(tmp_path / "out")]) == 0
    shown = [line.replace("│", " ").replace("┃", " ").split() for line in capsys.readouterr().out.splitlines()]
    rows = {words[0]: words[1:] for words in shown if words}
    assert rows["dataset"] == ["dacs", "bcl"] and "unseen" not in rows
    miou = {name: [100 * mean_iou(counts) for counts in of] for name, of in each.items()}
    assert {name: rows[name] for name in parts} == {name: [f"{v:.1f}" for v in of] for name, of in miou.items()}
    assert rows["mean"] == [f"{np.mean(of):.1f}" for of in zip(*miou.values(), strict=True)]
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for n, row in enumerate(found):
        assert row["confusion"] == (each["source"][n] + each["target"][n]).tolist()
        assert {name: of["confusion"] for name, of in row["datasets"].items()} == {
            name: of[n].tolist() for name, of in each.items()
        }


def test_titles_are_what_tells_checkpoints_apart() -> None:
    assert evaluate_module._titles(["runs/a/model"]) == [""]
    assert evaluate_module._titles(["s3://b/x/model/", "s3://b/y/model"]) == ["x", "y"]
    assert evaluate_module._titles(["m", "a/m", "m/m"]) == ["m", "a/m", "m/m"]
    assert evaluate_module._titles(["r/stages/0-a/c_2", "r/stages/0-a/c_4"]) == ["c_2", "c_4"]
