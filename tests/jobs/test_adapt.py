"""`udaseg adapt`: what it chooses, what it is given, what its runs leave behind, and a whole one on a real Ray."""

from __future__ import annotations

import contextlib
import io
import json
import re
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from tiny import CLASSES, digests, draw, make_checkpoint, make_dataset

from pipelines.adapt import main
from udaseg.config import Model, Recipe
from udaseg.data.index import open_index
from udaseg.data.manifest import read_manifest, write_dataset
from udaseg.errors import CheckpointError, ConfigError, DatasetError, LostWorkError, TrainingError
from udaseg.evaluation.verdict import verdict
from udaseg.job_config import Adapt, Cluster, Inference
from udaseg.jobs.adapt import inputs, job, judging
from udaseg.jobs.adapt import machine as machine_module
from udaseg.jobs.adapt import runs as runs_module
from udaseg.jobs.adapt.candidates import RECOMMENDED, SOURCE_FREE, candidate, recipe_names, source_only, warm_start
from udaseg.jobs.adapt.choice import Choice, Images, Machine, choose
from udaseg.jobs.adapt.inputs import Inputs, check_inputs, hold_out, make_inputs, measure
from udaseg.jobs.adapt.job import adapt
from udaseg.jobs.adapt.judging import judged_here
from udaseg.jobs.adapt.machine import find_machine
from udaseg.jobs.adapt.runs import model_of, run_directory, train_all
from udaseg.models.build import build_segmenter
from udaseg.recipes import RECIPES
from udaseg.recipes.common import SMALL

ROOT = Path(__file__).parents[2]
TOLD = Adapt(out="out", source="source", target="target", cluster=Cluster(gpu=False))
IMAGES = Images(short_side=720, long_side=1280, count=3000)
CPU = Machine(memory=None, cores=2, hub=True)
POSSIBLE = [
    name
    for name in RECIPES
    if name.endswith("_small")
    and name not in ("hrda_small", "vfm_small", "clan_small", "supervised_small", "tada_small", "ucd_small")
]


def chosen(told: Adapt = TOLD, machine: Machine = CPU, images: Images = IMAGES, **more: Any) -> Choice:
    return choose(told, machine, images, **more)


# --- the choice -----------------------------------------------------------------------------------------------------


def test_a_larger_gpu_is_given_more() -> None:
    choices = [chosen(machine=Machine(memory=memory, cores=8, hub=True)) for memory in (None, 8.0, 24.0, 80.0)]
    sizes = [c.batch_size * c.crop[0] * c.crop[1] for c in choices]
    assert sizes[0] == min(sizes) and sizes[2] < sizes[3], "of crops, at the same backbone"
    assert [c.model.backbone for c in choices] == ["mobilenetv2_100", "resnet50", "resnet101", "resnet101"]
    assert all(c.model.pretrained for c in choices)


def test_no_crop_is_larger_than_an_image() -> None:
    for short, long in ((40, 56), (227, 320), (512, 1024), (2160, 3840)):
        for machine in (CPU, Machine(memory=80.0, cores=8)):
            c = chosen(machine=machine, images=Images(short_side=short, long_side=long, count=9))
            assert c.short_side <= short and c.crop[0] <= c.short_side
            assert all(side % 16 == 0 for side in c.crop)


def test_crops_of_images_that_are_higher_than_wide_are_so_too() -> None:
    portrait = replace(IMAGES, portrait=True)
    assert chosen(images=portrait).crop == chosen().crop[::-1] and chosen().crop[0] < chosen().crop[1]


def test_a_backbone_that_is_told_fits_every_machine() -> None:
    for memory in (None, 15.8, 80.0):
        c = chosen(replace(TOLD, backbone="mit_b2"), Machine(memory=memory, cores=8, hub=True))
        assert c.model == Model(backbone="mit_b2", pretrained=True)
    known = chosen(replace(TOLD, backbone="resnet50"), Machine(memory=80.0, cores=8, hub=True)).model
    assert (known.head, known.output_stride) == ("aspp", 8)


def test_a_class_that_an_image_is_drawn_for_has_a_share_of_the_crop() -> None:
    c = chosen()
    (stage,) = warm_start(c, 0).stages
    assert stage.data.source is not None
    assert (stage.data.source.rare_min_pixels, stage.data.source.rare_min_crop_pixels) == (
        c.crop[0] * c.crop[1] // 140,
        c.crop[0] * c.crop[1] // 420,
    )


def test_few_images_take_fewer_steps() -> None:
    few = chosen(machine=Machine(memory=80.0, cores=8), images=Images(short_side=720, long_side=1280, count=10))
    assert few.steps == few.warm_steps == 100 * 10 // few.batch_size


def test_without_weights_and_gpu_the_network_learns_from_nothing() -> None:
    for told, machine in ((TOLD, Machine(memory=None, cores=2)), (replace(TOLD, pretrained=False), CPU)):
        c = chosen(told, machine)
        assert c.model.backbone == "test_byobnet" and not c.model.pretrained
    assert "hub cannot be reached" in chosen(machine=Machine(memory=None, cores=2)).reasons["weights"][1]
    given = chosen(replace(TOLD, weights="w.safetensors"), Machine(memory=None, cores=2))
    assert given.model.backbone == "mobilenetv2_100" and given.model.weights == "w.safetensors"


def test_a_hub_that_is_switched_off_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(machine_module.urllib.request, "urlopen", lambda *a, **k: asked.append(a) or io.BytesIO())
    assert find_machine(TOLD).hub and len(asked) == 1
    monkeypatch.setattr(machine_module.constants, "HF_HUB_OFFLINE", True)
    assert not find_machine(TOLD).hub and len(asked) == 1


def test_whatever_is_told_is_taken() -> None:
    told = {"backbone": "resnet18", "short_side": 300, "crop": (64, 96), "batch_size": 3, "lr": 0.5, "steps": 7}
    c = chosen(replace(TOLD, **told, warm_steps=9))
    assert c.model.backbone == "resnet18" and c.optim.lr == 0.5 and c.warm_steps == 9
    assert (c.short_side, c.crop, c.batch_size, c.steps) == (300, (64, 96), 3, 7)
    assert {c.reasons[name][1] for name in (*told, "warm_steps")} == {"as told"}


def test_a_checkpoint_brings_its_network_and_sizes() -> None:
    c = chosen(begun=(Model(backbone="resnet18", head_channels=16), 96))
    assert c.model == Model(backbone="resnet18", head_channels=16) and c.short_side == 96 and c.warm_steps == 0


@pytest.mark.parametrize("memory", [None, 15.8, 39.4, 80.0])
def test_a_checkpoint_is_adapted_by_what_the_machine_holds(memory: float | None) -> None:
    """And learns at the rate of its network; what the table has beside that network is of other machines."""
    for backbone in ("resnet101", "mobilenetv2_100"):
        machine = Machine(memory=memory, cores=8, hub=True)
        alike, c = chosen(machine=machine), chosen(machine=machine, begun=(Model(backbone=backbone), 512))
        assert (c.batch_size, c.steps) == (alike.batch_size, alike.steps) and max(c.crop) <= max(alike.crop)
        assert (c.optim.lr == 6e-5) == (backbone == "resnet101")


def test_cards_have_less_memory_than_they_are_sold_with() -> None:
    sold = {5.8: "resnet50", 14.6: "resnet101", 15.8: "resnet101", 39.4: "resnet101"}
    choices = {memory: chosen(machine=Machine(memory=memory, cores=8, hub=True)) for memory in sold}
    assert {memory: c.model.backbone for memory, c in choices.items()} == sold
    assert choices[39.4].short_side > choices[15.8].short_side


# --- candidates -----------------------------------------------------------------------------------------------------


def test_names_of_candidates() -> None:
    assert recipe_names([], source=True) == [RECOMMENDED] and recipe_names([], source=False) == [SOURCE_FREE]
    assert recipe_names(["sdca", "dacs_small", "sdca"], source=True) == ["sdca_small", "dacs_small"]
    for name in ("hrda", "vfm", "supervised", "source_only", "nothing"):
        with pytest.raises(ConfigError, match=f"no '{name}'; there are .*sdca_small"):
            recipe_names([name], source=True)
    with pytest.raises(ConfigError, match=r"no 'dacs' without a source; there are adabn_small, .*ldbe_small"):
        recipe_names(["dacs"], source=False)


@pytest.mark.parametrize("name", POSSIBLE)
@pytest.mark.parametrize("checkpoint", [None, "/model"])
def test_a_candidate_is_its_recipe_at_the_chosen_size(name: str, checkpoint: str | None) -> None:
    if name == "source_only_small":
        recipe = source_only(chosen(), 3, checkpoint)
    else:
        recipe = candidate(name, chosen(), np.array([9, 5, 1, 2, 7]), 3, checkpoint)
    recipe.check()
    assert recipe.seed == 3
    begun = [stage for stage in recipe.stages if stage.init_from == checkpoint]
    assert len(begun) == 1 and begun[0] is recipe.stages[0]
    own = recipe.stages[0 if checkpoint else 1 :]
    small = [stage for stage in RECIPES[name]().stages if stage.data.domains() != ["source"]]
    for stage, theirs in zip(own, small, strict=name != "source_only_small"):
        assert type(stage.method) is type(theirs.method) and stage.data.streams().keys() == theirs.data.streams().keys()
    for stage in recipe.stages:
        assert stage.model.backbone == "mobilenetv2_100" and stage.data.crop == chosen().crop
        source = stage.data.source
        assert source is None or source.sampling == "rare_class"
        for field in ("things", "long_tail"):
            assert set(getattr(stage.method, field, ())) <= {2, 3}
    if name not in ("adabn_small",):
        assert chosen().steps - len(own) < sum(stage.steps for stage in own) <= chosen().steps


@pytest.mark.parametrize("name", ["dsp_small", "ucda_small"])
@pytest.mark.parametrize(
    ("pixels", "rare"), [([9, 0, 5, 0, 1, 0, 0], (4,)), ([5, 5, 5], ()), ([9, 5, 1, 2, 7], (2, 3)), ([0, 0], ())]
)
def test_rare_classes_are_of_those_that_the_source_has(name: str, pixels: list[int], rare: tuple[int, ...]) -> None:
    recipe = candidate(name, replace(chosen(), model=SMALL), np.array(pixels), 0, None)
    (method,) = {
        getattr(stage.method, {"dsp_small": "long_tail", "ucda_small": "hard"}[name]) for stage in recipe.stages[1:]
    }
    assert method == rare
    for stage in recipe.stages[1:]:
        stage.method.build(build_segmenter(len(pixels), **vars(SMALL)), seed=0)


def test_source_only_trains_as_long() -> None:
    c = chosen()
    warm, more = source_only(c, 0, None).stages
    assert (warm, more.steps) == (warm_start(c, 0).stages[0], c.steps)


# --- inputs ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def no_prepare(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """What `prepare` is asked for, in place of the work."""
    asked: list[dict[str, Any]] = []

    def make(*, out: str, **arguments: Any) -> None:
        asked.append({"out": out, **arguments})
        make_dataset(Path(out), "target", train=12, val=0)

    monkeypatch.setattr("udaseg.jobs.adapt.inputs.prepare", make)
    return asked


def bare(folder: Path, *, labelled: bool, below: str = "") -> Path:
    for kind in ("images", "labels") if labelled else ("images",):
        (folder / below / kind).mkdir(parents=True)
        pixels = draw("source", 0)[kind == "labels"]
        Image.fromarray(pixels).save(folder / below / kind / "a.png")
    return folder


def test_bare_folders_are_prepared(tmp_path: Path, no_prepare: list[dict[str, Any]]) -> None:
    source, target = bare(tmp_path / "source", labelled=True), bare(tmp_path / "target", labelled=False)
    (source / "classes.json").write_text(CLASSES.to_json())
    told = replace(TOLD, source=str(source), target=str(target / "images"))
    check_inputs(told)
    out = str(tmp_path / "out")
    inputs = make_inputs(told, out)
    assert inputs == (f"{out}/data/source", f"{out}/data/target")
    of_source, of_target = no_prepare
    assert of_source["images"] == f"{source}/images" and of_source["labels"] == f"{source}/labels"
    assert (
        of_source["classes"] == f"{source}/classes.json" and of_target["classes"] == f"{out}/data/source/classes.json"
    )
    assert of_target["images"] == f"{target}/images" and "labels" not in of_target
    assert {"train", "val"} <= open_index(inputs.target).splits.keys()
    other = bare(tmp_path / "other", labelled=True)
    (other / "classes.json").write_text(CLASSES.to_json())
    make_inputs(replace(told, source=str(other)), out)  # after one that failed later on, of the wrong folder, say
    assert no_prepare[2]["images"] == f"{other}/images" and no_prepare[2]["overwrite"]


def test_bare_folders_take_a_class_list_by_name(tmp_path: Path, no_prepare: list[dict[str, Any]]) -> None:
    source, target = bare(tmp_path / "source", labelled=True), bare(tmp_path / "target", labelled=False)
    told = replace(TOLD, source=str(source), target=str(target / "images"), classes="cityscapes_train_ids")
    check_inputs(told)
    make_inputs(told, str(tmp_path / "out"))
    assert no_prepare[0]["classes"] == "cityscapes_train_ids"
    with pytest.raises(DatasetError, match="citiscapes: no such file, nor is it cityscapes or cityscapes_train_ids"):
        check_inputs(replace(told, classes="citiscapes"))


def test_what_prepare_refuses_of_a_bare_folder_says_whose_options_mend_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**arguments: Any) -> None:
        raise DatasetError("b.png: cannot be decoded; leave such images out by --on-error skip")

    monkeypatch.setattr("udaseg.jobs.adapt.inputs.prepare", refuse)
    source, target = bare(tmp_path / "source", labelled=True), bare(tmp_path / "target", labelled=True)
    (source / "classes.json").write_text(CLASSES.to_json())
    whose = "--on-error skip. Options named here are those of `udaseg prepare`: run it on {} with them, and give its"
    with pytest.raises(DatasetError, match=re.escape(whose.format(source)) + " --out here$"):
        make_inputs(replace(TOLD, source=str(source), target=str(target)), str(tmp_path / "out"))
    told = replace(TOLD, source=make_dataset(tmp_path / "s", "source"), target=str(target))
    with pytest.raises(DatasetError, match=f"or give {target}/images alone, since a target needs no labels"):
        make_inputs(told, str(tmp_path / "out"))
    split = bare(tmp_path / "split", labelled=True, below="train")
    with pytest.raises(DatasetError, match="or move what labels there are elsewhere, since a target needs none"):
        make_inputs(replace(told, target=str(split)), str(tmp_path / "out"))


def test_label_maps_beside_a_target_s_images_are_no_images(tmp_path: Path) -> None:
    target = bare(tmp_path / "target", labelled=True)
    for kind, name in (("images", "img_dir"), ("labels", "ann_dir")):
        (target / kind).rename(target / name)
    told = replace(TOLD, source=make_dataset(tmp_path / "s", "source"), target=str(target))
    with pytest.raises(DatasetError, match=f"^{target}: holds img_dir/ and ann_dir/, and label maps are no photo"):
        check_inputs(told)
    check_inputs(replace(told, target=str(target / "img_dir")))


def test_folders_with_splits_are_prepared_by_their_layout(tmp_path: Path, no_prepare: list[dict[str, Any]]) -> None:
    source = bare(tmp_path / "source", labelled=True, below="train")
    (source / "classes.json").write_text(CLASSES.to_json())
    told = replace(TOLD, source=str(source), target=str(source))
    make_inputs(told, str(tmp_path / "out"))
    assert no_prepare[0]["layout"] == "folders" and no_prepare[0]["root"] == str(source)


@pytest.mark.parametrize(("below", "layout"), [("train", "folders"), ("drive1", None), ("test", None)])
def test_splits_below_images_are_read_where_train_is_among_them(
    tmp_path: Path, no_prepare: list[dict[str, Any]], below: str, layout: str | None
) -> None:
    source = bare(tmp_path / "source", labelled=True)
    (source / "classes.json").write_text(CLASSES.to_json())
    for kind in ("images", "labels"):
        (source / kind / below).mkdir()
        (source / kind / "a.png").rename(source / kind / below / "a.png")
    told = replace(TOLD, source=str(source), target=str(source))
    check_inputs(told)
    make_inputs(told, str(tmp_path / "out"))
    assert [asked.get("layout") for asked in no_prepare] == [layout, layout]
    assert no_prepare[0].get("root" if layout else "images") == str(source if layout else source / "images")


def test_datasets_with_held_out_images_are_taken_as_they_are(tmp_path: Path) -> None:
    told = replace(TOLD, source=make_dataset(tmp_path / "s", "source"), target=make_dataset(tmp_path / "t", "target"))
    before = digests(tmp_path)
    assert make_inputs(told, str(tmp_path / "out")) == (told.source, told.target)
    found = measure(Inputs(told.source, told.target))
    commonest = np.median([np.bincount(draw("source", n)[1].ravel()).max() for n in range(10)])
    assert found == Images(short_side=40, long_side=56, count=10, commonest_class_pixels=int(commonest))
    assert digests(tmp_path) == before


@pytest.mark.parametrize(
    ("source", "target", "expected"),
    [
        ((240, 320), (227, 320), (240, 320)),  # nearly alike: nothing is shrunk
        ((227, 320), (240, 320), (240, 320)),
        ((1052, 1914), (227, 320), (227, 320)),  # far apart: nothing is enlarged much
        ((227, 320), (1052, 1914), (227, 320)),
    ],
)
def test_sizes_are_the_larger_domain_s_where_they_are_nearly_alike(
    source: tuple[int, int], target: tuple[int, int], expected: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Index:
        def __init__(self, side: tuple[int, int]) -> None:
            self.table = pa.table({"height": [side[0]] * 4 + [9], "width": [side[1]] * 4 + [9]})

        def rows(self, split: str) -> tuple[int, int]:
            return 0, 4

    indices = {"s": Index(source), "t": Index(target)}
    monkeypatch.setattr(inputs, "open_index", indices.get)
    monkeypatch.setattr(inputs, "_class_pixels", lambda source: np.array([[9, 0], [5, 6], [0, 7]]))
    found = measure(Inputs("s", "t"))
    assert found == Images(short_side=expected[0], long_side=expected[1], count=4, commonest_class_pixels=7)
    assert chosen(images=found).rare_min_pixels == 7, "labels are scribbles"
    assert measure(Inputs(None, "t")).short_side == target[0]


def test_a_tenth_is_held_out_in_runs_of_neighbours(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path / "t", "target", train=20, val=0)
    before = digests(tmp_path / "t")
    told = replace(TOLD, source=None, checkpoint=make_checkpoint(tmp_path / "model", 0), target=directory)
    made = make_inputs(told, str(tmp_path / "out")).target
    index = open_index(made)
    assert {name: stop - start for name, (start, stop) in index.splits.items()} == {"train": 16, "val": 4}
    assert index.image(index.rows("val")[0]).shape == (40, 56, 3), "images are found where they are"
    assert digests(tmp_path / "t") == before
    table = read_manifest(directory)
    many = [row | {"image_id": f"{i:05d}"} for i, row in enumerate(table.to_pylist() * 50)]
    rows = hold_out(type(table).from_pylist(many, schema=table.schema), directory).to_pylist()
    held = np.array([row["split"] == "val" for row in rows])
    assert held.mean() == 0.1 and np.abs(np.diff(held.astype(int))).sum() <= 10, "five runs"
    with pytest.raises(DatasetError, match="two at least"):
        hold_out(table.slice(0, 1), directory)


def test_a_source_that_images_are_held_out_of_keeps_where_its_classes_lie(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path / "s", "source", train=10, val=0)
    table, counts = read_manifest(directory), np.arange(3 * 64 * 128).reshape(3, -1)
    write_dataset(directory, table, CLASSES, counts)
    told = replace(TOLD, source=directory, target=make_dataset(tmp_path / "t", "target"))
    made = make_inputs(told, str(tmp_path / "out")).source
    assert made != directory and np.array_equal(open_index(str(made)).class_places(), counts)  # type: ignore[arg-type]


def test_whatever_a_dataset_has_of_an_image_is_found_where_it_is(tmp_path: Path) -> None:
    table = read_manifest(make_dataset(tmp_path / "t", "target", train=4, val=0))
    table = table.append_column("confidence_uri", pa.array([f"confidence/{n}.png" for n in range(4)]))
    (first, *_) = hold_out(table, "/labels").to_pylist()
    assert first["confidence_uri"] == "/labels/confidence/0.png"


# --- runs -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def trained(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The runs that are trained, in place of training; "bad" fails."""
    names: list[str] = []

    def train_run(recipe: Recipe, inputs: Inputs, out: str, cluster: Cluster, track: Sequence[str]) -> None:
        names.append(Path(out).name)
        if Path(out).name == "bad":
            raise TrainingError("a loss is not finite")
        make_checkpoint(Path(out) / "model", int(Path(out).name == RECOMMENDED))

    monkeypatch.setattr(runs_module, "train_run", train_run)
    monkeypatch.setattr(runs_module.ray, "cluster_resources", lambda: {"CPU": 4.0})
    return names


def test_a_run_that_fails_stops_no_other(
    trained: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    recipes = dict.fromkeys(("source_only", "bad", "dacs_small"), RECIPES["dacs_small"]())
    out, inputs = str(tmp_path), Inputs("source", "target")
    failed = train_all(recipes, inputs, out, TOLD.cluster)
    assert trained == ["source_only", "bad", "dacs_small"] and failed == {"bad": "a loss is not finite"}
    assert "one run after the other: each takes 3 CPU, there are 4 CPU" in capsys.readouterr().out
    train_all(recipes, inputs, out, TOLD.cluster)
    assert trained[3:] == ["bad"], "what is done is not done again"
    assert model_of(out, "dacs_small") == f"{run_directory(out, 'dacs_small')}/model"


@pytest.mark.parametrize(
    "error", [LostWorkError("its workers were lost"), CheckpointError("cannot be read; remove it")]
)
def test_a_candidate_that_may_go_on_is_not_given_up(
    error: Exception, trained: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fake, faults = runs_module.train_run, [error]

    def train_run(recipe: Recipe, inputs: Inputs, out: str, cluster: Cluster, track: Sequence[str]) -> None:
        if Path(out).name == "lost" and faults:
            trained.append("lost")
            raise faults.pop()
        fake(recipe, inputs, out, cluster, track)

    monkeypatch.setattr(runs_module, "train_run", train_run)
    recipes, inputs = dict.fromkeys(("source_only", "lost", "dacs_small"), RECIPES["dacs_small"]()), Inputs("s", "t")
    with pytest.raises(type(error), match=str(error)):
        train_all(recipes, inputs, str(tmp_path), TOLD.cluster)
    assert trained == ["source_only", "lost", "dacs_small"]
    assert train_all(recipes, inputs, str(tmp_path), TOLD.cluster) == {} and trained[3:] == ["lost"]


@pytest.mark.full  # half a minute; runs one after the other are tested above, trials of a sweep on Ray Tune elsewhere
def test_a_run_whose_node_is_lost_is_taken_up_again_and_no_candidate_is_given_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, ray_session: None
) -> None:
    """Side by side: what is not the run's own fault is tried again, and stops `adapt` where it lasts."""
    lasts = tmp_path / "lasts"

    def train_run(recipe: Recipe, inputs: Inputs, out: str, cluster: Cluster, track: Sequence[str]) -> None:
        tries = Path(out).with_suffix(".tries")
        tries.parent.mkdir(parents=True, exist_ok=True)
        with tries.open("a") as file:
            file.write("x")
        if Path(out).name == "lost" and (lasts.exists() or len(tries.read_text()) == 1):
            raise OSError(5, "Input/output error")

    monkeypatch.setattr(runs_module, "train_run", train_run)
    monkeypatch.setattr(runs_module.ray, "cluster_resources", lambda: {"CPU": 8.0})
    recipes = dict.fromkeys(("source_only", "lost"), RECIPES["dacs_small"]())
    cluster, inputs = replace(TOLD.cluster, max_failures=1), Inputs("source", "target")
    lasts.touch()
    with pytest.raises(OSError, match="Input/output error"):
        train_all(recipes, inputs, str(tmp_path / "a"), cluster)
    lasts.unlink()
    assert train_all(recipes, inputs, str(tmp_path / "b"), cluster) == {}
    assert Path(run_directory(str(tmp_path / "b"), "lost")).with_suffix(".tries").read_text() == "xx"


def test_the_look_of_target_images_and_labels_that_nobody_reads(tmp_path: Path) -> None:
    source, target = (make_dataset(tmp_path / name, name, train=2, val=3) for name in ("source", "target"))
    unlabelled = make_dataset(tmp_path / "unlabelled", "target", train=2, val=3, labelled=False)
    models = [make_checkpoint(tmp_path / f"m{seed}", seed) for seed in (0, 1)]
    found = judged_here(models, Inputs(source, target), images=2, inference=Inference(gpu=False))
    blind = judged_here(models, Inputs(source, unlabelled), images=2, inference=Inference(gpu=False))
    for one, same in zip(found, blind, strict=True):
        assert one.truth is not None and one.truth.shape == (2, 3, 3) and same.truth is None
        assert np.array_equal(one.views, same.views) and np.array_equal(one.styled, same.styled)
        assert (one.views.sum((1, 2)) == 40 * 56).all() and one.source is not None
        assert not np.array_equal(one.source, one.styled)
    assert not np.array_equal(found[0].views, found[1].views)


# --- whole adaptations ----------------------------------------------------------------------------------------------

TINY = (
    "--no-pretrained",
    "--batch-size",
    "4",
    "--crop",
    "32",
    "32",
    "--steps",
    "2",
    "--images",
    "4",
    "--cluster.no-gpu",
)
SECTIONS = ("verdict", "examples", "frequencies", "losses", "label-next", "choice", "time")


def run(out: Path, *words: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as printed:
        code = main(["--out", str(out), *TINY, "--cluster.threads", "1", *words])
    return code, printed.getvalue()


def check_result(out: Path, printed: str, network: str) -> None:
    """A whole directory, and a model that is the winner's, or the other where that harmed."""
    found = json.loads((out / "verdict.json").read_text())
    word = found["verdicts"][found["winner"]]["word"]
    assert found["winner"] == network and f"verdict: {word} ({network})" in printed
    page = (out / "report.html").read_text()
    assert all(f'id="{section}"' in page for section in SECTIONS) and f"<h1>{word}</h1>" in page
    kept = (out / "model" / "model.safetensors").read_bytes()
    winner = (out / "runs" / network / "model" / "model.safetensors").read_bytes()
    assert (kept == winner) == (word != "harmed")
    ids = [item["image_id"] for item in json.loads((out / "label_next.json").read_text())]
    assert len(ids) == len(set(ids)) == 10


def _here(actor: Any, columns: Any, what: str, *rest: Any) -> dict[str, np.ndarray]:
    """As `judging._over`, in this process."""
    found: dict[str, np.ndarray] = actor(*rest, threads=1)(columns)
    return found


@pytest.fixture
def no_ray(trained: list[str], monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """All but training, in this process; the runs that are trained."""
    monkeypatch.setattr(judging, "_over", _here)
    for function in ("train_run", "ensure_ray"):
        monkeypatch.setattr(job, function, runs_module.train_run if function == "train_run" else lambda **_: None)
    return trained


def test_a_harmed_network_is_not_handed_back(
    no_ray: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = make_dataset(tmp_path / "source", "source")
    target = make_dataset(tmp_path / "target", "target")
    out, words = tmp_path / "out", ("--source", source, "--target", target, "--warm-steps", "2")
    code, printed = run(out, *words, "--candidates", "sdca,dacs")
    assert code == 0 and no_ray == ["warm_start", "source_only", "sdca_small", "dacs_small"]
    assert "verdict: unclear (sdca_small)" in printed, "all networks are the same"
    assert "+0.0 (-100.0 to +100.0): which the verdict left open" in printed, "of four images"
    check_result(out, printed, "sdca_small")

    monkeypatch.setattr(job, "verdict", lambda before, after: replace(verdict(before, after), word="harmed"))
    assert run(tmp_path / "second", *words)[0] == 0
    kept, own = (
        (tmp_path / "second" / name / "model.safetensors").read_bytes() for name in ("model", "runs/source_only/model")
    )
    assert kept == own != (tmp_path / "second" / "runs" / RECOMMENDED / "model" / "model.safetensors").read_bytes()
    assert no_ray[4:] == ["warm_start", "source_only", RECOMMENDED]


def test_a_resumed_adaptation_repeats_nothing(
    no_ray: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    source = make_dataset(tmp_path / "source", "source")
    target = make_dataset(tmp_path / "target", "target", train=3, val=0, labelled=False)
    out, words = tmp_path / "out", ("--source", source, "--target", target, "--warm-steps", "2")
    whole = job._judge
    monkeypatch.setattr(job, "_judge", lambda *_: (_ for _ in ()).throw(TrainingError("cut off")))
    assert run(out, *words)[0] == 1
    monkeypatch.setattr(job, "_judge", whole)
    assert run(out, *words)[0] == 2 and "go on with it by --resume" in capsys.readouterr().err
    assert run(out, *words, "--steps", "3", "--resume")[0] == 2
    assert "other settings (steps)" in capsys.readouterr().err
    count = len(no_ray)
    monkeypatch.setattr(job, "find_machine", None)  # another machine would choose otherwise
    assert run(out, *words, "--resume")[0] == 0 and len(no_ray) == count
    found = json.loads((out / "verdict.json").read_text())["verdicts"][RECOMMENDED]
    assert found["truth"] is None and found["likeness"] is not None


def test_of_failed_candidates_the_reason_is_told(
    no_ray: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(job, "train_all", lambda *_: {RECOMMENDED: "a loss is not finite"})
    source, target = (make_dataset(tmp_path / name, name) for name in ("source", "target"))
    assert run(tmp_path / "out", "--source", source, "--target", target)[0] == 1
    assert f"error: {RECOMMENDED}: a loss is not finite" in capsys.readouterr().err
    assert not (tmp_path / "out" / "model").exists()
    monkeypatch.setattr(job, "train_all", train_all)
    words = ("--source", source, "--target", target, "--resume")
    assert run(tmp_path / "out", *words)[0] == 0, "it is tried again"


def test_a_source_free_adaptation(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    target = make_dataset(tmp_path / "target", "target", labelled=False)
    model, out = make_checkpoint(tmp_path / "model", 0), tmp_path / "out"
    over = judging._over
    where = {judging._Survey: _here}  # as the verdict's images go, which is enough of Ray
    monkeypatch.setattr(judging, "_over", lambda actor, *rest: where.get(actor, over)(actor, *rest))
    before = digests(tmp_path)
    words = ("--target", target, "--from", model, "--candidates", "adabn")
    code, printed = run(out, *words)
    assert code == 0
    check_result(out, printed, "adabn_small")
    assert "backbone" in printed and "the checkpoint's" in printed
    verdicts = json.loads((out / "verdict.json").read_text())["verdicts"]["adabn_small"]
    assert verdicts["truth"] is None and verdicts["likeness"] is None
    kept = {name: value for name, value in digests(tmp_path).items() if not name.startswith("out/")}
    assert kept == before, "inputs stay as they are"
    assert run(out, *words)[0] == 2 and "go on with it by --resume" in capsys.readouterr().err
    assert run(out, *words, "--seed", "1", "--resume")[0] == 2 and "other settings (seed)" in capsys.readouterr().err


@pytest.mark.full
def test_bare_folders_to_a_verdict_and_resumed(
    ray_session: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source, target = (make_dataset(tmp_path / name, name, train=12, val=0) for name in ("source", "target"))
    for folder in map(Path, (source, target)):
        for file in ("manifest.parquet", "index.arrow", "class_rows.arrow"):
            (folder / file).unlink()
    shutil.rmtree(Path(target) / "labels")
    out = tmp_path / "out"
    words = ("--source", source, "--target", target, "--backbone", "resnet10t", "--warm-steps", "2", "--steps", "4")
    code, printed = run(out, *words, "--candidates", "sdca,dacs")
    assert code == 0
    check_result(out, printed, json.loads((out / "verdict.json").read_text())["winner"])
    warm = (out / "warm_start" / "model" / "model.safetensors").read_bytes()
    for name in ("source_only", "sdca_small", "dacs_small"):
        assert (out / "runs" / name / "stages" / "0-source" / "model" / "model.safetensors").read_bytes() == warm

    def again(*_: object, **__: object) -> None:
        raise AssertionError("done already")

    for function in ("train_run", "train_all", "_judge", "_label_next"):
        monkeypatch.setattr(f"udaseg.jobs.adapt.job.{function}", again)
    report = (out / "model" / "model.safetensors").read_bytes()
    assert run(out, *words, "--candidates", "sdca,dacs", "--resume")[0] == 0
    assert (out / "model" / "model.safetensors").read_bytes() == report


SIDE_BY_SIDE = """
import sys
from udaseg.jobs.ray_session import ensure_ray
from pipelines.adapt import main
ensure_ray(num_cpus=6)
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.full
def test_runs_are_trained_side_by_side_where_there_is_room(tmp_path: Path) -> None:
    source, target = (make_dataset(tmp_path / name, name) for name in ("source", "target"))
    out = tmp_path / "out"
    words = ("--source", source, "--target", target, "--out", str(out), "--candidates", "dacs", *TINY)
    words += ("--backbone", "resnet10t", "--warm-steps", "2", "--cluster.threads", "1")
    done = subprocess.run([sys.executable, "-c", SIDE_BY_SIDE, *words], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    assert "2 runs, 2 side by side: source_only, dacs_small" in done.stdout
    check_result(out, done.stdout, "dacs_small")


def test_from_python(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="--source"):
        adapt(Adapt(out=str(tmp_path / "out"), target="target"))
    given = {"out": tmp_path / "out", "source": tmp_path / "sorce", "target": tmp_path}
    with pytest.raises(DatasetError, match="sorce: no such"):
        adapt(Adapt(**given))  # type: ignore[arg-type]


def test_of_three_images_one_is_held_out(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path, "target")
    rows = read_manifest(directory, "train").slice(0, 3)
    assert hold_out(rows, directory)["split"].to_pylist().count("val") == 1


def test_each_image_of_the_source_gets_the_look_of_another_of_the_target(tmp_path: Path) -> None:
    given = Inputs(make_dataset(tmp_path / "s", "source"), make_dataset(tmp_path / "t", "target"))
    looked = dict(judging._held_out(given, 100))
    source, target = looked[judging._OnSource], looked[judging._OnTarget]
    count = min(len(source["row"]), len(target["row"]))
    assert count > 1 and source["like"][:count].tolist() == target["row"][:count].tolist()
