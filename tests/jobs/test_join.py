"""`udaseg join`: several datasets as one, whose labels are read as each dataset's own are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, digests, make_checkpoint, make_dataset, tiny_recipe

from pipelines.join import main
from udaseg.checkpoints.directory import load_model, read_card, save_model
from udaseg.data.classes import Classes, of_color_labels, read_classes
from udaseg.data.dataset_input import read_class_list
from udaseg.data.index import open_index
from udaseg.data.listing import list_images
from udaseg.data.manifest import MANIFEST, PSEUDO_MANIFEST, read_manifest, write_dataset
from udaseg.data.plan import draw_row
from udaseg.errors import ConfigError, DatasetError
from udaseg.job_config import Adapt, Cluster
from udaseg.jobs import preflight
from udaseg.jobs.adapt.inputs import make_inputs
from udaseg.jobs.join_datasets import join_datasets
from udaseg.jobs.prepare import prepare
from udaseg.jobs.pseudo_label.tasks import read_truth
from udaseg.jobs.train import make_plan

RAW = replace(CLASSES, raw_to_train={7: 0, 23: 1, 26: 2, 9: 255})
COLOURS = of_color_labels(CLASSES, "palette")
RED = replace(CLASSES, raw_to_train={1: 0, 2: 1, 3: 2, 0: 255}, ids_in_red=True)
FORMS = {"ids": CLASSES, "raw": RAW, "colours": COLOURS, "red": RED}


def redrawn(label: np.ndarray, classes: Classes) -> np.ndarray:
    """A label of train ids as the labels of a class list show it."""
    if classes.color_to_train:
        return np.array(classes.palette, np.uint8)[label]
    raw = np.array([{train: raw for raw, train in classes.raw_to_train.items()}.get(k, k) for k in range(3)], np.uint8)
    return np.stack([raw[label], label * 5, label * 7], -1) if classes.ids_in_red else raw[label]


def make_named(folder: Path, name: str, form: str, *, val: int = 2, places: bool = False) -> str:
    """A dataset of a name, whose labels have a form."""
    made = make_dataset(folder, "source", train=3, val=val, places=places)
    for file in sorted((folder / "labels").iterdir()):
        Image.fromarray(redrawn(np.asarray(Image.open(file)), FORMS[form])).save(file)
    manifest = read_manifest(made)
    manifest = manifest.set_column(6, manifest.schema.field("dataset"), [[name] * manifest.num_rows])
    write_dataset(made, manifest, FORMS[form], open_index(made).class_places())
    return made


@pytest.fixture
def parts(tmp_path: Path) -> dict[str, str]:
    return {form: make_named(tmp_path / "parts" / form, form, form) for form in FORMS}


def test_each_label_is_read_as_its_dataset_shows_it(parts: dict[str, str], tmp_path: Path) -> None:
    before = {form: digests(Path(directory)) for form, directory in parts.items()}
    assert main([*parts.values(), "--out", str(tmp_path / "all")]) == 0
    index = open_index(str(tmp_path / "all"))
    assert index.splits == {"train": [0, 12], "val": [12, 20]}
    ids = index.table["image_id"].to_pylist()
    assert sorted(ids) == sorted(f"{form}/{number:03d}" for form in FORMS for number in range(5))
    for row, name in enumerate(ids):
        form, own_id = name.split("/")
        own = open_index(parts[form])
        at = own.table["image_id"].to_pylist().index(own_id)
        assert np.array_equal(index.train_ids(row), own.train_ids(at)) and set(np.unique(own.train_ids(at))) == {
            0,
            1,
            2,
        }
        assert np.array_equal(index.image(row), own.image(at))
        assert index.table["class_pixels"][row] == own.table["class_pixels"][at]
        assert index.table["dataset"][row].as_py() == form
    assert {form: digests(Path(directory)) for form, directory in parts.items()} == before
    classes = read_classes(str(tmp_path / "all"))
    assert classes.names == CLASSES.names and dict(classes.parts) == FORMS
    assert Classes.from_json(classes.to_json()) == classes


def test_counts_of_classes_are_those_of_all(parts: dict[str, str], tmp_path: Path) -> None:
    join_datasets([parts["raw"], parts["red"]], out=tmp_path / "all")
    balanced, rows = open_index(str(tmp_path / "all")).balanced_classes("train")
    assert [len(found) for found in rows] == [6, 6, 6] and len(balanced) == 3
    own = [read_manifest(parts[form])["class_pixels"].to_pylist() for form in ("raw", "red")]
    whole = read_manifest(str(tmp_path / "all"))["class_pixels"].to_pylist()
    assert np.array_equal(np.sum(whole, 0), np.sum([*own[0], *own[1]], 0))


def test_training_draws_from_all(parts: dict[str, str], tmp_path: Path) -> None:
    """Samples are those of datasets of the same images whose labels all hold train ids."""
    twin = make_named(tmp_path / "twin", "raw", "ids")
    join_datasets([parts["ids"], parts["raw"]], out=tmp_path / "all")
    join_datasets([parts["ids"], twin], out=tmp_path / "plain")
    (stage,) = tiny_recipe("source_only_small").stages
    plans = [make_plan(stage, {"source": str(tmp_path / name)}, 3) for name in ("all", "plain")]
    drawn = set()
    for index in range(24):
        own, plain = (plan.load(index) for plan in plans)
        assert own.keys() == plain.keys() and all(np.array_equal(own[key], plain[key]) for key in own)
        row, _ = draw_row(plans[0].streams["source"], index, 3, "source")
        drawn.add(open_index(str(tmp_path / "all")).table["dataset"][row].as_py())
    assert drawn == {"ids", "raw"}


def test_unknown_pixels_may_be_what_their_dataset_never_shows(parts: dict[str, str], tmp_path: Path) -> None:
    lacking = make_named(tmp_path / "lacking", "lacking", "ids")
    write_dataset(lacking, read_manifest(lacking), replace(CLASSES, raw_to_train={0: 0, 1: 1, 2: 255}))
    join_datasets([parts["raw"], lacking], out=tmp_path / "all")
    stage = tiny_recipe("tada_small").stages[-1]
    few = make_dataset(tmp_path / "few", "target", fewshot=2)
    plan = make_plan(stage, {"source": str(tmp_path / "all"), "target": few}, 3)
    streams = replace(plan, streams={"source": plan.streams["source"]})
    found = {}
    for index in range(24):
        row, _ = draw_row(plan.streams["source"], index, 3, "source")
        name = open_index(str(tmp_path / "all")).table["dataset"][row].as_py()
        found[name] = streams.load(index)["source_candidates"].tolist()
    assert found == {"raw": [[0, 0, 0]], "lacking": [[0, 0, 1]]}
    assert streams.empty()["source_candidates"].shape == (1, 3)


def test_a_run_keeps_classes_of_train_ids(parts: dict[str, str], tmp_path: Path) -> None:
    """A model's card does not say how the labels of the datasets show them."""
    join_datasets([parts["ids"], parts["raw"]], out=tmp_path / "all")
    recipe = tiny_recipe("source_only_small")
    classes = preflight.check(recipe, {"source": str(tmp_path / "all"), "target": None}, Cluster())
    assert classes == CLASSES


def test_true_labels_are_read_as_their_dataset_shows_them(parts: dict[str, str], tmp_path: Path) -> None:
    join_datasets([parts["colours"], parts["raw"]], out=tmp_path / "all")
    classes, index = read_classes(str(tmp_path / "all")), open_index(str(tmp_path / "all"))
    for row, listed in enumerate(list_images(str(tmp_path / "all"))):
        assert np.array_equal(read_truth(listed, classes), index.train_ids(row))


def test_where_classes_lie_is_counted_over_all(tmp_path: Path) -> None:
    some = [make_named(tmp_path / form, form, form, places=True) for form in ("ids", "raw")]
    unlabelled = make_dataset(tmp_path / "target", "target", labelled=False)
    join_datasets([*some, unlabelled], out=tmp_path / "all")
    counts = [open_index(directory).class_places() for directory in some]
    found = open_index(str(tmp_path / "all")).class_places()
    assert counts[0] is not None and counts[1] is not None and found is not None
    assert np.array_equal(found, counts[0] + counts[1]) and found.any()
    join_datasets([some[0], make_named(tmp_path / "red", "red", "red")], out=tmp_path / "unknown")
    assert open_index(str(tmp_path / "unknown")).class_places() is None


def test_joined_datasets_join(parts: dict[str, str], tmp_path: Path) -> None:
    join_datasets([parts["ids"], parts["raw"]], out=tmp_path / "two")
    join_datasets([tmp_path / "two", parts["red"]], out=tmp_path / "three")
    join_datasets([parts["ids"], parts["raw"], parts["red"]], out=tmp_path / "at_once")
    assert read_manifest(str(tmp_path / "three")).equals(read_manifest(str(tmp_path / "at_once")))
    assert read_classes(str(tmp_path / "three")) == read_classes(str(tmp_path / "at_once"))


def test_images_without_labels_and_pseudo_labels_join(parts: dict[str, str], tmp_path: Path) -> None:
    """What one of them lacks is missing in its rows, and nowhere else."""
    pseudo = Path(make_dataset(tmp_path / "pseudo", "target", train=2, val=0))
    manifest = read_manifest(str(pseudo)).to_pylist()
    for row in manifest:
        row |= {"confidence_uri": f"confidence/{row['image_id']}.png", "dataset": "pseudo"}
    write_dataset(str(pseudo), pa.Table.from_pylist(manifest, PSEUDO_MANIFEST), CLASSES)
    unlabelled = make_dataset(tmp_path / "target", "target", train=1, val=0, labelled=False)
    join_datasets([parts["raw"], pseudo, unlabelled], out=tmp_path / "all")
    rows = {row["image_id"]: row for row in read_manifest(str(tmp_path / "all")).to_pylist()}
    assert len(rows) == 5 + 2 + 1
    assert rows["raw/000"]["confidence_uri"] is None and rows["target/000"]["label_uri"] is None
    assert rows["pseudo/001"]["confidence_uri"] == str(pseudo / "confidence" / "001.png")
    index = open_index(str(tmp_path / "all"))
    assert index.lacks("train", "confidence_uri") and index.lacks("train", "label_uri")


@pytest.mark.usefixtures("ray_session")
def test_a_class_list_of_joined_datasets_is_none_of_their_labels(parts: dict[str, str], tmp_path: Path) -> None:
    """`udaseg adapt` gives it to a target's bare folder, whose name may be that of a joined dataset."""
    join_datasets([parts["ids"], parts["raw"]], out=tmp_path / "all")
    images = tmp_path / "parts" / "ids"
    given = {"images": str(images / "images"), "labels": str(images / "labels")}
    prepare(**given, classes=str(tmp_path / "all" / "classes.json"), out=str(tmp_path / "raw"))
    assert not read_classes(str(tmp_path / "raw")).parts
    assert np.array_equal(open_index(str(tmp_path / "raw")).train_ids(0), open_index(parts["ids"]).train_ids(0))


def test_a_card_with_the_class_list_of_joined_datasets_is_read(parts: dict[str, str], tmp_path: Path) -> None:
    """That which `udaseg import --classes` writes; a card says nothing of labels."""
    join_datasets([parts["ids"], parts["raw"]], out=tmp_path / "all")
    network, card = load_model(make_checkpoint(tmp_path / "any", 0))
    classes = read_class_list(str(tmp_path / "all" / "classes.json"))
    save_model(tmp_path / "model", network, replace(card, classes=classes))
    assert read_card(str(tmp_path / "model")).classes == CLASSES


def test_images_held_out_of_a_joined_dataset_keep_their_labels(parts: dict[str, str], tmp_path: Path) -> None:
    source = tmp_path / "all"
    join_datasets([make_named(tmp_path / form, form, form, val=0) for form in ("colours", "raw")], out=source)
    told = Adapt(source=str(source), target=parts["ids"], out=str(tmp_path / "out"))
    (tmp_path / "out").mkdir()
    inputs = make_inputs(told, str(tmp_path / "out"))
    assert inputs.source == str(tmp_path / "out" / "data" / "source")
    own, joined = open_index(inputs.source), open_index(str(source))
    assert own.splits.keys() == {"train", "val"}
    of_joined = {name: row for row, name in enumerate(joined.table["image_id"].to_pylist())}
    for row, name in enumerate(own.table["image_id"].to_pylist()):
        assert np.array_equal(own.train_ids(row), joined.train_ids(of_joined[name]))


def test_what_cannot_be_joined_is_refused_by_name(parts: dict[str, str], tmp_path: Path) -> None:
    out, ids, raw = tmp_path / "out", parts["ids"], parts["raw"]
    others = replace(CLASSES, names=("ground", "box", "sky"))
    mapped = replace(CLASSES, unions=((0, 2),))
    for name, classes in (("others", others), ("mapped", mapped)):
        make_dataset(tmp_path / name, name, train=1, val=0, classes=classes)
    for name, depth_range in (("near", (0.0, 10.0)), ("far", (0.0, 99.0))):
        made = make_dataset(tmp_path / name, name, train=1, val=0)
        write_dataset(made, read_manifest(made), CLASSES, depth_range=depth_range)
    slashes = [make_dataset(tmp_path / name, name, train=1, val=0) for name in ("a", "a_b")]
    for made, dataset, image_id in zip(slashes, ("a", "a/b"), ("b/c", "c"), strict=True):
        row = read_manifest(made).to_pylist()[0] | {"dataset": dataset, "image_id": image_id}
        write_dataset(made, pa.Table.from_pylist([row], MANIFEST), CLASSES)
    for given, named in (
        ([ids], "two datasets or more"),
        ([ids, tmp_path / "others"], "others: its classes are 'ground', 'box', 'sky'; .*ids has"),
        ([ids, tmp_path / "mapped"], "mapped: its mapping gives a class several names"),
        ([tmp_path / "near", raw, tmp_path / "far"], "near with 0 10 and .*far with 0 99: .*--depth-range"),
        ([ids, raw, f"{ids}/"], "ids/: given twice"),
        ([ids, make_named(tmp_path / "twin", "ids", "raw")], "twin: has images of a dataset 'ids', as .*ids has"),
        (slashes, "two images would have one id"),
        ([ids, tmp_path / "images"], "images"),
    ):
        with pytest.raises(DatasetError, match=named):
            join_datasets(given, out=out)
        assert not out.exists()


def test_a_depth_range_that_one_has_is_that_of_all(parts: dict[str, str], tmp_path: Path) -> None:
    """Images of 8 bits stay as they are."""
    made = make_dataset(tmp_path / "deep", "deep", train=1, val=0)
    write_dataset(made, read_manifest(made), CLASSES, depth_range=(1.0, 2.0))
    join_datasets([parts["ids"], made], out=tmp_path / "all")
    assert open_index(str(tmp_path / "all")).depth_range == (1.0, 2.0)


def test_nothing_is_overwritten_unless_told(parts: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "all"
    join_datasets([parts["ids"], parts["raw"]], out=out)
    before = digests(out)
    with pytest.raises(DatasetError, match="all: there is a dataset in this directory already"):
        join_datasets([parts["ids"], parts["red"]], out=out)
    with pytest.raises(DatasetError, match="all: would be overwritten"):
        join_datasets([out, parts["red"]], out=out, overwrite=True)
    with pytest.raises(ConfigError, match="is no joined dataset's directory"):
        join_datasets([parts["ids"], parts["red"]], out=parts["raw"], overwrite=True)
    assert digests(out) == before
    join_datasets([parts["ids"], parts["red"]], out=out, overwrite=True)
    assert set(read_manifest(str(out))["dataset"].to_pylist()) == {"ids", "red"}
