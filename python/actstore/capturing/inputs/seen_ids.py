"""Detecting duplicate ids in a stream at sixteen bytes per id: 64-bit hashes in sorted runs that are
merged."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_FRESH = 1 << 16


class SeenIds:
    """The ids that a stream of inputs has had so far, and their positions.

    Ids are compared by their 64-bit hashes. Among ten million ids the probability of a collision is 1 in
    400,000.

    Examples
    --------
    >>> seen_ids = SeenIds()
    >>> [seen_ids.add(name, i) for i, name in enumerate(["a", "b", "a"])]
    [None, None, 0]
    """

    def __init__(self) -> None:
        self._fresh: dict[int, int] = {}
        self._runs: list[tuple[NDArray[np.int64], NDArray[np.int64]]] = []

    def add(self, name: str, position: int) -> int | None:
        """Add an id. Returns the position of an earlier occurrence, or None if the id is new."""
        key = hash(name)
        if (first := self._fresh.setdefault(key, position)) != position:
            return first
        for hashes, positions in self._runs:
            at = int(np.searchsorted(hashes, key))
            if at < len(hashes) and hashes[at] == key:
                del self._fresh[key]
                return int(positions[at])
        if len(self._fresh) >= _FRESH:
            self._flush()
        return None

    def _flush(self) -> None:
        """Sort the fresh ids into a run, merging it with runs that are less than four times as long."""
        hashes = np.fromiter(self._fresh, np.int64, len(self._fresh))
        positions = np.fromiter(self._fresh.values(), np.int64, len(self._fresh))
        self._fresh = {}
        while self._runs and len(self._runs[-1][0]) < 4 * len(hashes):
            run = self._runs.pop()
            hashes, positions = np.concatenate([run[0], hashes]), np.concatenate([run[1], positions])
        order = np.argsort(hashes, kind="stable")
        self._runs.append((hashes[order], positions[order]))
