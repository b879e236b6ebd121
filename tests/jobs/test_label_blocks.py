"""What tasks do with a block, without Ray: prototypes, agreement, teacher and student, names for other tools."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from tiny import CLASSES, draw, make_checkpoint, make_dataset, tiny_recipe

import udaseg
from pipelines.pseudo_label import Arguments as LabelArguments
from udaseg.checkpoints import exporting
from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.components.prototypes import PrototypeClassifier
from udaseg.config import DEFAULT_RULES, Model, PseudoLabel
from udaseg.data import export
from udaseg.data.classes import Classes
from udaseg.data.confidence import decode_confidence, decode_distribution
from udaseg.data.images import read_image
from udaseg.data.index import open_index
from udaseg.data.layouts import LAYOUTS
from udaseg.data.listing import list_images
from udaseg.data.manifest import write_dataset
from udaseg.data.plan import Plan, StreamPlan
from udaseg.data.taxonomies import CITYSCAPES_CLASSES
from udaseg.errors import DatasetError, UnreachableError
from udaseg.job_config import Inference
from udaseg.jobs.ledger import Ledger, open_ledger
from udaseg.jobs.pseudo_label import actors, phases
from udaseg.jobs.pseudo_label.actors import PredictActor, PrototypeActor
from udaseg.jobs.pseudo_label.job import pseudo_label
from udaseg.jobs.pseudo_label.tasks import (
    EXAMPLES,
    PredictionTotals,
    Work,
    apply_thresholds,
    label_chunk,
    tally_chunk,
    write_label,
)
from udaseg.losses.contrastive import downscale_label
from udaseg.models.build import build_segmenter
from udaseg.models.inference import predict
from udaseg.training.step import build_state
from udaseg.types import IGNORE

BLOCK = {"block": np.array([0])}


def work(tmp_path: Path, *checkpoints: str, **values: Any) -> Work:
    """A job over a dataset of four images in one block."""
    dataset = make_dataset(tmp_path / "data", "source", train=4, val=0)
    ledger = open_ledger(str(tmp_path / "job"), lambda: list_images(dataset), block_size=8, job={})
    settings = {"rules": PseudoLabel(), "inference": Inference(gpu=False)} | values
    return Work(checkpoints=checkpoints, out=str(tmp_path / "out"), ledger=ledger, classes=CLASSES, **settings)


def pixels(n: int) -> torch.Tensor:
    return torch.tensor(draw("source", n)[0]).permute(2, 0, 1)[None].float() / 255


def png(tmp_path: Path, kind: str, n: int) -> np.ndarray:
    return np.asarray(Image.open(tmp_path / "out" / kind / f"{n:03d}.png"))


def loop_prototypes(checkpoint: str) -> tuple[torch.Tensor, torch.Tensor]:
    """(K, A) mean features of the cells of each class of the four images, and (K,) how many cells."""
    network, _ = load_model(checkpoint)
    features, labels = [], []
    for n in range(4):
        with torch.no_grad():
            feature = network(pixels(n), "source").embedding
        label = torch.tensor(draw("source", n)[1])[None].long()
        labels.append(downscale_label(label, (feature.shape[2], feature.shape[3])).flatten())
        features.append(feature[0].flatten(1).T)
    x, y = torch.cat(features), torch.cat(labels)
    return torch.stack([x[y == k].mean(0) for k in range(3)]), torch.bincount(y, minlength=3)


def test_prototypes_are_the_mean_features_of_labelled_cells(tmp_path: Path) -> None:
    checkpoints = [make_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1)]
    job = work(tmp_path, *checkpoints, truth=CLASSES, inference=Inference(gpu=False, batch_size=3))
    PrototypeActor(job, 1)(BLOCK)
    entry = job.ledger.entry("prototypes", 0)
    counts = entry["count"].reshape(2, 3)
    for n, checkpoint in enumerate(checkpoints):
        expected, cells = loop_prototypes(checkpoint)
        assert np.array_equal(counts[n], cells.numpy())
        got = np.split(entry["sum"], 2)[n].reshape(3, -1) / counts[n][:, None]
        np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_source_images_that_cannot_be_read_are_in_no_prototype(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The phase without Ray: five images, of which one is broken, then all."""
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    job = work(tmp_path, checkpoint)
    source = make_dataset(tmp_path / "source", "source", train=5, val=0)

    def here(ledger: Ledger, phase: str, *, fn: object, fn_constructor_args: Any) -> None:
        PrototypeActor(*fn_constructor_args)({"block": np.arange(ledger.blocks)})

    monkeypatch.setattr(phases, "run_phase", here)
    monkeypatch.setattr(phases, "actor_pool", lambda inference: ({}, 1))
    (tmp_path / "source" / "images" / "004.png").write_bytes(b"broken")
    ((prototypes, present),), failed = phases.source_prototypes(job, source)
    np.testing.assert_allclose(prototypes, loop_prototypes(checkpoint)[0].numpy(), rtol=1e-4, atol=1e-5)
    assert present.all()
    ((image_id, uri, reason),) = failed
    assert image_id == "004" and uri.endswith("source/images/004.png") and "004.png" in reason

    for n in range(4):
        (tmp_path / "source" / "images" / f"{n:03d}.png").write_bytes(b"broken")
    with pytest.raises(DatasetError, match=r"none of the source's images could be read: .*000\.png"):
        phases.source_prototypes(replace(job, out=str(tmp_path / "other")), source)


@pytest.mark.full
def test_a_job_labels_by_prototypes(tmp_path: Path, ray_session: None) -> None:
    """A source image that cannot be decoded is in no prototype, and listed."""
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    dataset = make_dataset(tmp_path / "data", "source", train=4, val=0)
    source = make_dataset(tmp_path / "source", "source", train=5, val=0)
    (tmp_path / "source" / "images" / "004.png").write_bytes(b"broken")
    pseudo_label(
        checkpoint=checkpoint,
        images=dataset,
        out=str(tmp_path / "out"),
        source=source,
        rules=PseudoLabel(measure="prototype", rule="fixed", threshold=0.4, temperature=0.5),
        inference=Inference(gpu=False),
        block_size=2,
    )
    prototypes, _ = loop_prototypes(checkpoint)
    network, card = load_model(checkpoint)
    classifier = PrototypeClassifier(network, prototypes, torch.ones(3, dtype=torch.bool), 0.5)
    kept = 0.0
    for n in range(4):
        confidence, label = predict(classifier, pixels(n), short_side=card.short_side)[0].max(0)
        expected = np.where(confidence >= 0.4, label, 255)
        assert (png(tmp_path, "labels", n) != expected).mean() < 0.01
        kept += float((expected != 255).mean()) / 4
    assert 0.05 < kept < 0.95, "or nothing is tested"
    (failed,) = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert failed["image_uri"].endswith("source/images/004.png") and failed["kind"] == "source"
    assert "004.png" in failed["reason"]


def test_an_actor_that_was_lost_reads_apart_only_until_a_block_is_done(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a node that was lost no image is to blame, and a process for each image is slow."""
    monkeypatch.setattr(actors, "_was_restarted", lambda: True)
    job = work(tmp_path, make_checkpoint(tmp_path / "0", 0), rules=PseudoLabel(rule="soft"))
    actor = PredictActor(job, 1)
    assert isinstance(actor.read_image, actors._IsolatedReader)
    actor(BLOCK)
    assert actor.read_image is actors.read_image


@pytest.mark.parametrize("rule", ["soft", "any_class", "top1", "fixed"])
def test_what_networks_disagree_on_is_dropped_by_every_rule(rule: Any, tmp_path: Path) -> None:
    checkpoints = [make_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1)]
    job = work(tmp_path, *checkpoints, rules=PseudoLabel(rule=rule, image_share=1.0), truth=CLASSES)
    PredictActor(job, 1)(BLOCK)
    thresholds = np.zeros(3, np.float32)
    if rule == "any_class":
        PredictActor(job, 1, thresholds)(BLOCK)
    else:
        apply_thresholds(job, thresholds)(BLOCK)
    networks = [load_model(uri) for uri in checkpoints]
    counts = job.ledger.entry("label", 0)["right"].reshape(4, 4)
    for n in range(4):
        found = [predict(n_, pixels(n), short_side=card.short_side)[0] for n_, card in networks]
        first, second = (one.argmax(0) for one in found)
        agree = (first == second).numpy()
        right = (found[0] + found[1]).argmax(0).numpy() == draw("source", n)[1]
        parts = (agree & right, agree, ~agree & right, ~agree)
        assert counts[n].tolist() == [part.sum() for part in parts], "of what is dropped too"
        assert 0 < agree.mean() < 1, "or nothing is tested"
        assert np.array_equal(png(tmp_path, "labels", n) != 255, agree)
        assert np.array_equal(png(tmp_path, "labels", n)[agree], first.numpy()[agree])


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
def test_reliability_is_that_of_all_known_pixels(measure: Any, tmp_path: Path) -> None:
    """Of probabilities, whatever decides what is kept, and of what is dropped too."""
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    job = work(tmp_path, checkpoint, rules=PseudoLabel(rule="fixed", measure=measure), truth=CLASSES)
    PredictActor(job, 1)(BLOCK)
    middle = np.median(decode_confidence(png(tmp_path, job.plane, 0)))
    apply_thresholds(job, np.full(3, middle, np.float32))(BLOCK)
    found = job.ledger.entry("label", 0)["reliability"].reshape(20, 3)
    expected = np.zeros((20, 3))
    for n in range(4):
        sure = decode_confidence(png(tmp_path, "confidence", n))
        right = png(tmp_path, "predictions", n) == draw("source", n)[1]
        for confidence, correct in zip(sure.ravel(), right.ravel(), strict=True):
            expected[min(19, int(confidence * 20))] += 1, correct, confidence
        assert 0 < (png(tmp_path, "labels", n) == 255).mean() < 1, "or nothing is tested"
    np.testing.assert_allclose(found, expected, rtol=1e-5)


def test_label_maps_have_the_palette_of_the_classes(tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), rules=PseudoLabel(rule="soft"))
    PredictActor(job, 1)(BLOCK)
    apply_thresholds(job, np.zeros(3, np.float32))(BLOCK)
    for kind in ("labels", "predictions"):
        with Image.open(tmp_path / "out" / kind / "000.png") as image:
            assert image.mode == "P"
            assert image.getpalette()[:9] == [value for colour in CLASSES.palette for value in colour]  # type: ignore[index]


def test_the_least_and_the_most_certain_images_are_found_over_chunks() -> None:
    certain = [(0.1 * n, f"{n:02d}", n // 10) for n in np.random.default_rng(0).permutation(30).tolist()]
    total = PredictionTotals()
    for chunk in (certain[:12], certain[12:]):
        total.add(PredictionTotals(0, [], set(), chunk, chunk))
    in_order = sorted(certain)
    assert total.least == in_order[: len(total.least)] and total.most == in_order[::-1][: len(total.most)]
    assert len(total.least) == len(total.most) == EXAMPLES < 30


def test_each_domain_has_its_own_stem(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The target's, unless told, wherever images are predicted; the source's where prototypes are made of it."""
    model = Model(backbone="resnet10t", head_channels=8, per_domain="stem")
    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head_channels=8, per_domain="stem").eval()
    torch.nn.init.normal_(network.net.head.classify.weight, std=2.0)  # type: ignore[union-attr, arg-type]
    for name, parameter in network.named_parameters():
        if "target" in name:
            torch.nn.init.normal_(parameter, std=0.3)
    card = ModelCard(model=model, classes=CLASSES, short_side=40, recipe="none", stage="none", step=0)
    save_model(tmp_path / "model", network, card)
    uri = str(tmp_path / "model")
    of = {d: predict(network, pixels(0), short_side=40, domain=d)[0] for d in ("source", "target")}  # type: ignore[arg-type]
    assert (of["source"].argmax(0) != of["target"].argmax(0)).float().mean() > 0.05, "or nothing is tested"
    label = udaseg.load(uri).predict(draw("source", 0)[0]).label
    assert np.array_equal(label, of["target"].argmax(0).numpy())
    exported = exporting.ImageToLabel(network, card)(torch.tensor(draw("source", 0)[0])[None])[0][0]
    assert torch.equal(exported.long(), of["target"].argmax(0))

    job = work(tmp_path, uri, truth=CLASSES, rules=PseudoLabel(rule="soft"))
    PredictActor(job, 1)(BLOCK)
    assert np.array_equal(png(tmp_path, "predictions", 0), of["target"].argmax(0).numpy())
    PrototypeActor(job, 1)(BLOCK)
    entry = job.ledger.entry("prototypes", 0)
    expected = loop_prototypes(uri)[0]
    got = entry["sum"].reshape(3, -1) / entry["count"][:, None]
    np.testing.assert_allclose(got, expected.numpy(), rtol=1e-4, atol=1e-5)


def test_prototypes_wait_for_a_source_that_is_away(tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), truth=CLASSES)
    (tmp_path / "data" / "images").rename(tmp_path / "away")
    with pytest.raises(UnreachableError, match=r"prototypes are made of it: run the same again"):
        PrototypeActor(job, 1)(BLOCK)
    assert job.ledger.committed("prototypes") == set()


def test_probabilities_of_all_classes_are_stored_and_streamed(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    job = work(tmp_path, checkpoint, rules=PseudoLabel(rule="fixed", threshold=0.5, distribution=True))
    PredictActor(job, 1)(BLOCK)
    apply_thresholds(job, np.full(3, 0.5, np.float32))(BLOCK)
    write_dataset(job.out, label_chunk(job.ledger, [0], True)[0], CLASSES)
    network, card = load_model(checkpoint)
    index = open_index(job.out)
    for n in range(4):
        probability = predict(network, pixels(n), short_side=card.short_side)
        expected = torch.nn.functional.adaptive_avg_pool2d(probability, (5, 7))[0]
        found = decode_distribution(index.distribution(n))
        np.testing.assert_allclose(found, expected.numpy(), rtol=1e-3, atol=1e-6)
    stream = StreamPlan(directory=job.out, labelled=True, distribution=True)
    plan = Plan(seed=0, batch_size=1, steps=4, crop=(40, 56), short_side=40, scale=(1, 1), streams={"target": stream})
    sample = plan.load(0)
    row = next(n for n in range(4) if np.array_equal(index.image(n), sample["target_image"]))
    np.testing.assert_allclose(
        decode_distribution(sample["target_distribution"]), decode_distribution(index.distribution(row)), rtol=1e-3
    )
    assert (sample["target_label"] == IGNORE).any() and plan.empty()["target_distribution"].shape == (3, 5, 7)
    Image.fromarray(np.zeros((5, 7), np.uint16)).save(tmp_path / "out" / "distribution" / "000.png")
    with pytest.raises(DatasetError, match=r"000\.png: 7 x 5 .* not 3 classes of 7 x 5; label the images anew"):
        index.distribution(0)


def test_where_networks_disagree_nothing_is_known_of_any_class(tmp_path: Path) -> None:
    checkpoints = [make_checkpoint(tmp_path / str(seed), seed) for seed in (0, 1)]
    job = work(tmp_path, *checkpoints, rules=PseudoLabel(rule="soft", distribution=True))
    PredictActor(job, 1)(BLOCK)
    apply_thresholds(job, np.zeros(3, np.float32))(BLOCK)
    write_dataset(job.out, label_chunk(job.ledger, [0], True)[0], CLASSES)
    index, networks, nothing = open_index(job.out), [load_model(uri) for uri in checkpoints], 0
    for n in range(4):
        first, second = (predict(n_, pixels(n), short_side=card.short_side) for n_, card in networks)
        agree = (first.argmax(1) == second.argmax(1)).float()[:, None]
        expected = torch.nn.functional.adaptive_avg_pool2d((first + second) / 2 * agree, (5, 7))[0].numpy()
        found = decode_distribution(index.distribution(n))
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-6)
        assert ((found.sum(0) == 0) == (expected.sum(0) == 0)).all()
        nothing += int((found.sum(0) == 0).sum())
    assert nothing, "or nothing is tested"


def test_the_teacher_and_the_student_of_a_checkpoint_predict(tmp_path: Path) -> None:
    recipe = tiny_recipe("dacs_small")
    stage = recipe.stages[-1]
    state = build_state(stage, 3, seed=0, init=None, device=torch.device("cpu"), bf16=False)
    with torch.no_grad():
        for parameter in state.method.teacher.network.parameters():
            parameter.mul_(0.9)
    folder = tmp_path / "checkpoint"
    card = ModelCard(model=stage.model, classes=CLASSES, short_side=40, recipe="none", stage="none", step=0)
    save_model(folder, state.method.predictor, card)
    state.save(folder / "state.pt")
    image = pixels(0)
    got = {}
    for part in ("student", "teacher"):
        network, _ = load_model(str(folder), part)  # type: ignore[arg-type]
        mine = state.method.student if part == "student" else state.method.teacher.network
        got[part] = predict(network, image, short_side=40)
        assert torch.allclose(got[part], predict(mine.eval(), image, short_side=40), atol=1e-5)
    assert not torch.allclose(got["student"], got["teacher"], atol=1e-3)
    assert not load_model(str(folder), "teacher")[0].training


def test_a_block_that_is_entered_is_not_done_again(tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0))
    actor = PredictActor(job, 1)
    first = actor(BLOCK)
    written = (tmp_path / "out" / "predictions" / "000.png").stat().st_mtime_ns
    assert {k: v.tolist() for k, v in actor(BLOCK).items()} == {k: v.tolist() for k, v in first.items()}
    assert (tmp_path / "out" / "predictions" / "000.png").stat().st_mtime_ns == written


def test_cityscapes_folders_are_read_back_as_cityscapes(tmp_path: Path) -> None:
    """By our own reader of the official layout, with Cityscapes' label ids."""
    classes = replace(CITYSCAPES_CLASSES, raw_to_train={})
    label = np.array([[0, 13, 18], [255, 1, 2]], np.uint8)
    for image_id in ("zurich/zurich_000001_leftImg8bit", "lonely"):
        names = export.names("cityscapes", image_id, "train", f"/{image_id}.png", classes)
        for path, lookup in names.labels.items():
            (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(label if lookup is None else lookup[label]).save(tmp_path / path)
        (tmp_path / str(names.image)).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (3, 2)).save(tmp_path / str(names.image))
    pairs = sorted(LAYOUTS["cityscapes"].pairs(str(tmp_path)))
    assert [pair.image_id for pair in pairs] == ["fleet/lonely", "zurich/zurich_000001"]
    for pair in pairs:
        assert pair.image_uri and pair.label_uri and read_image(pair.image_uri).shape == (2, 3, 3)
        raw = np.asarray(Image.open(pair.label_uri))
        assert raw.tolist() == [[7, 26, 33], [0, 8, 11]]
        assert np.array_equal(CITYSCAPES_CLASSES.lookup()[raw], label)


def test_other_classes_keep_their_train_ids(tmp_path: Path) -> None:
    names = export.names("cityscapes", "a/b", "val", "/a/b.jpg", CLASSES)
    assert names.image == "leftImg8bit/val/a/b_leftImg8bit.png" and set(names.labels.values()) == {None}
    coco = export.names("coco_stuff", "a/b", "val", "/a/b.jpg", CLASSES)
    assert coco.image == "images/val/a/b.jpg" and list(coco.labels) == ["annotations/val/a/b.png"]
    assert export.suffix_of("s3://bucket/a/b.jpg?region=x") == export.suffix_of("/v1.2?/what?.jpg") == ".jpg"


def test_a_submission_holds_every_pixel_without_a_palette(tmp_path: Path) -> None:
    classes = Classes(names=("sky", "road"), palette=((1, 2, 3), (4, 5, 6)))
    job = replace(work(tmp_path, make_checkpoint(tmp_path / "model", 0)), classes=classes, layouts=("submission",))
    prediction = np.array([[0, 1, 1], [1, 0, 0]], np.uint8)
    label = np.array([[255, 1, 255], [1, 255, 0]], np.uint8)
    row = {"image_id": "night/a", "image_uri": str(tmp_path / "a_rgb_anon.png"), "split": "test", "label_uri": None}
    write_label(job, row, label, prediction, np.ones((2, 3), np.float32))
    files = [path for path in (tmp_path / "out" / "submission").rglob("*") if path.is_file()]
    assert [path.name for path in files] == ["a_rgb_anon.png"]
    image = Image.open(files[0])
    assert image.mode == "L" and np.asarray(image).tolist() == [[10, 0, 0], [0, 10, 10]]
    assert np.array_equal(np.asarray(Image.open(tmp_path / "out" / "labels" / "night" / "a.png")), label)


def test_a_network_of_two_scales_labels_too(tmp_path: Path) -> None:
    from udaseg.models.build import build_segmenter

    torch.manual_seed(0)
    network = build_segmenter(3, backbone="resnet10t", head_channels=16, detail_crop=(32, 32))
    model = Model(backbone="resnet10t", head_channels=16, detail_crop=(32, 32))
    card = ModelCard(model=model, classes=CLASSES, short_side=40, recipe="none", stage="none", step=0)
    save_model(tmp_path / "model", network, card)
    job = work(tmp_path, str(tmp_path / "model"), inference=Inference(gpu=False, batch_size=2, window=(32, 32)))
    PredictActor(job, 1)(BLOCK)
    expected = predict(network.eval(), pixels(2), short_side=40, window=(32, 32))[0].argmax(0).numpy()
    assert (png(tmp_path, "predictions", 2) == expected).mean() > 0.99


def test_where_nothing_is_said_every_pixel_above_its_class_s_threshold_is_kept(tmp_path: Path) -> None:
    """At least half of every class, and what is surer than 0.9; the rest is ignored."""
    assert LabelArguments(checkpoint="a", images="b", out="c").rules == DEFAULT_RULES
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), rules=DEFAULT_RULES)
    PredictActor(job, 1)(BLOCK)
    thresholds = phases.class_thresholds(DEFAULT_RULES, tally_chunk(job.ledger, [0], 3).histogram)
    apply_thresholds(job, thresholds)(BLOCK)
    kept, predicted = np.zeros(3), np.zeros(3)
    for n in range(4):
        prediction, label = (png(tmp_path, kind, n) for kind in ("predictions", "labels"))
        confidence = decode_confidence(png(tmp_path, "confidence", n))
        assert np.array_equal(label, np.where(confidence >= thresholds[prediction], prediction, IGNORE))
        assert (label[confidence >= 0.9] != IGNORE).all()
        predicted += np.bincount(prediction.ravel(), minlength=3)
        kept += np.bincount(label.ravel(), minlength=256)[:3]
    seen = predicted > 0
    assert (kept[seen] >= predicted[seen] // 2).all() and 0 < kept.sum() < predicted.sum()
    assert (thresholds[seen] <= np.float32(0.9)).all()
