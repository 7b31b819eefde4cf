"""The schedule of an epoch: which rows are read when, and in which order they are returned.

A view is cut into *segments*: runs of rows within one chunk, or within a few chunks if the store has very
many. An epoch puts the segments in order, random or that of the view, and reads them in *rounds* of several
segments. A *reservoir* holds the last `window` rounds. In each *step* one more round is read, every round in
the reservoir gives up an equal share of its rows, drawn at random, and these rows are returned in random
order.

So the rows of one chunk are spread evenly over as many returned rows as the reservoir holds, any stretch of
the result mixes rows of all chunks in the reservoir, and each chunk is decoded once. In the first step, the
reservoir is already full and its rounds count as rounds of all ages; the last step empties it. If the
reservoir can hold the whole view, the result is a uniform permutation.

This module computes; `epoch` reads.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..base.selection import Rows, rows_array
from .permutation import Shuffle, permutation, uniform

WINDOW = 8
"""Rounds in a reservoir: enough to spread a chunk well, and few enough that a round keeps all cores busy."""

MAX_SEGMENTS = 1 << 20
"""The order of segments is held in memory, in a few arrays of at most 8 MiB each for this many segments."""

_SEGMENTS, _ROUND, _STEP, _FULL = range(4)
"""The first element of a permutation's key: what it permutes."""


# ---- Segments ----


@dataclass(frozen=True)
class Segments:
    """The rows of a view, cut at chunk boundaries.

    Parameters
    ----------
    rows : range or array ``[n]``
        The view's rows, as row numbers in the whole store.
    order : array ``[n]``, optional
        Positions in the view sorted by row number. None if the rows already ascend, or if their order must
        be kept.
    starts : array ``[n_segments + 1]``
        Where each segment starts in that order; the last entry is n.
    """

    rows: Rows
    order: NDArray[np.int64] | None
    starts: NDArray[np.int64]

    @property
    def n_rows(self) -> int:
        """Rows of the view."""
        return len(self.rows)

    @property
    def largest(self) -> int:
        """Rows of the largest segment."""
        return int(np.diff(self.starts).max(initial=0))

    def row_numbers(self, positions: NDArray[np.int64]) -> NDArray[np.int64]:
        """The row numbers at positions ``[m]`` of the segments' order, int64 ``[m]``."""
        in_view = positions if self.order is None else self.order[positions]
        if isinstance(self.rows, range):
            return in_view + self.rows.start
        return self.rows[in_view]


def segment_edges(parts: Sequence[tuple[int, int]], max_rows: int) -> NDArray[np.int64]:
    """The first row of each segment of a whole store, ascending int64.

    Parameters
    ----------
    parts : sequence of (int, int)
        Number of rows, and rows per chunk, of each part. Each part begins with a new chunk.
    max_rows : int
        Maximum rows of a segment. A chunk with more rows than this is decoded more than once.
    """
    n_rows = sum(n for n, _ in parts)
    n_chunks = sum(-(-n // chunk_rows) for n, chunk_rows in parts)
    chunks_per_segment = max(1, -(-n_chunks // MAX_SEGMENTS))
    edges, first = [np.zeros(0, np.int64)], 0
    for n, chunk_rows in parts:
        step = chunk_rows * chunks_per_segment
        if step > max_rows:
            step = max(max_rows, -(-n_rows // MAX_SEGMENTS))
        edges.append(np.arange(first, first + n, step, dtype=np.int64))
        first += n
    return np.concatenate(edges)


def cut_segments(rows: Rows, edges: NDArray[np.int64], in_order: bool = False, step: int = 1) -> Segments:
    """Cut the rows of a view into segments.

    Parameters
    ----------
    rows : range or array ``[n]``
        The view's rows.
    edges : array
        The result of `segment_edges` for the whole store.
    in_order : bool
        Keep the view's order. Rows that do not ascend are then cut into segments of `step` rows.
    step : int
        See `in_order`.
    """
    n = len(rows)
    order = None
    if isinstance(rows, range):
        inside = edges[np.searchsorted(edges, rows.start, "right") : np.searchsorted(edges, rows.stop)]
        starts = np.concatenate([[0], inside - rows.start, [n]])
    elif bool((rows[1:] >= rows[:-1]).all()):
        starts = np.concatenate([[0], np.searchsorted(rows, edges), [n]])
    elif in_order:
        starts = np.concatenate([np.arange(0, n, step), [n]])
    else:
        order = np.argsort(rows, kind="stable")
        starts = np.concatenate([[0], np.searchsorted(rows, edges, sorter=order), [n]])
    return Segments(rows, order, np.unique(starts).astype(np.int64))


# ---- Shares of ranks and workers ----


def rank_rows(n_rows: int, rank: int, world_size: int) -> range:
    """The range of an epoch's order that belongs to a rank. Ranks differ by at most one row."""
    return range(n_rows * rank // world_size, n_rows * (rank + 1) // world_size)


@dataclass(frozen=True)
class BatchBounds:
    """Where the batches of one rank begin within the rank's rows.

    All ranks have the same number of batches, and each row is in exactly one batch. A rank that has one row
    less makes its last batch smaller, and the one before it too if necessary. Ranks can differ by one batch
    only if the batch size is one or there are fewer rows than ranks. With `drop_last`, all batches are full,
    and every rank has as many as the smallest rank can fill.
    """

    n_rows: int
    batch_size: int
    n_batches: int

    @classmethod
    def of(cls, n_rows: int, batch_size: int, drop_last: bool, rank: int, world_size: int) -> "BatchBounds":
        """The bounds for one rank, with `n_rows` rows over all ranks."""
        if drop_last:
            n_batches = n_rows // world_size // batch_size
            return cls(n_batches * batch_size, batch_size, n_batches)
        n_own = len(rank_rows(n_rows, rank, world_size))
        largest_share = -(-n_rows // world_size)
        return cls(n_own, batch_size, min(-(-largest_share // batch_size), n_own))

    def __getitem__(self, batch: int) -> int:
        """The first row of a batch; for ``batch == n_batches``, the end of the last one."""
        return min(batch * self.batch_size, self.n_rows - (self.n_batches - batch))


def worker_batches(n_batches: int, worker: int, n_workers: int) -> range:
    """The contiguous range of a rank's batches that one worker makes.

    The first ``n_batches % n_workers`` workers make one batch more. A DataLoader takes batches from its
    workers in turn, so worker ``i % n_workers`` supplies the i-th batch of the epoch.
    """
    each, remainder = divmod(n_batches, n_workers)
    first = worker * each + min(worker, remainder)
    return range(first, first + each + (worker < remainder))


# ---- Schedule ----


class Schedule:
    """The order of one epoch, or of one share of it. See the module's docstring for the algorithm.

    Parameters
    ----------
    segments : Segments
    shuffle : bool or "full"
        False: segments in the view's order. True: segments in random order, through the reservoir.
        ``"full"``: a uniform permutation of single rows.
    seed, epoch : int
    share : range
        The part of the epoch's rows to return, as positions in the order of the segments or of the
        permutation.
    round_rows : int
        Approximate number of rows to read at once.
    window : int
        Rounds in the reservoir.

    Examples
    --------
    >>> segments = cut_segments(range(100), segment_edges([(100, 10)], max_rows=50))
    >>> order = Schedule(segments, True, 7, 0, range(100), round_rows=20, window=2)
    >>> order.n_rounds, order.n_steps, order.capacity
    (5, 4, 20)
    """

    def __init__(
        self,
        segments: Segments,
        shuffle: Shuffle,
        seed: int,
        epoch: int,
        share: range,
        round_rows: int,
        window: int = 1,
    ) -> None:
        self._segments = segments
        self._shuffle = shuffle
        self._seed = seed
        self._key = (epoch, share.start)
        self._share = share
        self._round_rows = round_rows
        self.window = window
        if shuffle == "full":
            self._permute = uniform(segments.n_rows, seed, _FULL, epoch)
            sizes = np.diff(np.append(np.arange(0, len(share), round_rows), len(share)))
        else:
            sizes = self._cut_rounds(epoch)
        self._sizes = sizes
        self.n_rounds = len(sizes)
        self.capacity = int(sizes.max(initial=0))
        """Rows of the largest round, and so of each slot of the reservoir."""
        self.n_steps = max(self.n_rounds - window, 0) + 1 if self.n_rounds else 0
        self.n_slots = min(window + 1, self.n_rounds)
        """Slots of the reservoir: one more than the window, for the round being read."""
        self.mixes = shuffle is True
        """Whether the rows of a round leave the reservoir in another order than they were read."""

    def _cut_rounds(self, epoch: int) -> NDArray[np.int64]:
        """Order the share's segments and group them into rounds; return the rows of each round."""
        share, starts = self._share, self._segments.starts
        first, length = starts[:-1], np.diff(starts)
        if self._shuffle:
            order = permutation(len(first), self._seed, _SEGMENTS, epoch)
            first, length = first[order], length[order]
        ends = np.cumsum(length)
        if share:
            # The first and the last segment of this share may partly belong to a neighboring share.
            begin, stop = np.searchsorted(ends, share.start, "right"), np.searchsorted(ends, share.stop) + 1
            before, after = share.start - (ends[begin] - length[begin]), ends[stop - 1] - share.stop
            first, length = first[begin:stop].copy(), length[begin:stop].copy()
            first[0] += before
            length[0] -= before
            length[-1] -= after
        else:
            first, length = first[:0], length[:0]
        self._first, self._length = first, length
        _, begins = np.unique((np.cumsum(length) - length) // self._round_rows, return_index=True)
        self._begins = np.append(begins, len(first))
        return np.add.reduceat(length, begins) if len(begins) else length

    def round_rows(self, number: int) -> NDArray[np.int64]:
        """The row numbers that a round reads, int64 ``[size of the round]``."""
        if self._shuffle == "full":
            start = self._share.start + number * self._round_rows
            positions = np.arange(start, start + int(self._sizes[number]))
            return self._segments.row_numbers(self._permute(positions))
        segments = slice(self._begins[number], self._begins[number + 1])
        first, length = self._first[segments], self._length[segments]
        if self._shuffle:  # Read in the order on disk.
            order = np.argsort(first)
            first, length = first[order], length[order]
        before = np.cumsum(length) - length
        return self._segments.row_numbers(np.repeat(first - before, length) + np.arange(int(length.sum())))

    def round_order(self, number: int) -> NDArray[np.int64]:
        """The order in which the rows of a round leave the reservoir, int64 ``[size of the round]``."""
        size = int(self._sizes[number])
        if self.mixes:
            return permutation(size, self._seed, _ROUND, *self._key, number)
        return np.arange(size)

    def rounds_of(self, step: int) -> range:
        """The rounds in the reservoir during a step."""
        return range(step, min(step + self.window, self.n_rounds))

    def step_starts(self) -> NDArray[np.int64]:
        """The number of rows returned before each step, and in total: int64 ``[n_steps + 1]``."""
        steps = np.arange(self.n_steps)
        sizes = np.zeros(self.n_steps, np.int64)
        for age in range(self.window):
            numbers = steps + age
            exists = numbers < self.n_rounds
            start, stop = self._portion(numbers[exists], steps[exists])
            sizes[exists] += stop - start
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def _portion(
        self, number: NDArray[np.int64], step: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows, as a half-open range of its `round_order`, a round returns in a step."""
        first_step = np.maximum(number - self.window + 1, 0)
        n_steps = np.minimum(number, self.n_steps - 1) - first_step + 1
        size = self._sizes[number]
        return size * (step - first_step) // n_steps, size * (step - first_step + 1) // n_steps

    def step(self, step: int, orders: Mapping[int, NDArray[np.int64]]) -> NDArray[np.int64]:
        """The rows that a step returns, in order: positions in the reservoir, int64 ``[size of the step]``.

        Round i occupies the reservoir's rows from ``i % n_slots * capacity`` on.

        Parameters
        ----------
        step : int
        orders : mapping of int to array
            `round_order` of each round in the reservoir.
        """
        numbers = self.rounds_of(step)
        starts, stops = self._portion(rows_array(numbers), np.full(len(numbers), step))
        positions = np.concatenate(
            [
                orders[number][start:stop] + number % self.n_slots * self.capacity
                for number, start, stop in zip(numbers, starts.tolist(), stops.tolist(), strict=True)
            ]
        )
        if self.mixes and len(numbers) > 1:
            positions = positions[permutation(len(positions), self._seed, _STEP, *self._key, step)]
        return positions

    def rows(self) -> Iterator[NDArray[np.int64]]:
        """The row numbers of each step in the order they are returned, without reading any values."""
        reservoir = np.empty(self.n_slots * self.capacity, np.int64)
        orders: dict[int, NDArray[np.int64]] = {}
        for step in range(self.n_steps):
            for number in self.rounds_of(step):
                if number not in orders:
                    orders[number] = self.round_order(number)
                    start = number % self.n_slots * self.capacity
                    reservoir[start : start + len(orders[number])] = self.round_rows(number)
            yield reservoir[self.step(step, orders)]
            del orders[step]
