"""Labelling in this process, without Ray: what jobs write, refuse, go on with, and sum over blocks."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image
from test_label_blocks import BLOCK, loop_prototypes, pixels, png, work
from tiny import CLASSES, digests, draw, make_checkpoint, make_dataset

from udaseg.checkpoints.directory import load_model
from udaseg.components.prototypes import PrototypeClassifier
from udaseg.components.thresholds import class_balanced_thresholds
from udaseg.config import PseudoLabel
from udaseg.data.classes import Classes, read_classes
from udaseg.data.confidence import confidence_histogram, decode_confidence
from udaseg.data.manifest import MANIFEST, read_manifest, write_dataset
from udaseg.errors import DatasetError
from udaseg.evaluation.calibration import reliability_counts
from udaseg.job_config import Inference
from udaseg.jobs.ledger import Ledger, open_ledger
from udaseg.jobs.pseudo_label import job as label_job
from udaseg.jobs.pseudo_label import phases
from udaseg.jobs.pseudo_label.actors import PredictActor, PrototypeActor
from udaseg.jobs.pseudo_label.job import pseudo_label
from udaseg.jobs.pseudo_label.tasks import apply_thresholds, label_chunk, tally_chunk, write_label
from udaseg.models.inference import predict


def test_what_is_summed_over_blocks_is_that_of_all_images(tmp_path: Path) -> None:
    """Histogram, kept pixels, truth and reliability of two blocks; pixels without a known true label do not count."""
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), truth=CLASSES, rules=PseudoLabel(rule="fixed"))
    rows = job.ledger.rows(0)
    job = replace(job, ledger=open_ledger(str(tmp_path / "two"), lambda: iter(rows), block_size=2, job={}))
    truth = {n: draw("source", n)[1].copy() for n in range(4)}
    for n in range(4):
        truth[n][:8], truth[n][8:16] = 255, 77  # ignored, and outside the class list
        Image.fromarray(truth[n]).save(tmp_path / "data" / "labels" / f"{n:03d}.png")
    PredictActor(job, 1)({"block": np.arange(2)})
    totals = tally_chunk(job.ledger, [0, 1], 3)
    middle = np.median([decode_confidence(png(tmp_path, "confidence", n)) for n in range(4)])
    apply_thresholds(job, np.full(3, middle, np.float32))({"block": np.arange(2)})
    table, kept, right, reliability = label_chunk(job.ledger, [0, 1], False)
    histogram, counts, bins = np.zeros((3, 8192)), np.zeros(4), np.zeros((20, 3))
    for n in range(4):
        label, prediction, code = (png(tmp_path, kind, n) for kind in ("labels", "predictions", "confidence"))
        assert table["class_pixels"][n].as_py() == np.bincount(label.ravel(), minlength=256)[:3].tolist()
        known, correct, kept_here = truth[n] < 3, prediction == truth[n], label != 255
        counts += [(known & kept_here & correct).sum(), (known & kept_here).sum(),
                   (known & ~kept_here & correct).sum(), (known & ~kept_here).sum()]  # fmt: skip
        bins += reliability_counts(decode_confidence(code)[known], correct[known])
        histogram += confidence_histogram(prediction, code, 3)
    assert np.array_equal(totals.histogram, histogram)
    assert kept.tolist() == np.sum(table["class_pixels"].to_pylist(), 0).tolist()
    assert right.tolist() == counts.tolist() and counts.all()
    np.testing.assert_allclose(reliability, bins)


@pytest.mark.parametrize("measure", ["confidence", "entropy"])
def test_thresholds_are_those_of_the_plane_that_is_measured(measure: Any, tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), rules=PseudoLabel(measure=measure))
    PredictActor(job, 1)(BLOCK)
    planes = [(png(tmp_path, "predictions", n), png(tmp_path, measure, n)) for n in range(4)]
    expected = sum(confidence_histogram(prediction, code, 3) for prediction, code in planes)
    totals = tally_chunk(job.ledger, [0], 3)
    assert np.array_equal(totals.histogram, expected)
    certainty = {f"{n:03d}": decode_confidence(code).mean() for n, (_, code) in enumerate(planes)}
    assert {i: c for c, i, _ in totals.most} == pytest.approx(certainty)


@pytest.mark.parametrize("rule", ["any_class", "top1"])
def test_an_image_that_cannot_be_read_has_no_label_by_any_rule(rule: Any, tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), rules=PseudoLabel(rule=rule))
    (tmp_path / "data" / "images" / "002.png").write_bytes(b"broken")
    assert PredictActor(job, 1)(BLOCK)["failed"].tolist() == [1]
    thresholds = np.zeros(3, np.float32)
    label = PredictActor(job, 1, thresholds) if rule == "any_class" else apply_thresholds(job, thresholds)
    label(BLOCK)
    assert job.ledger.entry("label", 0)["image_id"] == ["000", "001", "003"]


def test_pixels_of_the_source_that_are_ignored_are_in_no_prototype(tmp_path: Path) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0), truth=CLASSES)
    for n in range(4):
        label = draw("source", n)[1]
        Image.fromarray(np.where(label == 2, 255, label).astype(np.uint8)).save(
            tmp_path / "data" / "labels" / f"{n:03d}.png"
        )
    PrototypeActor(job, 1)(BLOCK)
    entry = job.ledger.entry("prototypes", 0)
    _expected, cells = loop_prototypes(job.checkpoints[0])
    assert entry["count"].tolist() == [cells[0], cells[1], 0]
    assert not entry["sum"].reshape(3, -1)[2].any()


def test_prototypes_classify_with_the_rules_temperature_and_the_classes_that_are_there(tmp_path: Path) -> None:
    checkpoint = make_checkpoint(tmp_path / "model", 0)
    prototypes, there = loop_prototypes(checkpoint)[0], torch.tensor([True, True, False])
    given = ((prototypes.numpy(), there.numpy()),)
    job = work(tmp_path, checkpoint, prototypes=given, rules=PseudoLabel(measure="prototype", temperature=0.5))
    PredictActor(job, 1)(BLOCK)
    network, card = load_model(checkpoint)
    classifier = PrototypeClassifier(network, prototypes, there, 0.5)
    for n in range(4):
        confidence, label = predict(classifier, pixels(n), short_side=card.short_side)[0].max(0)
        assert np.array_equal(png(tmp_path, "predictions", n), label.numpy()) and (label != 2).all()
        np.testing.assert_allclose(decode_confidence(png(tmp_path, "confidence", n)), confidence, atol=1e-3)


def test_layouts_hold_their_own_ids(tmp_path: Path) -> None:
    """Cityscapes' tools read label ids: 7 is road, 23 sky, 26 car."""
    classes = Classes(names=("road", "sky", "car"), palette=CLASSES.palette)
    job = replace(work(tmp_path), classes=classes, layouts=("cityscapes",))
    row, label = job.ledger.rows(0)[0], draw("source", 0)[1]
    label[0] = 255
    write_label(job, row, label, label, np.ones(label.shape, np.float32))
    folder = tmp_path / "out" / "cityscapes" / "gtFine" / "train" / "fleet"
    found = {kind: np.asarray(Image.open(folder / f"000_gtFine_{kind}.png")) for kind in ("labelIds", "labelTrainIds")}
    assert np.array_equal(found["labelTrainIds"], label)
    assert np.array_equal(found["labelIds"], np.array([7, 23, 26] + [0] * 253, np.uint8)[label])


def test_how_many_images_may_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """1 is an image, what is below a share of all; what failed before the job was killed counts."""
    monkeypatch.setattr(phases, "each_chunk", lambda task, ledger, blocks: [task(ledger, blocks)])
    common = {"image_uri": "a", "label_uri": None, "dataset": "d", "split": "s"}
    images = [common | {"image_id": str(n)} for n in range(10)]
    ledger = open_ledger(str(tmp_path / "job"), lambda: iter(images), block_size=2, job={})

    def add(most: float, *failed: int) -> None:
        limit = phases.FailureLimit(most, ledger)
        for one in failed:
            limit.add(one)

    add(1, 1), add(0.2, 1, 1)
    for most, failed in ((1, (1, 1)), (0.2, (1, 1, 1)), (0, (1,))):
        with pytest.raises(DatasetError, match=f"{sum(failed)} images could not be read, more than --max-failed"):
            add(most, *failed)
    hundred = open_ledger(str(tmp_path / "hundred"), lambda: iter(10 * images), block_size=2, job={})
    phases.FailureLimit(0.29, hundred).add(29)
    with pytest.raises(DatasetError, match="30 images could not be read"):
        phases.FailureLimit(0.29, hundred).add(30)
    ledger.commit("predict", 3, {"image_id": [], "failed_id": ["6", "7"]})
    add(2)
    with pytest.raises(DatasetError, match="2 images could not be read"):
        phases.FailureLimit(1, ledger)


def test_thresholds_follow_all_of_the_rules() -> None:
    histogram = np.zeros((2, 8192), np.int64)
    histogram[0, [100, 4000]] = 50, 50
    histogram[1, [100, 200]] = 2, 3  # of 5 pixels a share of 0.1 is none
    for rules in (PseudoLabel(cap=0.3), PseudoLabel(rare_class="keep_all"), PseudoLabel()):
        expected = class_balanced_thresholds(histogram, rules.share, cap=rules.cap, rare_class=rules.rare_class)
        assert phases.class_thresholds(rules, histogram).tolist() == expected.tolist()
    fixed = phases.class_thresholds(PseudoLabel(rule="fixed", threshold=0.7), histogram)
    assert fixed.tolist() == [np.float32(0.7)] * 2


@pytest.fixture
def here(monkeypatch: pytest.MonkeyPatch) -> None:
    """A labelling job in this process, without Ray."""

    def run(ledger: Ledger, phase: str, limit: Any = None, *, fn: Any, fn_constructor_args: Any = (), **_: Any) -> None:
        do = fn(*fn_constructor_args) if fn_constructor_args else fn
        for block in sorted({*range(ledger.blocks)} - ledger.committed(phase)):
            done = do({"block": np.array([block])})
            if limit is not None:
                limit.add(int(done["failed"].sum()))

    def each(task: Any, ledger: Ledger, blocks: Any, *more: Any) -> Any:
        yield task(ledger, list(blocks), *more)

    for module in (phases, label_job):
        monkeypatch.setattr(module, "run_phase", run)
        monkeypatch.setattr(module, "each_chunk", each)
        monkeypatch.setattr(module, "actor_pool", lambda inference: ({}, 1))
    monkeypatch.setattr(label_job, "ensure_ray", lambda: None)
    monkeypatch.setattr(label_job, "check_nodes", lambda *_: None)


def test_a_source_lacks_labels_and_classes_and_has_a_range_of_its_own(tmp_path: Path, here: None) -> None:
    job = work(tmp_path, make_checkpoint(tmp_path / "model", 0))
    rows = []
    for n in range(4):
        image, label = draw("source", n)
        deep = (image[..., 0].astype(np.uint16) * 16).clip(0, 4000)
        Image.fromarray(deep).save(tmp_path / f"{n}.png")
        Image.fromarray(np.where(label == 2, 0, label).astype(np.uint8)).save(tmp_path / f"label{n}.png")
        label_uri = None if n in (0, 3) else str(tmp_path / f"label{n}.png")
        rows.append({"image_id": str(n), "image_uri": str(tmp_path / f"{n}.png"), "label_uri": label_uri})
        rows[-1] |= {"height": 40, "width": 56, "dataset": "d", "split": "train"}
        rows[-1] |= {"class_pixels": None if label_uri is None else [1, 1, 0]}
    source = str(tmp_path / "deep")
    write_dataset(source, pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES, depth_range=(0.0, 4000.0))
    ((prototypes, present),), failed = phases.source_prototypes(job, source)
    assert failed == [] and present.tolist() == [True, True, False]
    assert np.isfinite(prototypes).all()


def settings(tmp_path: Path, **changes: Any) -> dict[str, Any]:
    given = {"checkpoint": tmp_path / "model", "images": tmp_path / "data", "out": tmp_path / "out"}
    return given | {"inference": Inference(gpu=False), "source": tmp_path / "data"} | changes


def test_a_job_is_not_gone_on_with_by_others_means(tmp_path: Path, here: None) -> None:
    """Labels of two checkpoints, views or layouts would lie in one dataset."""
    make_checkpoint(tmp_path / "model", 0)
    make_dataset(tmp_path / "data", "source", train=3, val=0)
    pseudo_label(**settings(tmp_path))
    pseudo_label(**settings(tmp_path))
    others: dict[str, dict[str, Any]] = {
        "inference": {"inference": Inference(gpu=False, flip=True)},
        "truth": {"truth": True},
        "layouts": {"layouts": ("coco_stuff",)},
        "source": {"source": None},
        "rules": {"rules": PseudoLabel(share=0.3)},
    }
    for name, changes in others.items():
        with pytest.raises(DatasetError, match=f"begun with other {name}"):
            pseudo_label(**settings(tmp_path, **changes))
    make_dataset(tmp_path / "other", "source", train=4, val=0)
    pseudo_label(**settings(tmp_path, out=tmp_path / "b", source=tmp_path / "other"))
    make_dataset(tmp_path / "other", "source", train=5, val=0)
    with pytest.raises(DatasetError, match="begun with other source"):
        pseudo_label(**settings(tmp_path, out=tmp_path / "b", source=tmp_path / "other"))
    make_checkpoint(tmp_path / "model", 1)
    with pytest.raises(DatasetError, match="begun with other checkpoint"):
        pseudo_label(**settings(tmp_path))


def test_a_job_that_lacks_a_file_of_its_end_is_finished(tmp_path: Path, here: None) -> None:
    make_checkpoint(tmp_path / "model", 0)
    make_dataset(tmp_path / "data", "source", train=3, val=0)
    shares = pseudo_label(**settings(tmp_path))
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert shares.kept.tolist() == report["kept"] and shares.predicted.tolist() == report["predicted"]
    assert shares.predicted.sum() == 3 * 40 * 56 > shares.kept.sum() > 0
    for name in ("manifest.parquet", "report.json", "report.html"):
        content = (tmp_path / "out" / name).read_bytes()
        (tmp_path / "out" / name).unlink()
        pseudo_label(**settings(tmp_path))
        assert (tmp_path / "out" / name).read_bytes() == content


def test_rules_that_mirror_do(tmp_path: Path, here: None) -> None:
    make_checkpoint(tmp_path / "model", 0)
    make_dataset(tmp_path / "data", "source", train=1, val=0)
    pseudo_label(**settings(tmp_path, rules=PseudoLabel(flip=True)))
    network, card = load_model(str(tmp_path / "model"))
    expected = predict(network, pixels(0), short_side=card.short_side, flip=True)[0].argmax(0)
    assert np.array_equal(png(tmp_path, "predictions", 0), expected.numpy())
    plain = predict(network, pixels(0), short_side=card.short_side)[0].argmax(0)
    assert not torch.equal(plain, expected), "or nothing is tested"


def test_the_dataset_of_labels_maps_no_raw_ids_and_keeps_the_range_of_its_images(tmp_path: Path, here: None) -> None:
    """The labels hold train ids, whatever the labels that the network was trained on held."""
    make_checkpoint(tmp_path / "model", 0)
    card = json.loads((tmp_path / "model" / "model.json").read_text())
    card["classes"]["raw_to_train"] = {"7": 0, "8": 1, "9": 2}
    (tmp_path / "model" / "model.json").write_text(json.dumps(card))
    image = draw("source", 0)[0]
    Image.fromarray(image[..., 0].astype(np.uint16) * 16).save(tmp_path / "0.png")
    row = {"image_id": "0", "image_uri": str(tmp_path / "0.png"), "height": 40, "width": 56, "dataset": "d"}
    table = pa.Table.from_pylist([row | {"split": "train"}], schema=MANIFEST)
    write_dataset(str(tmp_path / "data"), table, CLASSES, depth_range=(0.0, 4000.0))
    pseudo_label(**settings(tmp_path, source=None))
    from udaseg.data.index import open_index

    index = open_index(str(tmp_path / "out"))
    assert index.depth_range == (0.0, 4000.0) and read_classes(str(tmp_path / "out")).raw_to_train == {}
    assert np.array_equal(index.train_ids(0), np.asarray(Image.open(tmp_path / "out" / "labels" / "0.png")))


def test_checkpoints_that_are_to_agree_have_the_same_classes(tmp_path: Path) -> None:
    make_dataset(tmp_path / "data", "source", train=1, val=0)
    for name in ("model", "other"):
        make_checkpoint(tmp_path / name, 0)
    text = (tmp_path / "other" / "model.json").read_text()
    (tmp_path / "other" / "model.json").write_text(text.replace('"box"', '"crate"'))
    with pytest.raises(DatasetError, match=r"other: its classes are .*'crate'"):
        pseudo_label(**settings(tmp_path, agree_with=tmp_path / "other"))
    assert not (tmp_path / "out").exists()


def test_images_of_one_name_in_a_layout_are_refused(tmp_path: Path) -> None:
    make_checkpoint(tmp_path / "model", 0)
    for path in (tmp_path / "data" / "a.png", tmp_path / "data" / "fleet" / "a.png"):
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(draw("source", 0)[0]).save(path)
    with pytest.raises(DatasetError, match=r"would both be .* in layout cityscapes"):
        pseudo_label(**settings(tmp_path, source=None, layouts=("cityscapes",)))
    assert not (tmp_path / "out").exists()


class Killed(Exception):
    pass


@pytest.mark.parametrize("moment", [None, 1, 3, 4, 5])
def test_what_could_not_be_reached_is_tried_again(
    moment: int | None, tmp_path: Path, here: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And a kill at whatever moment of that is made good: thresholds are those of all images."""
    make_checkpoint(tmp_path / "model", 0)
    rows = []
    for n in range(6):
        folder = tmp_path / ("far" if n in (1, 4) else "near")
        folder.mkdir(exist_ok=True)
        Image.fromarray(draw("target", n)[0]).save(folder / f"{n}.png")
        rows.append({"image_id": str(n), "image_uri": str(folder / f"{n}.png"), "height": 40, "width": 56})
        rows[-1] |= {"dataset": "d", "split": "train"}
    write_dataset(str(tmp_path / "data"), pa.Table.from_pylist(rows, schema=MANIFEST), CLASSES)
    words = {"block_size": 2, "rules": PseudoLabel(share=0.3), "source": None}
    pseudo_label(**settings(tmp_path, out=tmp_path / "whole", **words))
    (tmp_path / "far").rename(tmp_path / "away")
    pseudo_label(**settings(tmp_path, **words))
    assert read_manifest(str(tmp_path / "out"))["image_id"].to_pylist() == ["0", "2", "3", "5"]
    failed = json.loads((tmp_path / "out" / "failed.json").read_text())
    assert {row["image_id"]: row["kind"] for row in failed} == {"1": "unreachable", "4": "unreachable"}
    (tmp_path / "away").rename(tmp_path / "far")
    if moment is not None:
        calls, forget = [], Ledger.forget

        def killed(ledger: Ledger, phase: str, block: int) -> None:
            calls.append((phase, block))
            if len(calls) == moment:
                raise Killed
            forget(ledger, phase, block)

        with monkeypatch.context() as patch, pytest.raises(Killed):
            patch.setattr(Ledger, "forget", killed)
            pseudo_label(**settings(tmp_path, **words))
        assert not (tmp_path / "out" / "manifest.parquet").exists()
    pseudo_label(**settings(tmp_path, **words))
    whole, out = digests(tmp_path / "whole"), digests(tmp_path / "out")
    assert {name for name in {*whole, *out} if whole.get(name) != out.get(name)} <= {".udaseg.json"}


def test_chunks_come_in_their_order(ray_session: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of the manifest, whichever task ends first."""
    monkeypatch.setattr(phases, "CHUNK", 2)

    def first_is_slow(ledger: None, blocks: Any) -> list[int]:
        import time

        time.sleep(0.5 if 0 in blocks else 0)
        return list(blocks)

    found = list(phases.each_chunk(first_is_slow, None, range(9)))  # type: ignore[arg-type]
    assert found == [[0, 1], [2, 3], [4, 5], [6, 7], [8]]


def test_a_block_without_a_readable_image_is_a_block(tmp_path: Path, here: None) -> None:
    make_checkpoint(tmp_path / "model", 0)
    make_dataset(tmp_path / "data", "source", train=4, val=0)
    for n in (0, 1):
        (tmp_path / "data" / "images" / f"{n:03d}.png").write_bytes(b"broken")
    pseudo_label(**settings(tmp_path, block_size=2, truth=True))
    assert read_manifest(str(tmp_path / "out"))["image_id"].to_pylist() == ["002", "003"]
