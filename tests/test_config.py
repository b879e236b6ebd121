from __future__ import annotations

import dataclasses
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from pipelines.train import parse
from udaseg.config import Data, Optim, PseudoLabel, Recipe, Stage, Stream
from udaseg.errors import ConfigError
from udaseg.methods.bcl import BCL
from udaseg.methods.dacs import DACS
from udaseg.methods.dsp import DSP
from udaseg.overrides import from_value, full_names, override, to_json
from udaseg.recipes import RECIPES, from_file
from udaseg.training.step import build_state


def _bcl_stages(recipe: Recipe) -> list[Stage]:
    return [stage for stage in recipe.stages if isinstance(stage.method, BCL.Config)]


# --- recipes --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_consistent_and_states_what_it_is(name: str) -> None:
    recipe = RECIPES[name]()
    recipe.check()
    assert recipe.name == name
    assert RECIPES[name]() == recipe
    assert (RECIPES[name].__doc__ or "").strip()


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_survives_json(name: str) -> None:
    recipe = replace(RECIPES[name](), seed=17)
    recipe = override(recipe, {"optim.lr": 1.25e-3, "steps": 7})
    text = to_json(recipe)
    read = from_value(json.loads(text), RECIPES, "config.json")
    assert read == recipe
    assert to_json(read) == text
    for mine, theirs in zip(recipe.stages, read.stages, strict=True):
        assert type(mine.method) is type(theirs.method)


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_small")])
def test_small_recipe_builds(name: str) -> None:
    stage = RECIPES[name]().stages[-1]
    state = build_state(stage, 8, seed=0, init=None, device=torch.device("cpu"), bf16=False)
    assert state.step == 0
    assert state.method.predictor.num_classes == 8
    assert all(p.requires_grad for o in state.optimizers for group in o.param_groups for p in group["params"])


def test_building_is_a_function_of_the_seed() -> None:
    stage, device = RECIPES["source_only_small"]().stages[0], torch.device("cpu")
    first, second, other = (
        build_state(stage, 6, seed=s, init=None, device=device, bf16=False).method.state_dict() for s in (1, 1, 2)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not all(torch.equal(first[name], other[name]) for name in first)


def test_building_from_another_network_starts_from_its_tensors() -> None:
    stage, device = RECIPES["bcl_small"]().stages[-1], torch.device("cpu")
    warm = RECIPES["source_only_small"]().stages[0]
    source = build_state(warm, 6, seed=1, init=None, device=device, bf16=False).method.predictor
    built = build_state(stage, 6, seed=2, init=source.state_dict(), device=device, bf16=False)
    image = torch.rand(1, 3, 64, 64)
    expected = source.eval()(image).logits
    for network in (built.method.student.eval(), built.method.predictor.eval()):
        assert torch.equal(network(image, "source").logits, expected)
        assert torch.equal(network(image, "target").logits, expected)


# --- override -------------------------------------------------------------------------------------------------------


def test_a_short_name_reaches_every_stage_that_has_the_field() -> None:
    recipe = override(RECIPES["bcl_small"](), {"method.temperature": 0.07})
    assert len(_bcl_stages(recipe)) >= 2
    assert all(stage.method.temperature == 0.07 for stage in _bcl_stages(recipe))
    assert all(stage.steps == 5 for stage in override(recipe, {"steps": 5}).stages)


def test_a_full_name_reaches_one_stage() -> None:
    recipe = RECIPES["bcl_small"]()
    changed = override(recipe, {"stages.1.method.temperature": 0.07})
    assert [s.method.temperature for s in _bcl_stages(changed)] == [
        0.07,
        *(s.method.temperature for s in _bcl_stages(recipe)[1:]),
    ]
    assert replace(changed, stages=recipe.stages) == recipe


def test_later_overrides_win_and_the_recipe_stays_as_it_was() -> None:
    recipe = RECIPES["bcl_small"]()
    before = to_json(recipe)
    changed = override(recipe, {"optim.lr": 1.0, "stages.1.optim.lr": 2.0, "seed": 9, "data.crop": (64, 96)})
    assert [s.optim.lr for s in changed.stages][:3] == [1.0, 2.0, 1.0]
    assert changed.seed == 9 and all(s.data.crop == (64, 96) for s in changed.stages)
    assert to_json(recipe) == before


@pytest.mark.parametrize(
    ("misspelt", "meant"),
    [
        ("method.temprature", "method.temperature"),
        ("optim.learning_rate", "optim.lr"),
        ("stages.1.method.temprature", "stages.1.method.temperature"),
        ("sed", "seed"),
    ],
)
def test_a_misspelt_name_is_refused_with_what_was_meant(misspelt: str, meant: str) -> None:
    recipe = RECIPES["bcl_small"]()
    assert full_names(recipe, meant)
    with pytest.raises(ConfigError, match=misspelt.replace(".", r"\.")) as caught:
        override(recipe, {misspelt: 1})
    if meant != "optim.lr":
        assert meant in str(caught.value).split("did you mean")[1]


@pytest.mark.parametrize(
    "name", ["method", "stages", "stages.0", "stages.9.steps", "data.source", "stages.x.steps", ""]
)
def test_what_is_no_field_of_its_own_is_refused(name: str) -> None:
    with pytest.raises(ConfigError, match="no field"):
        override(RECIPES["bcl_small"](), {name: 1})


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("steps", "many", "int"),
        ("steps", 1.5, "int"),
        ("steps", True, "int"),
        ("optim.lr", "fast", "float"),
        ("optim.lr", True, "float"),
        ("optim.lr", None, "float"),
        ("method.variant", "papper", "'released', 'paper'"),
        ("model.output_stride", 12, "8, 16, 32"),
        ("model.output_stride", True, "8, 16, 32"),
        ("bf16", 1, "bool"),
        ("model.weights", 3, "str or None"),
        ("data.crop", (64, 64, 64), "tuple"),
        ("data.crop", (64, "wide"), "tuple"),
        ("data.crop", (True, True), "tuple"),
        ("model.head_branches", 6, "tuple"),
        ("data.target.short_side", True, "int or None"),
        ("optim.warmup_start", True, "float or None"),
        ("optim.lr", 10**4000, "too large for a float"),
        ("optim.warmup_start", 10**400, "too large for a float"),
    ],
)
def test_a_value_of_another_type_is_refused(name: str, value: Any, expected: str) -> None:
    with pytest.raises(ConfigError, match=name.replace(".", r"\.")) as caught:
        override(RECIPES["bcl_small"](), {name: value})
    assert expected in str(caught.value)


def test_whole_numbers_become_floats_and_lists_tuples() -> None:
    recipe = override(RECIPES["bcl_small"](), {"optim.lr": 1, "data.scale": [1, 2], "model.head_branches": [6]})
    for stage in recipe.stages:
        assert isinstance(stage.optim.lr, float) and stage.optim.lr == 1.0
        assert stage.data.scale == (1, 2) and stage.model.head_branches == (6,)
    assert from_value(json.loads(to_json(recipe)), RECIPES, "x") == recipe


# --- JSON -----------------------------------------------------------------------------------------------------------


def test_json_of_something_else_is_refused_by_its_origin(tmp_path: Path) -> None:
    file = tmp_path / "saved.json"
    recipe = RECIPES["dacs_small"]()
    renamed = json.loads(to_json(recipe))
    renamed["stages"][1]["method"]["treshold"] = renamed["stages"][1]["method"].pop("threshold")
    unknown = json.loads(to_json(recipe)) | {"name": "no_such_recipe"}
    wrong = json.loads(to_json(recipe)) | {"seed": "zero"}
    for text in ("not json", "[]", "{}", "3", json.dumps(renamed), json.dumps(unknown), json.dumps(wrong)):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"saved\.json"):
            from_file(str(file))


def test_json_with_another_number_of_stages_is_refused() -> None:
    raw = json.loads(to_json(RECIPES["dacs_small"]()))
    for stages in (raw["stages"][:1], [*raw["stages"], raw["stages"][-1]]):
        with pytest.raises(ConfigError, match=r"saved\.json"):
            from_value(raw | {"stages": stages}, RECIPES, "saved.json")


# --- check ----------------------------------------------------------------------------------------------------------

_BASE = Recipe(name="x", stages=(Stage(name="only", method=DACS.Config(), steps=10),))


_SOFT = replace(_BASE.stages[0].data, target=Stream(labels="distribution"))

_PRIOR = replace(_BASE.stages[0].data, target=Stream(labels="none", prior=True))


def _with(stage: dict[str, Any] | None = None, **fields: Any) -> Recipe:
    return replace(_BASE, stages=(replace(_BASE.stages[0], **(stage or {})),), **fields)


@pytest.mark.parametrize(
    ("recipe", "field"),
    [
        (replace(_BASE, stages=()), "stages"),
        (_with({"steps": 0}), "stages.0.steps"),
        (override(_BASE, {"data.batch_size": 0}), "data.batch_size"),
        (override(_BASE, {"data.group_size": 0}), "data.group_size"),
        (override(_BASE, {"data.batch_size": 4, "data.group_size": 3}), "group_size"),
        (_with({"method": DSP.Config(), "data": Data(batch_size=4, group_size=4)}), "method.group_size"),
        (_with({"method": DSP.Config(group_size=1), "data": Data(batch_size=4, group_size=4)}), "method.group_size"),
        (override(_BASE, {"optim.horizon": 0.5}), "optim.horizon"),
        (override(_BASE, {"data.scale": (1.5, 1.0)}), "data.scale"),
        (override(_BASE, {"data.scale": (0.0, 1.0)}), "data.scale"),
        (override(_BASE, {"data.crop": (0, 0)}), "data.crop"),
        (override(_BASE, {"data.crop": (64, -8)}), "data.crop"),
        (override(_BASE, {"data.crop": (64, 100_000)}), "data.crop"),
        (override(_BASE, {"data.short_side": 0}), "data.short_side"),
        (override(_BASE, {"data.source.short_side": 0}), "data.source.short_side"),
        (override(_BASE, {"data.flip": 1.5}), "flip"),
        (_with({"name": "a/b"}), "name"),
        (_with({"name": ""}), "name"),
        (replace(_BASE, stages=(_BASE.stages[0], _BASE.stages[0])), "unique"),
        (_with({"data": replace(_BASE.stages[0].data, source=None, target=None)}), "neither"),
        (_with({"pseudo_label": PseudoLabel()}), "init_from"),
        (_with({"pseudo_label": PseudoLabel(), "init_from": "elsewhere"}), "pseudo"),
        (_with({"pseudo_label": PseudoLabel(), "init_from": "elsewhere", "data": _SOFT}), "pseudo_label.distribution"),
        (_with({"translated_by": "earlier"}), "stages.0.translated_by"),
        (_with({"translated_by": "earlier", "data": replace(_BASE.stages[0].data, source=None)}), "data.source"),
        (_with({"translated_by": "earlier", "data": _PRIOR}), "data.target.prior"),
        (_with({"data": replace(_SOFT, rotation=5.0)}), "data.target.labels"),
        (
            _with({"data": replace(_BASE.stages[0].data, target=Stream(labels="none", sampling="rare_class"))}),
            "data.target.sampling",
        ),
        (override(_BASE, {"data.target.max_class_share": 0.75}), "data.target.max_class_share"),
        (override(_BASE, {"data.source.labels": "candidates"}), "data.source.labels"),
        (override(_BASE, {"data.target.labels": "candidates"}), "data.target.labels"),
        (override(RECIPES["tada_small"](), {"data.source.labels": "true"}), "data.source.labels"),
        (replace(_BASE, checkpoint_every=0), "checkpoint_every"),
        (replace(_BASE, keep_checkpoints=0), "keep_checkpoints"),
        (replace(_BASE, log_every=0), "log_every"),
    ],
)
def test_contradictions_are_refused_by_the_field(recipe: Recipe, field: str) -> None:
    _BASE.check()
    with pytest.raises(ConfigError, match=field.replace(".", r"\.")):
        recipe.check()


def test_learning_rate_is_a_function_of_the_step() -> None:
    optim = Optim(power=0.9, horizon=1.25, warmup_steps=4)
    factors = [optim.lr_factor(step, 100) for step in range(100)]
    assert factors[0] == pytest.approx(0.2) and factors[4] == pytest.approx((1 - 4 / 125) ** 0.9)
    assert factors[99] == pytest.approx((1 - 99 / 125) ** 0.9)
    assert all(0 < factor <= 1 for factor in factors) and factors[4:] == sorted(factors[4:], reverse=True)


# --- the command line -----------------------------------------------------------------------------------------------


def test_command_line_reaches_all_stages_or_one() -> None:
    base = ["bcl_small", "--out", "runs/x"]
    every = parse([*base, "--method.temperature", ".07"]).recipe
    assert all(stage.method.temperature == 0.07 for stage in _bcl_stages(every))
    one = parse([*base, "--stages.1.method.temperature=.07"]).recipe
    assert one == override(RECIPES["bcl_small"](), {"stages.1.method.temperature": 0.07})


def test_command_line_without_overrides_is_the_recipe() -> None:
    for name in RECIPES:
        arguments = parse([name, "--out", "o", "--source", "s", "--target", "t", "--resume"])
        assert arguments.recipe == RECIPES[name]()
        assert (arguments.out, arguments.source, arguments.target, arguments.resume) == ("o", "s", "t", True)


def test_command_line_types_and_spellings() -> None:
    words = (
        "dacs_small --out o --bf16 --seed 3 --data.crop 64 96 --method.no-mix-ignore --model.frozen-norm-affine "
        "--data.batch_size 8 --stages.0.optim.lr 1e-2 --optim.name sgd"
    )
    recipe = parse(words.split()).recipe
    assert recipe.bf16 and recipe.seed == 3
    assert all(s.data.crop == (64, 96) and s.data.batch_size == 8 and s.optim.name == "sgd" for s in recipe.stages)
    assert all(s.model.frozen_norm_affine for s in recipe.stages)
    assert recipe.stages[1].method.mix_ignore is False
    assert recipe.stages[0].optim.lr == 1e-2 and recipe.stages[1].optim.lr != 1e-2
    back = parse(["dacs_small", "--out", "o", "--no-bf16", "--no-model.frozen-norm-affine"]).recipe
    assert back == RECIPES["dacs_small"]()
    assert not parse(["dacs_small", "--out", "o", "--no-cluster.tf32"]).cluster.tf32


def test_command_line_refuses_what_is_misspelt() -> None:
    with pytest.raises(ConfigError, match=r"method\.temprature.*did you mean.*method\.temperature"):
        parse(["bcl_small", "--out", "o", "--method.temprature", ".07"])
    with pytest.raises(ConfigError, match="bcl_smal"):
        parse(["bcl_smal", "--out", "o"])
    with pytest.raises(ConfigError, match=r"nowhere\.json"):
        parse(["--config", "nowhere.json"])


@pytest.mark.parametrize(
    "words",
    [
        ["--optim.lr", "fast"],
        ["--data.batch_size", "2.5"],
        ["--method.variant", "papper"],
        ["--optim.lr"],
        ["surplus"],
        ["--cluster.wokers", "2"],
    ],
)
def test_command_line_refuses_what_is_ill_typed(words: list[str]) -> None:
    with pytest.raises(ConfigError, match=words[0].strip("-").split(".")[-1].replace("_", "-")):
        parse(["bcl_small", "--out", "o", *words])


def test_out_is_required() -> None:
    with pytest.raises(ConfigError, match="--out"):
        parse(["bcl_small"])


def test_help_lists_recipes_and_fields(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse([])
    assert caught.value.code == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in RECIPES)
    with pytest.raises(SystemExit) as caught:
        parse(["bcl_small", "--help"])
    assert caught.value.code == 0 and "method.temperature" in capsys.readouterr().out


def test_a_saved_configuration_starts_a_run(tmp_path: Any) -> None:
    recipe = override(RECIPES["dacs_small"](), {"method.threshold": 0.5, "seed": 4})
    saved = tmp_path / "config.json"
    saved.write_text(json.dumps({"recipe": json.loads(to_json(recipe)), "manifests": {}}))
    arguments = parse(["--config", str(saved), "--out", "o", "--steps", "3"])
    assert arguments.recipe == override(recipe, {"steps": 3})


def test_a_configuration_is_a_value() -> None:
    recipe = RECIPES["bcl_small"]()
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe.seed = 1  # type: ignore[misc]
