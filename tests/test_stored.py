"""What was made before still holds: losses of every small recipe, checkpoints, and a sweep's results."""

from __future__ import annotations

import json
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stored import FILE, SMALL, losses
from toy import CPU, METHODS, SEED, adapting_stage, make_batches, make_stage

from pipelines.train import parse
from udaseg.checkpoints.directory import STATE_FILE, load_model
from udaseg.config import Stage
from udaseg.jobs.trials import read_trials
from udaseg.recipes import RECIPES
from udaseg.training.step import build_state, train_step

STORED: dict[str, list[dict[str, float]]] = json.loads(FILE.read_text())
CHECKPOINTS = ("bcl_paper", "cluda_hrda", "dsp", "ldbe_enhancement", "sdca")


def unpacked(name: str, folder: Path) -> Path:
    with tarfile.open(FILE.with_name(f"{name}.tar.xz")) as archive:
        archive.extractall(folder, filter="data")
    return folder / name


def test_every_small_recipe_has_its_losses_kept() -> None:
    assert set(STORED) == set(SMALL), ".venv/bin/python tests/support/stored.py NAME writes them"


@pytest.mark.parametrize("name", SMALL)
def test_a_recipe_still_has_its_losses(name: str) -> None:
    by_class = getattr(adapting_stage(name).method, "reliability", None) == "class"
    rel = 0.03 if by_class else 1e-4  # a pixel passes its class's threshold, or does not, by a bit of rounding
    for now, then in zip(losses(name), STORED[name], strict=True):
        assert now == pytest.approx(then, rel=rel, abs=1e-7)


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return unpacked("checkpoints", tmp_path_factory.mktemp("stored"))


def stage_of(name: str) -> Stage:
    """The stage that the checkpoint is of: a method of `METHODS`, on a smaller network."""
    stage = make_stage(name, name="adamw" if name == "dsp" else "sgd")
    narrow = {"attention_channels": 4, "mmd_channels": 4}
    method = replace(METHODS[name], **{k: v for k, v in narrow.items() if hasattr(METHODS[name], k)})  # type: ignore[type-var]
    return replace(stage, method=method, model=replace(stage.model, backbone="test_byobnet", head_channels=8))


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_an_older_checkpoint_predicts_and_trains_on_as_before(name: str, checkpoints: Path) -> None:
    expected: dict[str, Any] = json.loads((checkpoints / "expected.json").read_text())[name]
    network, card = load_model(str(checkpoints / name))
    assert card.recipe == name and card.step == 1
    image = torch.linspace(0, 1, 3 * 64 * 64).view(1, 3, 64, 64)
    with torch.no_grad():
        logits = network(image, "target", detail="everywhere").logits
    np.testing.assert_allclose(logits[0, :, ::21, ::21].numpy(), expected["logits"], rtol=1e-4, atol=1e-5)

    stage = stage_of(name)
    state = build_state(stage, 4, seed=SEED + 1, init=None, device=CPU, bf16=False)  # other weights, all replaced
    state.load(checkpoints / name / STATE_FILE)
    stage_seed = SEED
    for module in state.method.modules():
        if hasattr(module, "seed"):
            module.seed = stage_seed  # type: ignore[assignment]
    logs = train_step(state, make_batches(stage, 1), stage, seed=stage_seed)
    assert logs == pytest.approx(expected["next"], rel=1e-3, abs=1e-6)


def test_the_results_of_an_older_sweep_are_read(tmp_path: Path) -> None:
    sweep = unpacked("sweep", tmp_path)
    for path in sweep.glob("trials/*/config.json"):
        recipe = parse(["--config", str(path), "--out", "x"]).recipe
        assert recipe.stages[0].model.backbone == "test_byobnet"
    trials = read_trials(str(sweep), RECIPES["source_only_small"](), 0)
    before = {trial["id"]: trial for trial in json.loads((sweep / "trials.json").read_text())}
    assert {trial.id for trial in trials} == set(before) and len(trials) == 2
    for trial in trials:
        assert trial.state == before[trial.id]["state"] == "finished" and trial.values == before[trial.id]["values"]
        assert [[step, dict(scores)] for step, scores in trial.curve] == before[trial.id]["curve"]
    best = parse(["--config", str(sweep / "best.json"), "--out", "x"]).recipe
    winner = json.loads((sweep / "best.json").read_text())["trial"]
    assert best.stages[0].optim.lr == before[winner]["values"]["optim.lr"]
