"""Whether adaptation helped, by images that nobody labelled: an adapted network against the source-only one.

Two figures, each a mean IoU in points, adapted less source-only, with the range that chance leaves it:

- `likeness`: on held-out *source* images that are given the look of target images. Their labels are true, so that what
  a class gains or loses is seen; what differs between the domains beside colour and contrast is not.
- `steadiness`: on held-out *target* images, between the classes of an image and those of its strongly augmented view.
  It sees the whole target, and no mistake that a network makes twice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from udaseg.components.augment import strong
from udaseg.rng import keyed

Word = Literal["helped", "unclear", "harmed"]

WORDS: tuple[Word, ...] = ("harmed", "unclear", "helped")
_DRAWS = 1000
_TAIL = 0.05
_FEWEST = 10
"""Of fewer images the bootstrap's range is too narrow to mean anything, so that it is taken to be all there is."""


@dataclass(frozen=True)
class Judged:
    """What a network does on held-out images, in pixel counts; the first axis is the images'."""

    views: np.ndarray
    """(N, K, K) target: class of the image, class of its strong view."""
    truth: np.ndarray | None = None
    """(N, K, K) target: true class, predicted class; None where it is not labelled."""
    source: np.ndarray | None = None
    """(M, K, K) source: true class, predicted class; None without a source."""
    styled: np.ndarray | None = None
    """(M, K, K) the same in the look of target images."""

    def frequency(self) -> np.ndarray:
        """(K,) share of each class among the target's predictions."""
        counts = self.views.sum((0, 2))
        return counts / max(1, counts.sum())


class Change(NamedTuple):
    """A mean IoU of the adapted network less that of the source-only one, and its range at 90 %; in [-1, 1]."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class Verdict:
    """What can be said of an adapted network."""

    word: Word
    likeness: Change | None
    """None without a source."""
    steadiness: Change
    truth: Change | None
    """The real one, where the held-out target images are labelled; the word was found without it."""
    faded: list[int] = field(default_factory=list)
    """Classes that are predicted at less than a third of `expected_frequency`: a warning, which decides nothing."""

    @property
    def rank(self) -> tuple[int, float]:
        """What candidates are ranked by: the word, then steadiness, which ranked better than likeness (docs/log.md)."""
        return WORDS.index(self.word), self.steadiness.mean

    @classmethod
    def from_json(cls, values: Mapping[str, Any]) -> Verdict:
        """What `dataclasses.asdict` and JSON have made of a verdict."""
        changes = {
            name: values[name] and Change(*(float("nan") if value is None else value for value in values[name]))
            for name in ("likeness", "steadiness", "truth")
        }
        return cls(word=values["word"], faded=values["faded"], **changes)


def strong_view(image: Tensor, key: int) -> Tensor:
    """The strongly augmented view of an image, (1, 3, H, W) in [0, 1]: jittered and blurred for certain."""
    return strong(image, torch.tensor([key]), seed=0, purpose="verdict", jitter_probability=1.0, blur_probability=1.0)


def in_the_look_of(image: np.ndarray, other: np.ndarray) -> np.ndarray:
    """An image with the mean and standard deviation of another one's red, green and blue.

    After Reinhard et al., "Color transfer between images" (2001), in RGB.

    Args:
        image: (H, W, 3) uint8.
        other: (h, w, 3) uint8.
    """
    moments = [(pixels.mean((0, 1)), pixels.std((0, 1))) for pixels in (image, other)]
    (mean, deviation), (new_mean, new_deviation) = moments
    moved = (image - mean) / np.maximum(deviation, 1.0) * new_deviation + new_mean
    return moved.round().clip(0, 255).astype(np.uint8)


def change(before: np.ndarray, after: np.ndarray, *, labelled: bool) -> Change:
    """What mean IoU gains between two networks on the same images, with a range by the paired bootstrap over images.

    Args:
        before: (N, K, K) counts of each image.
        after: the same.
        labelled: whether rows are true classes; then those without a pixel are left out. Else all classes count that
            either network predicts at all, as 0 where one never does: a network that forgets a class must not win by
            it, and names of a class list that occur nowhere must not make the figure small.
    """
    weights = keyed(0, "bootstrap").multinomial(len(before), np.full(len(before), 1 / len(before)), _DRAWS)
    weights = np.concatenate([np.ones((1, len(before)), np.int64), weights])
    first, last = (np.tensordot(weights, counts, 1) for counts in (before, after))
    seen = sum(counts.sum((0, axis)) for counts in (before, after) for axis in (1, 2)) > 0
    of = None if labelled else seen
    gains = _mean_iou(last, of) - _mean_iou(first, of)
    low, high = np.nanquantile(gains[1:], (_TAIL, 1 - _TAIL)) if len(before) >= _FEWEST else (-1.0, 1.0)
    return Change(float(gains[0]), float(low), float(high))


def _mean_iou(counts: np.ndarray, of: np.ndarray | None) -> np.ndarray:
    """(D,) of (D, K, K) counts, over classes `of` (K,); None = those with a pixel among the true ones, the rows."""
    hit = np.einsum("dii->di", counts).astype(np.float64)
    union = counts.sum(1) + counts.sum(2) - hit
    counted = counts.sum(2) > 0 if of is None else np.broadcast_to(of, hit.shape)
    values = hit / np.maximum(union, 1)
    return np.divide((values * counted).sum(1), counted.sum(1), out=np.full(len(hit), np.nan), where=counted.any(1))


def expected_frequency(before: Judged) -> np.ndarray | None:
    """(K,) share of each class in the target, as the source-only network's predictions suggest; None without a source.

    What it predicts is corrected by its errors on labelled images that look like the target: a class that it finds at
    precision P and recall R is P / R times as frequent as predicted.
    """
    if before.styled is None:
        return None
    counts = before.styled.sum(0)
    hit, predicted, true = np.diag(counts), counts.sum(0), counts.sum(1)
    share = before.frequency() * np.divide(true, predicted, out=np.ones(len(hit)), where=(predicted > 0) & (hit > 0))
    return share / share.sum()


def verdict(before: Judged, after: Judged) -> Verdict:
    """What can be said of an adapted network against the source-only one, judged on the same images."""
    steadiness = change(before.views, after.views, labelled=False)
    likeness = None
    if before.styled is not None and after.styled is not None:
        likeness = change(before.styled, after.styled, labelled=True)
    truth = None
    if before.truth is not None and after.truth is not None:
        truth = change(before.truth, after.truth, labelled=True)
    expected = expected_frequency(before)
    faded = [] if expected is None else np.flatnonzero(after.frequency() < expected / 3).tolist()
    return Verdict(_word(likeness, steadiness), likeness, steadiness, truth, faded)


def together(likeness: Change | None, steadiness: Change) -> Change:
    """The mean of both figures, whose images have nothing to do with each other; steadiness alone without a source."""
    if likeness is None:
        return steadiness
    mean = (likeness.mean + steadiness.mean) / 2
    down = np.hypot(likeness.mean - likeness.low, steadiness.mean - steadiness.low) / 2
    up = np.hypot(likeness.high - likeness.mean, steadiness.high - steadiness.mean) / 2
    return Change(mean, float(mean - down), float(mean + up))


def _word(likeness: Change | None, steadiness: Change) -> Word:
    """A network that adapts leaves the source for the target's sake, so that likeness may fall: it is weighed against
    what steadiness gains. A loss of steadiness is harm whatever likeness says."""
    both = together(likeness, steadiness)
    if steadiness.high < 0 or both.high < 0:
        return "harmed"
    return "helped" if steadiness.low > 0 and both.low > 0 else "unclear"
