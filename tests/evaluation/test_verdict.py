"""Verdicts: figures against loops, and what they must see."""

from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest
import torch

from udaseg.data.strict_json import dump_json
from udaseg.evaluation.metrics import mean_iou
from udaseg.evaluation.verdict import (
    Change,
    Judged,
    Verdict,
    change,
    expected_frequency,
    in_the_look_of,
    strong_view,
    together,
    verdict,
)

K = 3


def counts(right: float, images: int = 40, seed: int = 0, classes: int = K) -> np.ndarray:
    """(N, K, K): per image 100 pixels of each class, about `right` of them as they should be."""
    rng = np.random.default_rng(seed)
    hit = rng.binomial(100, right, (images, classes))
    out = np.zeros((images, classes, classes), np.int64)
    for k in range(classes):
        out[:, k, k] = hit[:, k]
        out[:, k, (k + 1) % classes] = 100 - hit[:, k]
    return out


def judged(styled: float, views: float, truth: float | None = None) -> Judged:
    return Judged(views=counts(views), styled=counts(styled), truth=None if truth is None else counts(truth))


def test_change_is_the_difference_of_mean_iou() -> None:
    before, after = counts(0.5), counts(0.7, seed=1)
    found = change(before, after, labelled=True)
    assert found.mean == pytest.approx(mean_iou(after.sum(0)) - mean_iou(before.sum(0)))
    assert found.low < found.mean < found.high
    assert change(before, before, labelled=True) == (0, 0, 0)


def test_the_range_is_that_of_the_paired_bootstrap() -> None:
    before, after = counts(0.5, images=10), counts(0.52, images=10, seed=3)
    rng, gains = np.random.default_rng(1), []
    for _ in range(4000):
        rows = rng.integers(10, size=10)
        gains.append(mean_iou(after[rows].sum(0)) - mean_iou(before[rows].sum(0)))
    _, low, high = change(before, after, labelled=True)
    assert (low, high) == pytest.approx(np.quantile(gains, (0.05, 0.95)), abs=0.003)


def test_of_few_images_nothing_is_certain() -> None:
    before, after = counts(0.1, images=9), counts(0.9, images=9)
    assert change(before, after, labelled=True)[1:] == (-1, 1)
    assert verdict(Judged(views=before, styled=before), Judged(views=after, styled=after)).word == "unclear"


def test_a_network_that_forgets_a_class_does_not_win_by_it() -> None:
    before = counts(0.9)
    forgetful = np.zeros_like(before)
    forgetful[:, 0, 0] = 300  # one class everywhere, in both views
    assert change(before, forgetful, labelled=False).high < 0


def test_names_that_occur_nowhere_do_not_weigh_the_figures_differently() -> None:
    """With three classes in use likeness falls by less than steadiness gains, however many more the class list has."""

    def widened(narrow: np.ndarray, classes: int) -> np.ndarray:
        out = np.zeros((len(narrow), classes, classes), np.int64)
        out[:, :K, :K] = narrow
        return out

    found = []
    for classes in (K, 2 * K, 40):
        before, after = (
            Judged(views=widened(counts(views, seed=1), classes), styled=widened(counts(styled), classes))
            for views, styled in ((0.5, 0.5), (0.8, 0.4))
        )
        found.append(verdict(before, after))
    assert found[0] == found[1] == found[2] and found[0].word == "helped"
    only_after = widened(counts(0.5), 4)
    only_after[:, 3, 3] = 50  # a class that one of the two predicts counts for both
    assert change(widened(counts(0.5), 4), only_after, labelled=False).mean == pytest.approx(
        (3 * mean_iou(counts(0.5).sum(0)) + 1) / 4 - 3 * mean_iou(counts(0.5).sum(0)) / 4
    )


def test_classes_without_a_label_do_not_count() -> None:
    before, after = counts(0.5), counts(0.5)
    before[:, 2], after[:, 2] = 0, 0
    expected = np.mean([mean_iou(before.sum(0), [k]) for k in (0, 1)])
    gained = after.copy()
    gained[:, 0] = [100, 0, 0]
    better = np.mean([mean_iou(gained.sum(0), [k]) for k in (0, 1)])
    assert change(before, gained, labelled=True).mean == pytest.approx(better - expected)


@pytest.mark.parametrize(
    ("after", "word"),
    [
        (judged(0.8, 0.8), "helped"),
        (judged(0.3, 0.3), "harmed"),
        (judged(0.3, 0.5), "harmed"),
        (judged(0.4, 0.8), "helped"),
        (judged(0.2, 0.6), "harmed"),
        (judged(0.5, 0.5), "unclear"),
        (judged(0.8, 0.5), "unclear"),
        (judged(0.5, 0.2), "harmed"),
        (judged(0.8, 0.2), "harmed"),
    ],
)
def test_the_word(after: Judged, word: str) -> None:
    assert verdict(judged(0.5, 0.5), after).word == word


def test_figures_together() -> None:
    likeness, steadiness = Change(-0.04, -0.07, -0.02), Change(0.10, 0.06, 0.11)
    assert together(likeness, steadiness) == pytest.approx((0.03, 0.03 - 0.025, 0.03 + 0.5 * 0.0005**0.5))
    assert together(None, steadiness) == steadiness


def test_candidates_are_ranked_by_the_word_then_by_steadiness() -> None:
    before = judged(0.5, 0.5)
    helped, steadier, harmed = (
        verdict(before, after) for after in (judged(0.9, 0.7), judged(0.7, 0.9), judged(0.0, 0.75))
    )
    assert max((helped, steadier, harmed), key=lambda v: v.rank) is steadier
    assert min((helped, steadier, harmed), key=lambda v: v.rank) is harmed


def test_without_a_source_views_decide() -> None:
    before, better, worse = (Judged(views=counts(right)) for right in (0.5, 0.8, 0.2))
    assert verdict(before, better).word == "helped" and verdict(before, worse).word == "harmed"
    assert verdict(before, better).likeness is None


def test_the_expected_share_of_a_class_corrects_what_is_predicted() -> None:
    views, styled = np.zeros((1, K, K), np.int64), np.zeros((1, K, K), np.int64)
    views[0] = np.diag([500, 400, 100])
    styled[0] = [[100, 100, 0], [0, 100, 0], [0, 0, 50]]  # half of what it calls class 1 is class 0
    expected = expected_frequency(Judged(views=views, styled=styled))
    assert expected == pytest.approx(np.array([0.5 * 2, 0.4 * 0.5, 0.1]) / 1.3)
    assert expected_frequency(Judged(views=views)) is None


def test_a_class_that_fades_is_named_and_decides_nothing() -> None:
    before, after = judged(0.5, 0.5), judged(0.8, 0.8)
    after.views[:, 2] = after.views[:, 2] // 8
    found = verdict(before, after)
    assert found.faded == [2] and found.word == "helped"
    assert verdict(before, judged(0.8, 0.8)).faded == []


def test_true_labels_are_reported_and_decide_nothing() -> None:
    before, after = judged(0.5, 0.5, truth=0.9), judged(0.8, 0.8, truth=0.2)
    found = verdict(before, after)
    assert found.word == "helped" and found.truth is not None and found.truth.high < 0
    assert Verdict.from_json(json.loads(json.dumps(dataclasses.asdict(found)))) == found
    assert isinstance(found.steadiness, Change)


def test_an_image_in_the_look_of_another_has_its_moments() -> None:
    rng = np.random.default_rng(0)
    image = rng.integers(80, 160, (20, 30, 3)).astype(np.uint8)
    other = (rng.normal((90, 120, 150), (10, 20, 25), (16, 16, 3))).clip(0, 255).astype(np.uint8)
    moved = in_the_look_of(image, other)
    assert moved.dtype == np.uint8 and moved.shape == image.shape
    assert moved.mean((0, 1)) == pytest.approx(other.mean((0, 1)), abs=0.5)
    assert moved.std((0, 1)) == pytest.approx(other.std((0, 1)), abs=0.5)
    flat = np.full((4, 4, 3), 7, np.uint8)
    assert np.isfinite(in_the_look_of(flat, other)).all()


def test_the_strong_view_is_that_of_its_key() -> None:
    image = torch.rand(1, 3, 12, 16)
    first, again, other = (strong_view(image, key) for key in (3, 3, 4))
    assert torch.equal(first, again) and not torch.equal(first, other) and not torch.equal(first, image)


def test_frequency_counts_predictions() -> None:
    views = np.zeros((2, K, K), np.int64)
    views[0, 0, 1], views[1, 2, 2] = 30, 10  # class of the image, class of its view
    assert Judged(views=views).frequency() == pytest.approx([0.75, 0, 0.25])


def test_a_class_that_is_never_right_keeps_its_frequency() -> None:
    """The second of three, of which the source's images in the target's look have no pixel."""
    styled = np.array([[[90, 10, 0], [0, 0, 0], [0, 2, 8]]])
    views = np.array([np.diag([50, 25, 25])])
    raw = np.array([0.5 * 100 / 90, 0.25, 0.25 * 10 / 8])
    np.testing.assert_allclose(expected_frequency(Judged(views, source=styled, styled=styled)), raw / raw.sum())


def test_a_verdict_read_again_knows_what_it_does_not_know() -> None:
    nan = float("nan")
    told = Verdict("unclear", None, Change(0.1, -1.0, 1.0), Change(nan, nan, nan))
    again = Verdict.from_json(json.loads(dump_json(dataclasses.asdict(told))))
    assert again.steadiness == told.steadiness and all(map(math.isnan, again.truth or ()))
