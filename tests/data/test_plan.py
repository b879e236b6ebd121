"""Crops that one class does not fill, and images as a filter makes them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny import CLASSES, make_dataset

from udaseg.config import Data, Stage, Stream
from udaseg.data.classes import Classes
from udaseg.data.confidence import decode_distribution, encode_distribution
from udaseg.data.index import open_index
from udaseg.data.plan import Plan, StreamPlan, _crop_planes, draw_row
from udaseg.jobs.train import make_plan
from udaseg.methods.supervised import Supervised
from udaseg.rng import keyed
from udaseg.types import IGNORE, Resample


@pytest.fixture(scope="module")
def plan(tmp_path_factory: pytest.TempPathFactory) -> Plan:
    folder: Path = tmp_path_factory.mktemp("plan")
    source = StreamPlan(directory=make_dataset(folder, "source"), labelled=True)
    return Plan(
        seed=5, batch_size=2, steps=20, crop=(12, 12), short_side=40, scale=(1.0, 1.5), streams={"source": source}
    )


def largest_share(label: np.ndarray) -> tuple[float, int]:
    pixels = np.bincount(label[label != IGNORE], minlength=3)
    return pixels.max() / pixels.sum(), int(np.count_nonzero(pixels))


def test_crops_are_redrawn_until_no_class_fills_them(plan: Plan) -> None:
    varied = replace(plan, streams={"source": replace(plan.streams["source"], max_class_share=0.75)})
    before = [largest_share(plan.load(i)["source_label"]) for i in range(40)]
    after = [largest_share(varied.load(i)["source_label"]) for i in range(40)]
    filled = [share >= 0.75 for share, _ in before]
    assert sum(filled) > 10, "most such crops are filled by a class"
    assert sum(share < 0.75 and classes > 1 for share, classes in after) >= 38, "nine more tries nearly always do"
    for i in range(40):
        if not filled[i] and before[i][1] > 1:  # the first try was good, and is kept
            assert np.array_equal(plan.load(i)["source_image"], varied.load(i)["source_image"])


def test_a_crop_shows_enough_of_the_class_that_it_was_drawn_for(plan: Plan) -> None:
    """The first of ten that does, or the tenth."""
    rare = replace(plan.streams["source"], sampling="rare_class", rare_temperature=1.0, rare_min_pixels=1)
    wanted, tries, last = 40, [], 0
    varied = replace(plan, streams={"source": replace(rare, rare_min_crop_pixels=wanted)})
    index = open_index(rare.directory)
    for i in range(40):
        row, drawn = draw_row(rare, i, plan.seed, "source")
        label, rng = Image.fromarray(index.train_ids(row)), keyed(plan.seed, i, "source.crop")
        tried, enough = 0, False
        while not enough and tried < 10:
            _, cropped = plan._draw_crop(label.size, label, rare, rng)
            assert cropped is not None
            tried, enough = tried + 1, (cropped == drawn).sum() >= wanted
        tries.append(tried)
        last += not enough
        assert np.array_equal(varied.load(i)["source_label"], cropped)
    assert len(set(tries)) > 3 and last, "or nothing is tested"


def test_crops_of_an_image_at_its_own_size_are_its_pixels(plan: Plan) -> None:
    own = replace(plan, scale=(1.0, 1.0))
    index = open_index(plan.streams["source"].directory)
    start, stop = index.rows("train")
    images = [index.image(row) for row in range(start, stop)]
    assert {min(image.shape[:2]) for image in images} == {own.short_side}
    places = set()
    for i in range(10):
        crop = own.load(i)["source_image"]
        windows = [np.lib.stride_tricks.sliding_window_view(image, (12, 12, 3))[:, :, 0] for image in images]
        found = [np.argwhere((w == crop).all((2, 3, 4))) for w in windows]
        (place,) = np.concatenate(found).tolist()[:1]
        places.add(tuple(place))
    assert len(places) > 5


def test_a_distribution_is_cropped_with_its_image() -> None:
    """One that is linear in the place stays so: 70 x 50 pixels in cells of 7.78 x 7.14, of which a crop is taken."""
    rows, columns = (np.arange(n) + 0.5 for n in (7, 9))
    made = np.stack([0.3 + 0.02 * columns + 0 * rows[:, None], 0.7 - 0.03 * rows[:, None] + 0 * columns])
    stored, size = decode_distribution(encode_distribution(made)), (24, 32)
    left, top = 14.0, 13.0
    code = _crop_planes(stored, (70, 50), (left, top, left + 40, top + 30), size)
    assert code.shape == (2, 3, 4)
    x, y = left + 40 * (np.arange(4) + 0.5) / 4, top + 30 * (np.arange(3) + 0.5) / 3
    expected = np.stack([0.3 + 0.02 * x * 9 / 70 + 0 * y[:, None], 0.7 - 0.03 * y[:, None] * 7 / 50 + 0 * x])
    np.testing.assert_allclose(decode_distribution(code), expected, atol=2e-3)  # a step between cells is 0.02
    whole = _crop_planes(stored, (70, 50), (0.0, 0.0, 70.0, 50.0 + 1e-9), size)
    assert whole.shape == (2, 3, 4)


def test_images_are_resized_as_the_stage_and_the_stream_say(tmp_path: Path) -> None:
    """The same crops by other filters; a stream's own stands above the stage's."""
    directory = make_dataset(tmp_path, "source")
    stream = Stream(labels="true")

    def loaded(resample: Resample, own: Resample | None) -> list[np.ndarray]:
        data = Data(short_side=20, crop=(16, 16), resample=resample, source=replace(stream, resample=own), target=None)
        stage = Stage(name="s", method=Supervised.Config(), steps=2, data=data)
        plan = make_plan(stage, {"source": directory}, seed=5)
        return [plan.load(i)["source_image"] for i in range(4)]

    nearest, averaged, cubic = (loaded(how, None) for how in ("bilinear", "antialias", "bicubic"))
    for one, other, third in zip(nearest, averaged, cubic, strict=True):
        assert one.shape == other.shape == (16, 16, 3)
        assert one.std() > other.std() and not np.array_equal(other, third), "noise is averaged, or not"
    assert all(map(np.array_equal, loaded("antialias", "bilinear"), nearest))


def test_a_stream_may_have_a_crop_of_its_own(plan: Plan) -> None:
    wide = replace(plan.streams["source"], crop=(16, 24))
    both = replace(plan, streams={"source": plan.streams["source"], "target": wide})
    for sample in (both.load(3), both.empty()):
        assert sample["source_image"].shape == (12, 12, 3) and sample["source_label"].shape == (12, 12)
        assert sample["target_image"].shape == (16, 24, 3) and sample["target_label"].shape == (16, 24)
    assert np.array_equal(both.load(3)["source_image"], plan.load(3)["source_image"])


def test_pixels_of_several_classes_are_ids_of_their_own_where_a_stream_asks(tmp_path: Path) -> None:
    """Sky and boxes may be of either of two classes, and a fourth has no pixel."""
    names, palette = ("ground", "air", "thing", "wall"), ((0, 0, 0),) * 4
    either = Classes(names=names, palette=palette, raw_to_train={0: 0, 1: 4, 2: 4}, unions=((1, 2),))
    source, target = (
        make_dataset(tmp_path / "a", "source", classes=either),
        make_dataset(tmp_path / "b", "target", fewshot=2),
    )
    stage = Stage(
        name="tada",
        method=Supervised.Config(),
        steps=1,
        data=Data(
            crop=(32, 32),
            short_side=40,
            source=Stream(labels="candidates"),
            template=Stream(labels="true"),
            fewshot=Stream(labels="true"),
        ),
    )
    plan = make_plan(stage, {"source": source, "target": target}, 3)
    assert [plan.streams[name].split for name in ("source", "target", "fewshot")] == ["train", "train", "fewshot"]
    sample = plan.load(0)
    assert set(np.unique(sample["source_label"])) <= {0, 4} and (sample["source_label"] == 4).any()
    assert sample["source_candidates"].tolist() == [[0, 1, 1, 0], [0, 0, 0, 1]]
    assert set(np.unique(sample["template_label"])) <= {0, IGNORE} and "template_candidates" not in sample
    assert set(np.unique(sample["fewshot_label"])) <= set(range(len(CLASSES)))
    empty = plan.empty()
    assert {key: (value.shape, value.dtype) for key, value in empty.items()} == {
        key: (value.shape, value.dtype) for key, value in sample.items()
    }


def test_crops_of_an_image_at_its_own_size_come_from_every_place(plan: Plan) -> None:
    """The last row and the last column too; one of the whole image is that."""
    own, rng = replace(plan, scale=(1.0, 1.0)), keyed(0, "places")
    boxes = [own._crop_box((42, 40), 40, (38, 40), rng) for _ in range(200)]  # width and height, then height and width
    assert {(left, top) for left, top, _, _ in boxes} == {(left, top) for left in range(3) for top in range(3)}
    assert all((right - left, bottom - top) == (40, 38) for left, top, right, bottom in boxes)
    assert own._crop_box((42, 40), 40, (40, 42), rng) == (0, 0, 42, 40)


def bare_plan(crop: tuple[int, int], short_side: int, scale: tuple[float, float] = (1.0, 1.0)) -> Plan:
    return Plan(seed=0, batch_size=1, steps=1, crop=crop, short_side=short_side, scale=scale, streams={})


def test_a_class_s_share_of_a_crop_is_that_of_its_labelled_pixels() -> None:
    """One class has nearly all of them, and half of the crop is ignored: ten crops are tried."""
    label = np.full((12, 12), IGNORE, np.uint8)
    label[:6, :6] = label[6:, 6:] = 1
    label[0, 0] = 0
    plan, stream = bare_plan((12, 12), 48), StreamPlan(directory="", labelled=True, max_class_share=0.75)
    rng, same = keyed(0, "x"), keyed(0, "x")
    plan._draw_crop((48, 48), Image.fromarray(np.tile(label, (4, 4))), stream, rng)
    for _ in range(10):
        plan._crop_box((48, 48), 48, (12, 12), same)
    assert rng.random() == same.random()


def test_wide_crops_of_images_that_are_high_lie_within_them() -> None:
    plan, rng = bare_plan((12, 30), 20, (0.5, 1.0)), keyed(0, "x")
    for _ in range(50):
        left, top, right, bottom = plan._crop_box((20, 60), 20, (12, 30), rng)
        assert 0 <= left < right <= 20 and 0 <= top < bottom <= 60
