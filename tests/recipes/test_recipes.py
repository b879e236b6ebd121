"""What holds of every small recipe because it is one: it learns, it resumes exactly, two ranks equal one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from equal_ranks import assert_ranks_equal_one, train_some
from torch import Tensor
from toy import CLASSES, CPU, SEED, adapting_stage, make_batches, recipe_stages
from two_ranks import TwoRanks

import udaseg.recipes
from udaseg.data.confidence import DISTRIBUTION_STRIDE
from udaseg.methods.camix import CAMix
from udaseg.recipes import FAMILIES, RECIPES, names, summaries
from udaseg.training.step import RunState, build_state, train_step
from udaseg.types import IGNORE, Batch

SMALL = [name for name in RECIPES if name.endswith("_small")]


def accuracy(network: torch.nn.Module, steps: range) -> float:
    """Share of the labelled target pixels that a network gets right."""
    right = total = 0
    network.eval()
    for step in steps:
        batch = make_batches(recipe_stages("supervised_small")[0], step, size=4)["target"]
        with torch.no_grad():
            label = network(batch.image, "target", detail="everywhere").logits.argmax(1)
        known = batch.label != IGNORE
        right, total = right + int((label == batch.label)[known].sum()), total + int(known.sum())
    return right / total


def labelled_by(network: torch.nn.Module, batches: dict[str, Batch]) -> dict[str, Batch]:
    """The target with a network's confident classes in place of its true ones, as between stages."""
    network.eval()
    with torch.no_grad():
        probability = network(batches["target"].image, "target", detail="everywhere").logits.softmax(1)
    confidence, label = probability.max(1)
    label = label.masked_fill(confidence < 0.5, IGNORE)
    distribution = torch.nn.functional.avg_pool2d(probability, DISTRIBUTION_STRIDE)
    return batches | {"target": replace(batches["target"], label=label, distribution=distribution)}


SHORT = ("source_only_small", "dacs_small", "ldbe_small")  # of `make test`; all of test-all


@pytest.mark.parametrize(
    "name", [name if name in SHORT else pytest.param(name, marks=pytest.mark.full) for name in SMALL]
)
def test_it_learns(name: str) -> None:
    """All its stages one after another; a source-free recipe starts from a source-only network."""
    stages = recipe_stages(name)
    if stages[0].init_from is not None:
        stages = [*recipe_stages("source_only_small"), *stages]
    init: dict[str, Tensor] | None = None
    predictor = None
    for number, stage in enumerate(stages):
        state = build_state(stage, CLASSES, seed=SEED, init=init, device=CPU, bf16=False)
        labeller, before = predictor, accuracy(state.method.predictor, range(900, 902))
        for step in range(stage.steps):
            batches = make_batches(stage, step, size=4)
            if "target" in stage.data.streams() and stage.data.streams()["target"].labels in ("pseudo", "distribution"):
                assert labeller is not None
                batches = labelled_by(labeller, batches)
            train_step(state, batches, stage, seed=SEED + number)
        predictor = state.method.predictor
        init = predictor.state_dict()
        after = accuracy(predictor, range(900, 902))
        assert after > (before + 0.2 if number == 0 else 0.6), f"{stage.name}: {before:.2f} -> {after:.2f}"


# Each method is resumed in test_contract.py; a recipe adds its network and its streams.
@pytest.mark.parametrize(
    "name",
    [name if name in ("bcl_small", "hrda_small") else pytest.param(name, marks=pytest.mark.full) for name in SMALL],
)
def test_it_resumes_exactly(name: str, tmp_path: Path) -> None:
    stage = adapting_stage(name)

    def fresh() -> RunState:
        return build_state(stage, CLASSES, seed=SEED, init=None, device=CPU, bf16=False)

    whole, resumed = fresh(), fresh()
    train_step(whole, make_batches(stage, 0), stage, seed=SEED)
    whole.save(tmp_path / "state.pt")
    with torch.no_grad():
        for parameter in resumed.method.parameters():  # all of it is in the file
            parameter.zero_()
    resumed.load(tmp_path / "state.pt")
    for step in (1, 2):
        logs = [train_step(state, make_batches(stage, step), stage, seed=SEED) for state in (whole, resumed)]
        assert logs[0] == logs[1]
    mine, theirs = whole.method.state_dict(), resumed.method.state_dict()
    assert all(torch.equal(mine[key], theirs[key]) for key in mine)


# Their parts are on two ranks elsewhere: in test_two_ranks.py, or in a recipe that is run here.
TWICE = (
    "source_only_small",
    "dacs_small",
    "advent_small",
    "bcl_paper_small",
    "cada_small",
    "clan_small",
    "classwise_small",
    "cluda_small",
    "drsl_small",
    "dsp_small",
    "hrda_small",
    "i2i_cr_small",
    "minent_small",
    "pne_small",
    "proda_small",
    "sepico_bank_small",
    "sepico_prototype_small",
    "stvm_small",
    "tada_small",
    "ucd_small",
    "ucda_small",
)


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.full) if name in TWICE else name for name in SMALL]
)
def test_on_two_ranks_it_equals_one(name: str, two_ranks: TwoRanks) -> None:
    assert_ranks_equal_one(two_ranks.run(train_some, name), train_some(None, name))


def test_every_module_of_recipes_is_of_one_family() -> None:
    listed = [module for modules in FAMILIES.values() for module in modules]
    found = {path.stem for path in Path(udaseg.recipes.__file__).parent.glob("*.py")} - {"__init__", "common"}
    assert sorted(listed) == sorted(found)
    shown = [name for family in summaries().values() for name in family]
    assert sorted(shown) == sorted(RECIPES) == sorted(names())


@pytest.mark.parametrize("name", ["dacs", "dsp", "camix", "camix_synthia", "rccr", "rccr_synthia"])
def test_the_line_of_dacs_flips_nothing(name: str) -> None:
    """As `"flip": false` of the authors' configurations says, and no loader of theirs mirrors."""
    assert all(stage.data.flip == 0 for stage in RECIPES[name]().stages)


@pytest.mark.parametrize(
    ("name", "context_from", "ramp_steps"), [("camix", 110_000, 130_000), ("camix_synthia", 40_000, 10_000)]
)
def test_camix_turns_to_context_when_its_authors_do(name: str, context_from: int, ramp_steps: int) -> None:
    (stage,) = RECIPES[name]().stages
    assert isinstance(stage.method, CAMix.Config)
    assert (stage.method.context_from, stage.method.ramp_steps) == (context_from, ramp_steps)
    assert stage.data.target is not None and stage.data.target.short_side == 1024 and stage.data.crop == (512, 512)


@pytest.mark.parametrize("name", ["sdca", "spcl", "proca"])
def test_the_line_of_sdca_changes_the_colours_of_what_it_has_labels_of(name: str) -> None:
    """As `build_transform` of its authors does it, `is_source` alone: in self-training that is the target."""
    _, adapting, training = RECIPES[name]().stages
    assert (training.data.scale, training.data.crop) == ((0.5, 1.5), (512, 1024))
    side = training.data.target.short_side if name == "spcl" else training.data.short_side
    assert side == 1024, "of its own size: half of it is the crop"
    assert training.data.resample == adapting.data.resample == "bicubic"
    assert adapting.data.batch_size == 4 and training.data.batch_size == 8, "8 images on 4 GPUs"
    assert adapting.data.source is not None and adapting.data.target is not None and training.data.target is not None
    for stream in (adapting.data.source, training.data.target):
        assert (stream.jitter, stream.hue, stream.jitter_probability) == (0.5, 0.2, 1)
        assert (stream.grey, stream.blur) == ((0, 0) if name == "spcl" else (0.2, 1))
    assert adapting.data.target.jitter == adapting.data.target.grey == adapting.data.target.blur == 0


SYNTHIA_SIDES = {"hrda": 1520, "mic": 1520, "cluda": 1520, "proda": 1216, "ehtdi": 720, "ehtdi_edges": 720}
"""Twice as large for HRDA and what has its network, 2048 wide for ProDA, and 40 rows cut off by EHTDI."""


@pytest.mark.parametrize("name", [name for name in RECIPES if name.endswith("_synthia")])
def test_a_row_of_synthia_has_images_of_1280_x_760(name: str) -> None:
    recipe, gta = RECIPES[name](), RECIPES[name.removesuffix("_synthia")]()
    assert recipe.name == name
    side = SYNTHIA_SIDES.get(gta.name, 760)
    for stage, before in zip(recipe.stages, gta.stages, strict=True):
        assert stage.model == before.model
        for stream in (stage.data.source, stage.data.template):
            if stream is None:
                continue
            assert stream.short_side == side
            if stream.crop is not None:
                assert stream.crop == (side, 1280), "whole images stay whole"
        if stage.data.target is not None and not name.startswith("dsp"):
            assert stage.data.target == before.data.target


@pytest.mark.parametrize(("name", "target", "source", "bottom"), [("daformer", 540, 512, 120), ("hrda", 1080, 1024, 0)])
def test_a_row_of_acdc_has_its_sizes_and_margins(name: str, target: int, source: int, bottom: int) -> None:
    (stage,) = RECIPES[f"{name}_acdc"]().stages
    assert stage.data.source is not None
    assert (stage.data.short_side, stage.data.source.short_side) == (target, source)
    assert stage.method.ignore_bottom == bottom
    if name == "hrda":
        (mic,) = RECIPES["mic_acdc"]().stages
        assert mic.data == stage.data and mic.method.mic.images == "both"
        assert mic.method.mic.jitter == mic.method.mic.blur_probability == 0


@pytest.mark.parametrize("name", ["sdca", "sdca_synthia", "proca", "proca_synthia"])
def test_published_recipes_average_lovasz_softmax_over_the_classes_present(name: str) -> None:
    methods = [stage.method for stage in RECIPES[name]().stages if getattr(stage.method, "lovasz_weight", 0)]
    assert {method.lovasz_classes for method in methods} == {"present"} and len(methods) >= 2
