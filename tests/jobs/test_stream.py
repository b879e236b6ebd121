"""The plan: one sequence of samples whatever the number of workers and wherever a run starts again."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from ray.data import ExecutionResources
from ray.data._internal.execution.execution_callback import ExecutionCallback
from tiny import CLASSES, make_dataset, tiny_recipe

from udaseg.config import Recipe, Stream
from udaseg.data.index import open_index
from udaseg.data.manifest import PSEUDO_MANIFEST, read_manifest, write_dataset
from udaseg.data.plan import Plan, StreamPlan, draw_row
from udaseg.errors import ConfigError, DatasetError
from udaseg.job_config import Cluster
from udaseg.jobs.preflight import check
from udaseg.jobs.stream import PAUSE, plan_dataset, sample_index


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder = tmp_path_factory.mktemp("pair")
    return Plan(
        seed=3,
        batch_size=4,
        steps=9,
        crop=(32, 32),
        short_side=40,
        scale=(1.0, 1.3),
        streams={
            "source": StreamPlan(directory=make_dataset(folder / "source", "source", train=7), labelled=True),
            "target": StreamPlan(directory=make_dataset(folder / "target", "target"), labelled=False),
        },
    )


def stream(plan: Plan, *, start: int, world_size: int) -> dict[int, dict[str, np.ndarray]]:
    """Every sample that the workers get, by index, checked to arrive at the step and rank where it belongs."""
    shards = plan_dataset(plan, start=start, world_size=world_size).streaming_split(world_size, equal=True)
    share = plan.batch_size // world_size
    seen: dict[int, dict[str, np.ndarray]] = {}
    wrong: list[str] = []  # what is raised in a thread is not seen here

    def consume(rank: int) -> None:
        for n, rows in enumerate(shards[rank].iter_batches(batch_size=share, batch_format="numpy")):
            step = start + n
            first = step * plan.batch_size + rank * share
            expected = [-1] * share if step >= plan.steps else list(range(first, first + share))
            if rows["index"].tolist() != expected:
                wrong.append(f"rank {rank} at step {step}: {rows['index'].tolist()}, not {expected}")
            if step >= plan.steps:
                continue
            for i, index in enumerate(rows["index"].tolist()):
                seen[index] = {name: column[i] for name, column in rows.items()}

    threads = [threading.Thread(target=consume, args=(rank,)) for rank in range(world_size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong
    return seen


def test_same_samples_at_one_and_two_workers_and_after_a_restart(plan: Plan, ray_session: None) -> None:
    expected = {index: plan.load(index) for index in range(plan.steps * plan.batch_size)}
    for start, world_size in ((0, 1), (0, 2), (5, 2), (5, 4)):
        seen = stream(plan, start=start, world_size=world_size)
        assert sorted(seen) == list(range(start * plan.batch_size, plan.steps * plan.batch_size))
        for index, sample in seen.items():
            assert sample.keys() == expected[index].keys()
            assert all(np.array_equal(sample[name], expected[index][name]) for name in sample), index


def test_blocks_that_nobody_wants_yet_take_no_core(plan: Plan, ray_session: None, tmp_path: Path) -> None:
    """Ray Data looks at its tasks so often that it fills a core while some are ready and none is wanted."""
    looks = tmp_path / "looks"

    class Counting(ExecutionCallback):
        def on_execution_step(self, executor: object) -> None:
            with looks.open("a") as file:
                file.write(".")

    dataset = plan_dataset(replace(plan, steps=4000, crop=(176, 240)), start=0, world_size=1)
    dataset.context.custom_execution_callback_classes.append(Counting)
    dataset.context.execution_options.resource_limits = ExecutionResources(object_store_memory=2e7)
    (shard,) = dataset.streaming_split(1, equal=True)
    batches = iter(shard.iter_batches(batch_size=plan.batch_size, batch_format="numpy"))
    for _ in range(40):
        next(batches)
    time.sleep(6)  # blocks are ready by now
    began, before = time.monotonic(), looks.stat().st_size
    time.sleep(2)
    assert before > 0 and looks.stat().st_size - before <= (time.monotonic() - began) / PAUSE + 1


@pytest.mark.parametrize("world_size", [1, 2, 4])
@pytest.mark.parametrize("steps_per_block", [1, 3])
def test_every_rank_gets_its_share_of_every_step(world_size: int, steps_per_block: int) -> None:
    batch, start = 8, 5
    share = batch // world_size
    rows = np.arange(3 * world_size * steps_per_block * share)
    index = sample_index(rows, start=start, batch_size=batch, world_size=world_size, steps_per_block=steps_per_block)
    assert sorted(index) == list(range(start * batch, start * batch + len(rows)))
    blocks = index.reshape(-1, steps_per_block * share)
    for rank in range(world_size):
        mine = blocks[rank::world_size].reshape(-1, share)
        for n, samples in enumerate(mine):
            first = (start + n) * batch + rank * share
            assert samples.tolist() == list(range(first, first + share))


def test_uniform_sampling_sees_every_image_once_a_pass_in_another_order(plan: Plan) -> None:
    source = plan.streams["source"]
    passes = [[draw_row(source, p * 7 + i, plan.seed, "source")[0] for i in range(7)] for p in range(3)]
    assert all(sorted(rows) == list(range(7)) for rows in passes)
    assert passes[0] != passes[1] != passes[2]


def test_streams_of_one_sample_are_drawn_independently(plan: Plan) -> None:
    assert not np.array_equal(plan.load(0)["source_image"], plan.load(0)["target_image"])
    assert "target_label" not in plan.load(0)


def test_rare_class_sampling_follows_the_formula(plan: Plan) -> None:
    directory = plan.streams["source"].directory
    index = open_index(directory)
    pixels = np.array(index.table["class_pixels"].to_pylist()[:7], np.float64)
    share = pixels.sum(0) / pixels.sum()
    expected = np.exp((1 - share) / 0.1)
    expected /= expected.sum()
    probability, rows = index.rare_classes("train", 0.1, 150)
    assert np.allclose(probability, expected)
    for k in range(3):
        assert sorted(rows[k].tolist()) == np.flatnonzero(pixels[:, k] >= 150).tolist()
    rare = StreamPlan(
        directory=directory, labelled=True, sampling="rare_class", rare_temperature=0.1, rare_min_pixels=150
    )
    drawn = [draw_row(rare, g, 0, "source")[1] for g in range(4000)]
    assert np.allclose(np.bincount(drawn, minlength=3) / 4000, expected, atol=0.03)


def test_class_balanced_sampling_draws_what_an_image_by_image_loop_does(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loop: the class drawn next is the likelier the less it was seen in what was drawn so far."""
    directory = plan.streams["source"].directory
    index = open_index(directory)
    shows = np.array(index.table["class_pixels"].to_pylist()[:7]) > 0
    shows[1:, 1] = False  # a class of one image
    rows = [np.flatnonzero(shows[:, k]) for k in range(3)]
    rng, seen, classes, images = np.random.default_rng(0), np.zeros(3), np.zeros(3), np.zeros(7)
    for _ in range(20_000):
        weight = 1 / np.log(1.01 + seen / max(seen.sum(), 1))
        k = rng.choice(3, p=weight / weight.sum())
        row = rng.choice(rows[k])
        classes[k], images[row], seen = classes[k] + 1, images[row] + 1, seen + shows[row]
    monkeypatch.setattr(index, "_rows_of_classes", lambda split: (rows, rows))
    index.balanced_classes.cache_clear()
    probability, _ = index.balanced_classes("train")
    assert np.allclose(probability, classes / 20_000, atol=0.01) and probability[1] > 0.4
    balanced = StreamPlan(directory=directory, labelled=True, sampling="class_balanced")
    drawn = [draw_row(balanced, g, 0, "source") for g in range(4000)]
    assert {k for _, k in drawn} == {None}, "no crop is drawn again for it"
    assert np.allclose(np.bincount([row for row, _ in drawn], minlength=7) / 4000, images / 20_000, atol=0.03)
    index.balanced_classes.cache_clear()


def test_rare_class_sampling_may_be_of_some_classes_alone(plan: Plan) -> None:
    index = open_index(plan.streams["source"].directory)
    probability, rows = index.rare_classes("train", 0.1, 150)
    some, same = index.rare_classes("train", 0.1, 150, (0, 2))
    assert (
        some[1] == 0
        and some[0] / some[2] == pytest.approx(probability[0] / probability[2])
        and some.sum() == pytest.approx(1)
    )
    assert all(np.array_equal(a, b) for a, b in zip(rows, same, strict=True))
    evenly, _ = index.rare_classes("train", 1e3, 150, (0, 2))
    assert evenly[0] == pytest.approx(0.5, abs=1e-3)


def test_a_rare_class_that_the_dataset_lacks_is_named_before_anything_runs(plan: Plan) -> None:
    data = {"source": plan.streams["source"].directory, "target": None}
    stage = tiny_recipe("source_only_small").stages[0]
    source = Stream(labels="true", sampling="rare_class", rare_classes=(0, 3))
    recipe = Recipe(name="x", stages=(replace(stage, data=replace(stage.data, source=source)),))
    with pytest.raises(ConfigError, match=r"data\.source\.rare_classes has 3, but the dataset has 3 classes"):
        check(recipe, data, Cluster(gpu=False))


def test_rare_class_sampling_says_when_no_image_has_enough_pixels(plan: Plan) -> None:
    rare = replace(plan.streams["source"], sampling="rare_class", rare_min_pixels=10**9)
    with pytest.raises(DatasetError, match=r"has 1000000000 pixels of any class; lower data\.rare\.rare_min_pixels"):
        draw_row(rare, 0, 0, "rare")


def test_crops_have_fixed_size_and_show_image_and_label_of_the_same_place(plan: Plan) -> None:
    samples = [plan.load(g) for g in range(20)]
    assert all(s["source_image"].shape == (32, 32, 3) and s["source_label"].shape == (32, 32) for s in samples)
    red = np.stack([s["source_image"][..., 0].astype(int) - s["source_image"][..., 2] for s in samples])
    box = np.stack([s["source_label"] == 2 for s in samples])
    assert red[box].mean() > 100 and red[~box].mean() < 0  # boxes are red, all else is not


def test_a_label_id_outside_the_classes_is_named(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path, "source")
    Image.fromarray(np.full((40, 56), 7, np.uint8)).save(tmp_path / "labels" / "003.png")
    with pytest.raises(DatasetError, match=r"003\.png: label ids outside the class list: 7 \(2240 pixels\)"):
        open_index(directory).train_ids(3)


def test_soft_labels_bring_the_confidence_of_the_same_place(tmp_path: Path) -> None:
    directory = make_dataset(tmp_path, "target", val=0)
    rows = read_manifest(directory).to_pylist()
    (tmp_path / "confidence").mkdir()
    for row in rows:
        row["confidence_uri"] = f"confidence/{row['image_id']}.png"
        code = np.asarray(Image.open(tmp_path / row["label_uri"])).astype(np.uint16) * 20_000 + 7
        Image.fromarray(code).save(tmp_path / row["confidence_uri"])
    write_dataset(directory, pa.Table.from_pylist(rows, schema=PSEUDO_MANIFEST), CLASSES)
    streams = {"target": StreamPlan(directory=directory, labelled=True, soft=True)}
    plan = Plan(seed=3, batch_size=4, steps=9, crop=(32, 32), short_side=40, scale=(1.0, 1.3), streams=streams)
    for g in range(20):
        sample = plan.load(g)
        assert sample["target_confidence"].dtype == np.uint16
        assert np.array_equal(sample["target_confidence"], sample["target_label"].astype(np.uint16) * 20_000 + 7)
    filler = plan.empty()
    assert {name: (v.dtype, np.shape(v)) for name, v in filler.items()} == {
        name: (v.dtype, np.shape(v)) for name, v in plan.load(0).items()
    }


def test_a_stream_may_have_a_size_of_its_own(plan: Plan) -> None:
    """At twice the short side a crop of 32 pixels shows half as much of the image: boxes are twice as large."""
    target = plan.streams["source"]
    scale = {"scale": (1.0, 1.0), "streams": {"source": target, "target": replace(target, short_side=80)}}
    larger = replace(plan, **scale)  # type: ignore[arg-type]
    share = {name: np.mean([larger.load(g)[f"{name}_label"] == 2 for g in range(200)]) for name in plan.streams}
    width = {
        name: max(max((larger.load(g)[f"{name}_label"] == 2).sum(1).max() for g in range(60)), 0)
        for name in plan.streams
    }
    assert width["source"] <= 17 < width["target"] <= 32, "a box is 16 pixels wide"
    assert share["target"] > 0.1


def test_an_image_with_just_as_many_pixels_of_a_class_as_are_asked_for_counts(tmp_path: Path) -> None:
    index = open_index(make_dataset(tmp_path, "source"))
    start, stop = index.rows("train")
    pixels = np.array(index.table["class_pixels"].to_pylist()[start:stop])
    least = int(np.sort(pixels[:, 0])[2])
    assert len(index.rare_classes("train", 1.0, least)[1][0]) == (pixels[:, 0] >= least).sum()
