"""Steps that teach a network new classes: what fits together, and the means over old and new ones in the end."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import CLASSES, FIRST, make_dataset, tiny_recipe

from pipelines.evaluate import main as evaluate_main
from udaseg.checkpoints.directory import ModelCard, load_model, save_model
from udaseg.config import Model, Recipe
from udaseg.data.classes import Classes
from udaseg.errors import ConfigError, DatasetError
from udaseg.job_config import Cluster
from udaseg.jobs.preflight import check
from udaseg.jobs.train import train
from udaseg.models.build import build_segmenter

ONE = Cluster(workers=1, gpu=False, threads=1)


def network(folder: Path, classes: Classes) -> str:
    """A model directory of an untrained network."""
    model = Model(backbone="test_byobnet", head_channels=16)
    card = ModelCard(model=model, classes=classes, short_side=40, recipe="none", stage="none", step=0)
    torch.manual_seed(0)
    save_model(folder, build_segmenter(len(classes), backbone="test_byobnet", head_channels=16), card)
    return str(folder)


def step(init: str) -> Recipe:
    return tiny_recipe("ucd_small", stages__0__init_from=init)


def test_the_first_classes_of_a_dataset_are_those_of_the_network_that_learns_more(tmp_path: Path) -> None:
    data = {"source": make_dataset(tmp_path / "source", "source"), "target": None}
    assert check(step(network(tmp_path / "old", FIRST)), data, ONE).names == CLASSES.names
    with pytest.raises(DatasetError, match=r"'ground', 'sky', 'box'; the dataset's first 2 \(method\.old_classes\)"):
        check(step(network(tmp_path / "all", CLASSES)), data, ONE)
    with pytest.raises(DatasetError, match="'sky', 'ground'"):
        check(step(network(tmp_path / "turned", replace(FIRST, names=("sky", "ground")))), data, ONE)
    plain = tiny_recipe("source_only_small", stages__0__init_from=str(tmp_path / "old"))
    with pytest.raises(DatasetError, match="Both need the same"):
        check(plain, data, ONE)


def test_more_old_classes_than_there_are_is_refused(tmp_path: Path) -> None:
    data = {"source": make_dataset(tmp_path / "source", "source"), "target": None}
    recipe = tiny_recipe("ucd_small", stages__0__init_from=network(tmp_path / "all", CLASSES))
    stage = recipe.stages[0]
    stage = replace(stage, method=replace(stage.method, old_classes=3))
    with pytest.raises(ConfigError, match=r"method\.old_classes is 3; it must lie below 3"):
        check(replace(recipe, stages=(stage,)), data, ONE)


@pytest.mark.full
def test_a_step_of_new_classes_end_to_end(tmp_path: Path, ray_session: None, capfd: pytest.CaptureFixture[str]) -> None:
    first = make_dataset(tmp_path / "first", "source", classes=FIRST)
    old = train(tiny_recipe("source_only_small"), source=first, target=None, out=str(tmp_path / "old"), cluster=ONE)
    source = make_dataset(tmp_path / "source", "source")
    new = train(step(old), source=source, target=None, out=str(tmp_path / "new"), cluster=ONE)
    grown, card = load_model(new)
    assert (grown.num_classes, card.old_classes, card.classes.names) == (3, 2, CLASSES.names)
    capfd.readouterr()
    assert evaluate_main(["--checkpoint", new, "--dataset", source, "--format", "json"]) == 0
    found = json.loads(capfd.readouterr().out.splitlines()[-1])
    iou = [found["iou"][name] or 0.0 for name in CLASSES.names]
    assert found["mIoU-old"] == pytest.approx(sum(iou[:2]) / 2, abs=1e-5)
    assert found["mIoU-new"] == pytest.approx(iou[2], abs=1e-5) and found["miou"] is not None
