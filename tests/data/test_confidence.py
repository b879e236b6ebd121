"""The code that a confidence is stored as."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from udaseg.data import images
from udaseg.data.confidence import (
    HISTOGRAM_BINS,
    confidence_histogram,
    decode_confidence,
    decode_distribution,
    distribution_size,
    encode_confidence,
    encode_distribution,
)
from udaseg.errors import DatasetError


def _prediction(shape: tuple[int, int], classes: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Labels and confidences, most of them close to 1 as a trained network's are."""
    rng = np.random.default_rng(seed)
    return rng.integers(0, classes, shape), (1 - np.exp(-4 * rng.random(shape) ** 2)).astype(np.float32)


def test_encoding_resolves_what_is_left_to_one() -> None:
    """Half a code is 1/8192 nat, so 1 - p is kept to that relative precision, up to where 16 bits end."""
    probability = np.concatenate([np.linspace(0, 0.999, 5000), 1 - np.geomspace(1e-3, 2e-7, 5000)])
    left = -np.expm1(-encode_confidence(probability).astype(np.float64) / 4096)
    np.testing.assert_allclose(1 - left, 1 - probability, rtol=1 / 8192 + 1e-6)
    np.testing.assert_allclose(decode_confidence(encode_confidence(probability)), probability, atol=1.3e-4)


def test_encoding_is_monotonic_and_its_ends_are_safe() -> None:
    codes = encode_confidence(np.linspace(0, 1, 10001, dtype=np.float32)).astype(np.int64)
    assert (np.diff(codes) >= 0).all() and codes[0] == 0 and codes[-1] == 65535
    decoded = decode_confidence(np.arange(65536).astype(np.uint16))
    assert decoded[0] == 0 and (np.diff(decoded) >= 0).all() and decoded[-1] <= 1
    assert encode_confidence(np.array([0.9985]))[0] < encode_confidence(np.array([0.99999]))[0]


def test_every_code_decodes_to_a_probability_that_encodes_to_itself() -> None:
    codes = np.arange(0, 31000, dtype=np.uint16)  # beyond, float32 holds 1 - p less finely than a code does
    assert np.array_equal(encode_confidence(decode_confidence(codes)), codes)


def test_a_stored_distribution_keeps_small_probabilities_as_well_as_large_ones() -> None:
    """A product with another distribution is asked for its largest class, so that ratios count."""
    probability = np.geomspace(2e-7, 1, 5000)
    np.testing.assert_allclose(decode_distribution(encode_distribution(probability)), probability, rtol=1.3e-4)
    assert encode_distribution(np.array([0.0, 1.0])).tolist() == [65535, 0]
    assert decode_distribution(np.array([65535, 0], np.uint16)).tolist() == [0, 1], "nothing stays nothing"
    assert distribution_size(1024, 2048) == (128, 256) and distribution_size(1, 9) == (1, 2)
    assert 19 * 2 * 128 * 256 / (1024 * 2048) < 0.6, "bytes a pixel of an image"


def test_histograms_count_and_add_up() -> None:
    parts = []
    for seed in range(3):
        label, confidence = _prediction((8, 9), 4, seed)
        parts.append(confidence_histogram(label, encode_confidence(confidence), 4))
        assert parts[-1].shape == (4, HISTOGRAM_BINS)
        assert np.array_equal(parts[-1].sum(1), np.bincount(label.ravel(), minlength=4))
    labels, confidences = zip(*(_prediction((8, 9), 4, seed) for seed in range(3)), strict=True)
    whole = confidence_histogram(np.stack(labels), encode_confidence(np.stack(confidences)), 4)
    assert np.array_equal(sum(parts), whole)


def test_a_distribution_may_have_more_cells_than_an_image_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """182 classes at an eighth of 48 megapixels are 68 million."""
    codes = np.random.default_rng(0).integers(0, 1 << 16, (40, 6), np.uint16)
    file = tmp_path / "a.png"
    Image.fromarray(codes).save(file)
    monkeypatch.setattr(images, "MAX_PIXELS", 100)
    assert np.array_equal(images.read_codes(str(file), (40, 6)), codes)
    for shape in ((20, 6), (2, 2)):
        with pytest.raises(DatasetError, match=r"a\.png: 6 x 40 pixels; more than 1[02]0 are not decoded"):
            images.read_codes(str(file), shape)
