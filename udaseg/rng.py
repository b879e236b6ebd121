"""Keyed random numbers: every draw is a pure function of the seed and of what it is for.

Nothing draws from a running generator, so a resumed run repeats the uninterrupted one, and the samples do not depend on
the number of workers.
"""

from __future__ import annotations

from zlib import crc32

import numpy as np

_MASK = np.uint64(0xFFFFFFFFFFFFFFFF)


def _word(part: int | str) -> int:
    return crc32(part.encode()) if isinstance(part, str) else part


def keyed(*key: int | str) -> np.random.Generator:
    """A generator for one key, e.g. `keyed(seed, index, "crop")`. Integers must be >= 0.

    End a key with what the draw is for: NumPy's seeding takes (7,) and (7, 0) for the same.
    """
    return np.random.default_rng([_word(part) for part in key])


def key_to_seed(*key: int | str) -> int:
    """A 63-bit seed for `torch.manual_seed`, a pure function of the key."""
    return int(keyed(*key).integers(1 << 63))


def uniforms(seed: int, indices: np.ndarray, purpose: str, count: int) -> np.ndarray:
    """(B, count) floats in [0, 1): row b depends on (seed, indices[b], purpose) alone."""
    return np.stack([keyed(seed, int(i), purpose).random(count) for i in indices])


def permute(position: np.ndarray, size: int, *key: int | str) -> np.ndarray:
    """Where a keyed permutation of range(size) sends `position`, without holding the permutation.

    A four-round Feistel network on the smallest even number of bits that covers `size`, walked until it lands inside
    (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002). O(1) memory per position, so one sample of ten
    million images costs as much as one of ten.

    Args:
        position: int64 array with values in [0, size).
        size: number of elements, >= 1.
        key: what the permutation is for.
    """
    half = max(1, ((size - 1).bit_length() + 1) // 2)
    low = np.uint64((1 << half) - 1)
    rounds = keyed(*key, "permutation").integers(1, 1 << 63, size=4, dtype=np.uint64) | np.uint64(1)

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = x >> np.uint64(half), x & low
        for word in rounds:
            mixed = (right + word) * word & _MASK  # wraps modulo 2^64 by design
            mixed ^= mixed >> np.uint64(29)
            mixed *= np.uint64(0xBF58476D1CE4E5B9)
            left, right = right, left ^ ((mixed >> np.uint64(32)) & low)
        return left << np.uint64(half) | right

    out = encrypt(np.asarray(position).astype(np.uint64))
    while (outside := out >= np.uint64(size)).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)
