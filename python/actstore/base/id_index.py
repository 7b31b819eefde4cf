"""The set of example ids in a store, at about eight bytes per id.

The set keeps the ids' hashes in sorted runs whose sizes double, like a log-structured merge tree. Two ids
can have the same hash, so the stored ids themselves are read before a new id is rejected as a duplicate.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import FormatError, InvalidInputError

_BLOCK_IDS = 1 << 16
"""Ids read from disk at once."""


class IdSet:
    """The ids in a store that is being written: those on disk and those appended since.

    Parameters
    ----------
    native : _native.Writer
        The store's writer.
    bytes_name, offset_name : str
        The arrays that hold the stored ids: utf-8 bytes, and int64 offsets ``[n_examples + 1]``.
    """

    def __init__(self, native: _native.Writer, bytes_name: str, offset_name: str) -> None:
        self._native = native
        self._bytes, self._offset = bytes_name, offset_name
        self._runs: list[NDArray[np.int64]] | None = None  # Loaded on first use.

    def check_new(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Check that all ids are new; return their hashes, int64 ``[n]``, to be passed to `add`.

        Raises
        ------
        InvalidInputError
            When an id is already in the store, or occurs twice in `names`. The message names the first one.
        """
        if len(set(names)) != len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InvalidInputError(f"ids: {twice!r} occurs twice")
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        maybe_known = np.zeros(len(names), bool)
        for run in self._load():
            nearest = np.minimum(np.searchsorted(run, hashes), run.size - 1)
            maybe_known |= run[nearest] == hashes
        if maybe_known.any():
            stored = {name for block in self._stored() for name in block}
            for i in np.flatnonzero(maybe_known).tolist():
                if names[i] in stored:
                    raise InvalidInputError(
                        f"ids: {self._native.path} already has an example {names[i]!r}",
                        hint="default ids are positions; pass ids= if the store also has ids of another form",
                    )
        return hashes

    def add(self, hashes: NDArray[np.int64]) -> None:
        """Add the hashes of ids that have been appended."""
        runs = self._load()
        if hashes.size:
            runs.append(np.sort(hashes))
        while len(runs) > 1 and runs[-2].size <= 2 * runs[-1].size:
            last = runs.pop()
            runs[-1] = np.sort(np.concatenate([runs[-1], last]), kind="stable")

    def _load(self) -> list[NDArray[np.int64]]:
        if self._runs is None:
            self._runs = []
            for block in self._stored():
                self.add(np.fromiter(map(hash, block), np.int64, len(block)))
        return self._runs

    def _stored(self) -> Iterator[list[str]]:
        """The ids on disk, in blocks."""
        n = self._native.arrays[self._offset][0][0] - 1
        for start in range(0, n, _BLOCK_IDS):
            stop = min(start + _BLOCK_IDS, n)
            offset = np.empty(stop - start + 1, np.int64)
            self._native.read(self._offset, start, stop + 1, offset)
            if (np.diff(offset) < 0).any() or offset[0] < 0:
                raise FormatError(f"{self._native.path}: {self._offset} is not ascending", kind="metadata")
            blob = np.empty(int(offset[-1] - offset[0]), np.uint8)
            if blob.size:
                self._native.read(self._bytes, int(offset[0]), int(offset[-1]), blob)
            raw, ends = blob.tobytes(), (offset - offset[0]).tolist()
            yield [raw[a:b].decode(errors="surrogateescape") for a, b in pairwise(ends)]
