"""Seeded random permutations, which decide the order of rows in an epoch.

Each permutation has a key of its own and depends on no earlier random draw, so that any point of any epoch
can be computed directly. That makes resuming cheap.

The random numbers are the raw bits of PCG64, keyed by a SeedSequence. numpy guarantees both to stay the same
(NEP 19 allows changes to its distributions, but not to its bit generators). All steps after the raw bits are
implemented here. Any change that moves a row must change `ORDER`.
"""

import math
from collections.abc import Callable
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Shuffle = bool | Literal["full"]
"""False: in order; True: through a reservoir; ``"full"``: a uniform permutation of the rows."""

ORDER = 1
"""The version of the row order. Saved states include it, so that a state for another order is refused."""

MAX_TABLE = 1 << 20
"""The largest permutation that is kept as a table; a larger one is computed by a Feistel network."""


def _bits(seed: int, path: tuple[int, ...]) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=path))


def permutation(n: int, seed: int, *path: int) -> NDArray[np.int64]:
    """A uniform random permutation of ``0..n-1``, int64 ``[n]``.

    Each number gets random high bits, and the numbers are sorted by them. Ties keep their order, which is
    slightly non-uniform. They are rare: for n in the millions, the keys still have at least 40 random bits.

    Parameters
    ----------
    n : int
    seed : int
    path : int
        The key of this permutation among those of the seed.
    """
    low = np.uint64(n.bit_length())
    keys = np.asarray(_bits(seed, path).random_raw(n), np.uint64)
    keys >>= low
    keys <<= low
    keys |= np.arange(n, dtype=np.uint64)
    keys.sort()
    keys &= (np.uint64(1) << low) - np.uint64(1)
    return keys.view(np.int64)


class Feistel:
    """A pseudorandom permutation of ``0..n-1`` that is computed instead of stored.

    This is the generalized Feistel network of Black and Rogaway ("Ciphers with arbitrary finite domains",
    2002). A number is split into a pair (left, right) with both halves below about sqrt(n). Each round shifts
    one half by a keyed hash of the other, modulo the half's size. A result of n or more goes through the
    network again (cycle walking), which keeps the mapping a permutation.

    Parameters
    ----------
    n : int
    seed : int
    path : int
        The key of this permutation among those of the seed.
    """

    ROUNDS = 10

    def __init__(self, n: int, seed: int, *path: int) -> None:
        self._n = np.uint64(n)
        self._left = np.uint64(math.isqrt(max(n - 1, 0)) + 1)
        self._right = np.uint64(-(-n // int(self._left)))
        self._keys = _bits(seed, path).random_raw(self.ROUNDS)

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """The images of `numbers`, int64 ``[m]`` in ``0..n-1``, as int64 ``[m]``."""
        out = self._apply_rounds(numbers.astype(np.uint64))
        while (outside := np.flatnonzero(out >= self._n)).size:
            out[outside] = self._apply_rounds(out[outside])
        return out.view(np.int64)

    def _apply_rounds(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
        left = numbers // self._right
        right = numbers - left * self._right
        for i, key in enumerate(self._keys):
            if i % 2:
                right = self._shifted(right, left, key, self._right)
            else:
                left = self._shifted(left, right, key, self._left)
        left *= self._right
        left += right
        return left

    @staticmethod
    def _shifted(
        half: NDArray[np.uint64], other: NDArray[np.uint64], key: np.uint64, size: np.uint64
    ) -> NDArray[np.uint64]:
        hashed = other ^ key
        hashed *= np.uint64(0x9E3779B97F4A7C15)
        hashed ^= hashed >> np.uint64(32)
        hashed *= np.uint64(0xD6E8FEB86659FD93)
        hashed >>= np.uint64(32)
        # Scale 32 hashed bits to 0..size-1. The size has at most 32 bits, since n < 2**63.
        hashed *= size
        hashed >>= np.uint64(32)
        hashed += half
        hashed -= size * (hashed >= size)
        return hashed


def uniform(n: int, seed: int, *path: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """A uniform permutation of ``0..n-1`` as a function from int64 ``[m]`` to int64 ``[m]``."""
    if n > MAX_TABLE:
        return Feistel(n, seed, *path)
    return permutation(n, seed, *path).__getitem__
