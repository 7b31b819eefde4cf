"""Which example ids a store has already, in about eight bytes each.

Hashes are kept in sorted runs that double, as in a log-structured merge tree. A hash that is
there already may be another id's, so before an id is refused the stored ids are read.
"""

from collections.abc import Iterator, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from . import _native
from .errors import FormatError, InvalidInputError

_BLOCK = 1 << 16


class IdSet:
    """The ids a writer has appended or found."""

    def __init__(self, native: _native.Writer, bytes_name: str, offset_name: str) -> None:
        self._native = native
        self._bytes, self._offset = bytes_name, offset_name
        self._runs: list[NDArray[np.int64]] | None = None  # Read when first needed.

    def check_new(self, names: Sequence[str]) -> NDArray[np.int64]:
        """Hashes ``[n]`` of ids that are all new, for `add`.

        Raises
        ------
        InvalidInputError
            Naming the first id that is there already, or twice among these.
        """
        if len(set(names)) != len(names):
            seen: set[str] = set()
            twice = next(name for name in names if name in seen or seen.add(name))  # type: ignore[func-returns-value]
            raise InvalidInputError(f"ids: {twice!r} is given twice")
        hashes = np.fromiter(map(hash, names), np.int64, len(names))
        suspects = np.zeros(len(names), bool)
        for run in self._load():
            at = np.minimum(np.searchsorted(run, hashes), run.size - 1)
            suspects |= run[at] == hashes
        if suspects.any():
            stored = {name for block in self._stored() for name in block}
            for i in np.flatnonzero(suspects).tolist():
                if names[i] in stored:
                    raise InvalidInputError(
                        f"ids: there is an example {names[i]!r} in {self._native.path} already",
                        hint="ids default to positions; give ids= of your own to mix with others",
                    )
        return hashes

    def add(self, hashes: NDArray[np.int64]) -> None:
        """Take note of what has been appended."""
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
        """The ids on disk, some at a time."""
        n = self._native.arrays[self._offset][0][0] - 1
        for start in range(0, n, _BLOCK):
            stop = min(start + _BLOCK, n)
            offset = np.empty(stop - start + 1, np.int64)
            self._native.read(self._offset, start, stop + 1, offset)
            if (np.diff(offset) < 0).any() or offset[0] < 0:
                raise FormatError(f"{self._native.path}: {self._offset} falls", kind="metadata")
            blob = np.empty(int(offset[-1] - offset[0]), np.uint8)
            if blob.size:
                self._native.read(self._bytes, int(offset[0]), int(offset[-1]), blob)
            raw, ends = blob.tobytes(), (offset - offset[0]).tolist()
            yield [raw[a:b].decode(errors="surrogateescape") for a, b in pairwise(ends)]
