from __future__ import annotations

import numpy as np
import pytest

from udaseg.rng import key_to_seed, keyed, permute, uniforms


@pytest.mark.parametrize("size", [1, 2, 3, 4, 5, 7, 16, 17, 63, 64, 65, 255, 1000, 1024, 4097])
def test_permute_is_a_permutation(size: int) -> None:
    out = permute(np.arange(size), size, 3, "source", 0)
    assert out.dtype == np.int64
    assert np.array_equal(np.sort(out), np.arange(size))


def test_permute_treats_positions_one_by_one() -> None:
    whole = permute(np.arange(500), 500, "key")
    assert [int(permute(np.array([p]), 500, "key")[0]) for p in range(0, 500, 17)] == whole[::17].tolist()
    assert np.array_equal(permute(np.arange(500)[::-1], 500, "key"), whole[::-1])


def test_permute_leaves_its_argument_alone() -> None:
    position = np.arange(100).astype(np.uint64)
    permute(position, 100, 0)
    assert np.array_equal(position, np.arange(100))


def test_permutations_differ_by_key_and_look_random() -> None:
    size, seen = 2000, []
    for key in [(0, "a", 0), (0, "a", 1), (0, "b", 0), (1, "a", 0)]:
        out = permute(np.arange(size), size, *key)
        assert abs(np.corrcoef(np.arange(size), out)[0, 1]) < 0.1
        assert (out == np.arange(size)).sum() < 15, "about one fixed point is expected"
        seen.append(out)
    for i, one in enumerate(seen):
        for other in seen[:i]:
            assert (one == other).sum() < 15


def test_every_permutation_of_a_small_range_occurs_about_as_often() -> None:
    first = [int(permute(np.array([0]), 5, key)[0]) for key in range(1000)]
    assert np.bincount(first, minlength=5).min() > 150


def test_a_position_among_billions_costs_no_memory() -> None:
    size = 10**10
    out = permute(np.array([0, 1, size - 1]), size, "large")
    assert ((out >= 0) & (out < size)).all() and len(set(out.tolist())) == 3


def test_keys_differ_by_each_part_and_by_order() -> None:
    keys = [(s, i, p) for s in (0, 1, 2**40, 2**62 + 1) for i in (0, 1, 2**31) for p in ("crop", "flip")]
    keys += [(i, s, p) for s, i, p in keys if s != i]
    draws = [tuple(keyed(*key).random(3)) for key in set(keys)]
    assert len(set(draws)) == len(draws)
    assert np.array_equal(keyed(0, 1, "crop").random(3), keyed(0, 1, "crop").random(3))


def test_numpy_integers_are_the_same_key_as_python_ones() -> None:
    assert keyed(3, np.int64(5), "x").random() == keyed(3, 5, "x").random()  # type: ignore[arg-type]


def test_seeds_fit_torch_and_spread() -> None:
    seeds = [key_to_seed(0, step) for step in range(100)]
    assert len(set(seeds)) == 100
    assert all(0 <= seed < 2**63 for seed in seeds)


def test_uniforms_belong_to_the_sample() -> None:
    drawn = uniforms(3, np.array([5, 9, 5]), "flip", 4)
    assert drawn.shape == (3, 4) and ((drawn >= 0) & (drawn < 1)).all()
    assert np.array_equal(drawn[0], drawn[2]) and not np.array_equal(drawn[0], drawn[1])
    assert np.array_equal(uniforms(3, np.array([9]), "flip", 4)[0], drawn[1])
    assert not np.array_equal(uniforms(3, np.array([9]), "angle", 4)[0], drawn[1])
