"""Which ids came already and where, in sixteen bytes each: their hashes, in sorted runs that are merged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FRESH = 1 << 16


class Seen:
    """The ids of a stream of inputs.

    Ids are told apart by their 64-bit hashes; of ten million, two fall together once in 400,000 times.

    Examples
    --------
    >>> seen = Seen()
    >>> [seen.before(name, i) for i, name in enumerate(["a", "b", "a"])]
    [None, None, 0]
    """

    def __init__(self) -> None:
        self._fresh: dict[int, int] = {}
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def before(self, name: str, position: int) -> int | None:
        """The position at which this id came before, None when it is new; notes it either way."""
        key = hash(name)
        if (first := self._fresh.setdefault(key, position)) != position:
            return first
        for hashes, positions in self._runs:
            at = int(np.searchsorted(hashes, key))
            if at < len(hashes) and hashes[at] == key:
                del self._fresh[key]
                return int(positions[at])
        if len(self._fresh) >= _FRESH:
            self._settle()
        return None

    def _settle(self) -> None:
        """What is fresh becomes a run, merged with those that are not four times as long."""
        hashes = np.fromiter(self._fresh, np.int64, len(self._fresh))
        positions = np.fromiter(self._fresh.values(), np.int64, len(self._fresh))
        self._fresh = {}
        while self._runs and len(self._runs[-1][0]) < 4 * len(hashes):
            run = self._runs.pop()
            hashes, positions = np.concatenate([run[0], hashes]), np.concatenate([run[1], positions])
        order = np.argsort(hashes, kind="stable")
        self._runs.append((hashes[order], positions[order]))
