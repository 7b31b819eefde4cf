"""Which row comes when: the arithmetic of feeding, apart from all reading.

A view is cut into *cells*: runs of its rows that lie in one chunk (or in a few, where there are very
many). An epoch puts the cells into an order, the seed's own or that of the view, and reads them in
*rounds* of several cells. A *reservoir* holds the last few rounds, `window` of them. In each *tick* one
more round comes in, every round that is held gives up an equal part of its rows, drawn at random, and
what they gave is put into random order: that is what the consumer gets. So the rows of a chunk are spread
evenly over as many rows of the result as the reservoir has, each stretch of it has rows of all chunks
that are held, and each chunk is decoded once. The first tick finds the reservoir full, with rounds of all
ages; the last one empties it. Where the reservoir holds everything, the result is a uniform permutation.

Nothing depends on what was drawn before: each permutation has a key of its own, so that any tick of any
epoch can be had at once. That is what makes resuming cheap.

The numbers come from the raw bits of PCG64 keyed by a SeedSequence, which numpy keeps as they are (its
NEP 19 excepts bit generators from the changes that it allows itself elsewhere), and from here on are our
own. Changing anything that moves a row must change `ORDER`.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from .selection import Rows, rows_array

Shuffle = bool | Literal["full"]

ORDER = 1
"""The version of the order: kept in states, so that a later one is not taken for this one."""

WINDOW = 8
"""Rounds in a reservoir: enough to spread a chunk well, few enough that a round keeps all cores busy."""

MAX_CELLS = 1 << 20
"""Their order is kept in memory: this many take 8 MiB for each of a few arrays, whatever the store."""

MAX_TABLE = 1 << 20
"""Up to here a uniform permutation is a table; beyond, a Feistel network."""

_CELLS, _ROUND, _TICK, _FULL = range(4)


# ---- Permutations ----


def _bits(seed: int, path: tuple[int, ...]) -> np.random.PCG64:
    return np.random.PCG64(np.random.SeedSequence(seed, spawn_key=path))


def permutation(n: int, seed: int, *path: int) -> NDArray[np.int64]:
    """A uniform permutation of `n`, int64 ``[n]``.

    Each number gets random high bits and is sorted by them. For `n` in the millions, 40 of them or
    more are random: ties, which would fall in order, hardly occur.
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
    """A permutation of `n` that is computed, not stored.

    The network of Black and Rogaway ("Ciphers with arbitrary finite domains", 2002): a number is a pair
    (left, right) below about sqrt(n) each; in turn, each half is shifted by a keyed hash of the other.
    What lands outside of `n` goes through again, which keeps it a permutation.
    """

    ROUNDS = 10

    def __init__(self, n: int, seed: int, *path: int) -> None:
        self._n = np.uint64(n)
        self._left = np.uint64(math.isqrt(max(n - 1, 0)) + 1)
        self._right = np.uint64(-(-n // int(self._left)))
        self._keys = _bits(seed, path).random_raw(self.ROUNDS)

    def __call__(self, numbers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where these numbers of ``0..n-1`` go, int64 of the same shape ``[m]``."""
        out = self._once(numbers.astype(np.uint64))
        while (outside := np.flatnonzero(out >= self._n)).size:
            out[outside] = self._once(out[outside])
        return out.view(np.int64)

    def _once(self, numbers: NDArray[np.uint64]) -> NDArray[np.uint64]:
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
        # From 32 bits to below `size`, which is no more than 32 bits: n is below 2**63.
        hashed *= size
        hashed >>= np.uint64(32)
        hashed += half
        hashed -= size * (hashed >= size)
        return hashed


def uniform(n: int, seed: int, *path: int) -> Callable[[NDArray[np.int64]], NDArray[np.int64]]:
    """A uniform permutation of `n` as a function of numbers, int64 ``[m]`` to ``[m]``."""
    if n > MAX_TABLE:
        return Feistel(n, seed, *path)
    return permutation(n, seed, *path).__getitem__


# ---- Cells ----


@dataclass(frozen=True)
class Cells:
    """The rows of a view, cut where chunks end.

    Parameters
    ----------
    rows : range or array ``[n]``
        The view's rows as they count in the whole store.
    order : array ``[n]``, optional
        Positions in the view by ascending row; None where they ascend already, or are left as they are.
    starts : array ``[n_cells + 1]``
        Where cells begin, in that order; the last is `n`.
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
        """Rows of the largest cell."""
        return int(np.diff(self.starts).max(initial=0))

    def numbers(self, places: NDArray[np.int64]) -> NDArray[np.int64]:
        """The store's rows at places of the order, int64 ``[m]``."""
        positions = places if self.order is None else self.order[places]
        if isinstance(self.rows, range):
            return positions + self.rows.start
        return self.rows[positions]


def chunk_edges(parts: Sequence[tuple[int, int]], most_rows: int) -> NDArray[np.int64]:
    """The first row of each cell of a whole store, ascending int64.

    Parameters
    ----------
    parts : sequence of (rows, rows in a chunk)
        Each begins with a chunk of its own.
    most_rows : int
        What a cell may have; where a chunk has more, it will be decoded more than once.
    """
    n_rows = sum(n for n, _ in parts)
    n_chunks = sum(-(-n // chunk) for n, chunk in parts)
    chunks = max(1, -(-n_chunks // MAX_CELLS))
    edges, first = [np.zeros(0, np.int64)], 0
    for n, chunk in parts:
        step = chunk * chunks
        if step > most_rows:
            step = max(most_rows, -(-n_rows // MAX_CELLS))
        edges.append(np.arange(first, first + n, step, dtype=np.int64))
        first += n
    return np.concatenate(edges)


def cut(rows: Rows, edges: NDArray[np.int64], in_order: bool = False, step: int = 1) -> Cells:
    """The cells of a view.

    Parameters
    ----------
    rows : range or array ``[n]``
    edges : array
        Of `chunk_edges`.
    in_order : bool
        Whether the view's own order must stay. Rows that do not ascend are then cut every `step`.
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
    return Cells(rows, order, np.unique(starts).astype(np.int64))


# ---- Shares ----


def rank_rows(n_rows: int, rank: int, world_size: int) -> range:
    """The part of an epoch's order that a rank gets: they differ by one row at most."""
    return range(n_rows * rank // world_size, n_rows * (rank + 1) // world_size)


@dataclass(frozen=True)
class Bounds:
    """Where the batches of one rank begin, within its rows.

    All ranks have equally many batches, and each row is in one of them: where a rank has a row less,
    its last batch is smaller, and the one before it if need be. That is impossible only with batches of
    one row, and with fewer rows than ranks. With `drop_last` there are full batches only, as many as the
    smallest rank has.
    """

    n_rows: int
    batch_size: int
    n_batches: int

    @classmethod
    def of(cls, n_rows: int, batch_size: int, drop_last: bool, rank: int, world_size: int) -> "Bounds":
        """Those of a rank, of `n_rows` in all."""
        if drop_last:
            n_batches = n_rows // world_size // batch_size
            return cls(n_batches * batch_size, batch_size, n_batches)
        mine = len(rank_rows(n_rows, rank, world_size))
        most = -(-n_rows // world_size)
        return cls(mine, batch_size, min(-(-most // batch_size), mine))

    def __getitem__(self, batch: int) -> int:
        """The first row of a batch; of `n_batches`, the end."""
        return min(batch * self.batch_size, self.n_rows - (self.n_batches - batch))


def worker_batches(n_batches: int, worker: int, n_workers: int) -> range:
    """The batches of a rank that one of its workers makes: a run of them, the first workers one more.

    Taken from the workers in turn, as DataLoader does, batch `i` is of worker ``i % n_workers``.
    """
    each, more = divmod(n_batches, n_workers)
    first = worker * each + min(worker, more)
    return range(first, first + each + (worker < more))


# ---- Schedules ----


class Schedule:
    """One epoch, or one share of it: what is read when, and in which order it is given.

    Parameters
    ----------
    cells : Cells
    shuffle : bool or "full"
        Cells in the view's order, in a random one through the reservoir, or a uniform permutation of
        single rows.
    seed, epoch : int
    share : range
        Which of the epoch's rows, by their place in the order of the cells or of the permutation.
    round_rows : int
        Rows read at once, about.
    window : int
        Rounds that are held.

    Examples
    --------
    >>> cells = cut(range(100), chunk_edges([(100, 10)], most_rows=50))
    >>> order = Schedule(cells, True, 7, 0, range(100), round_rows=20, window=2)
    >>> order.n_rounds, order.n_ticks, order.capacity
    (5, 4, 20)
    """

    def __init__(
        self,
        cells: Cells,
        shuffle: Shuffle,
        seed: int,
        epoch: int,
        share: range,
        round_rows: int,
        window: int = 1,
    ) -> None:
        self._cells = cells
        self._shuffle = shuffle
        self._seed = seed
        self._key = (epoch, share.start)
        self._share = share
        self._round_rows = round_rows
        self.window = window
        if shuffle == "full":
            self._place = uniform(cells.n_rows, seed, _FULL, epoch)
            sizes = np.diff(np.append(np.arange(0, len(share), round_rows), len(share)))
        else:
            sizes = self._cut_rounds(epoch)
        self._sizes = sizes
        self.n_rounds = len(sizes)
        self.capacity = int(sizes.max(initial=0))
        self.n_ticks = max(self.n_rounds - window, 0) + 1 if self.n_rounds else 0
        self.n_slots = min(window + 1, self.n_rounds)
        # Whether a round's rows leave it in another order than they are read in.
        self.mixes = shuffle is True

    def _cut_rounds(self, epoch: int) -> NDArray[np.int64]:
        """Puts the share's cells in order and gathers them in rounds; the rows of each."""
        share, starts = self._share, self._cells.starts
        first, length = starts[:-1], np.diff(starts)
        if self._shuffle:
            order = permutation(len(first), self._seed, _CELLS, epoch)
            first, length = first[order], length[order]
        ends = np.cumsum(length)
        if share:
            # The cells at either end may be shared with a neighbour.
            begin, stop = np.searchsorted(ends, share.start, "right"), np.searchsorted(ends, share.stop) + 1
            above, below = share.start - (ends[begin] - length[begin]), ends[stop - 1] - share.stop
            first, length = first[begin:stop].copy(), length[begin:stop].copy()
            first[0] += above
            length[0] -= above
            length[-1] -= below
        else:
            first, length = first[:0], length[:0]
        self._first, self._length = first, length
        _, begins = np.unique((np.cumsum(length) - length) // self._round_rows, return_index=True)
        self._begins = np.append(begins, len(first))
        return np.add.reduceat(length, begins) if len(begins) else length

    def round_rows(self, number: int) -> NDArray[np.int64]:
        """The store's rows that a round reads, int64 ``[size]``."""
        if self._shuffle == "full":
            start = self._share.start + number * self._round_rows
            return self._cells.numbers(self._place(np.arange(start, start + int(self._sizes[number]))))
        cells = slice(self._begins[number], self._begins[number + 1])
        first, length = self._first[cells], self._length[cells]
        if self._shuffle:  # As they lie on disk.
            order = np.argsort(first)
            first, length = first[order], length[order]
        before = np.cumsum(length) - length
        return self._cells.numbers(np.repeat(first - before, length) + np.arange(int(length.sum())))

    def round_order(self, number: int) -> NDArray[np.int64]:
        """The order in which a round's rows leave it, int64 ``[size]``."""
        size = int(self._sizes[number])
        if self.mixes:
            return permutation(size, self._seed, _ROUND, *self._key, number)
        return np.arange(size)

    def held(self, tick: int) -> range:
        """The rounds that a tick takes from."""
        return range(tick, min(tick + self.window, self.n_rounds))

    def tick_starts(self) -> NDArray[np.int64]:
        """How many rows were given before each tick, and in all: int64 ``[n_ticks + 1]``."""
        ticks = np.arange(self.n_ticks)
        sizes = np.zeros(self.n_ticks, np.int64)
        for age in range(self.window):
            numbers = ticks + age
            there = numbers < self.n_rounds
            start, stop = self._portion(numbers[there], ticks[there])
            sizes[there] += stop - start
        return np.concatenate([np.zeros(1, np.int64), np.cumsum(sizes)])

    def _portion(
        self, number: NDArray[np.int64], tick: NDArray[np.int64]
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which rows, in its own order, a round gives in a tick that holds it."""
        born = np.maximum(number - self.window + 1, 0)
        life = np.minimum(number, self.n_ticks - 1) - born + 1
        size = self._sizes[number]
        return size * (tick - born) // life, size * (tick - born + 1) // life

    def tick(self, tick: int, orders: Mapping[int, NDArray[np.int64]]) -> NDArray[np.int64]:
        """What a tick gives, in order, as places in the reservoir: int64 ``[size of the tick]``.

        Round `i` lies in the reservoir from row ``i % n_slots * capacity`` on.

        Parameters
        ----------
        tick : int
        orders : mapping of int to array
            `round_order` of each round that is held.
        """
        numbers = self.held(tick)
        starts, stops = self._portion(rows_array(numbers), np.full(len(numbers), tick))
        given = np.concatenate(
            [
                orders[number][start:stop] + number % self.n_slots * self.capacity
                for number, start, stop in zip(numbers, starts.tolist(), stops.tolist(), strict=True)
            ]
        )
        if self.mixes and len(numbers) > 1:
            given = given[permutation(len(given), self._seed, _TICK, *self._key, tick)]
        return given

    def rows(self) -> Iterator[NDArray[np.int64]]:
        """The store's rows tick by tick, without any reading; what the reservoir would give."""
        numbers = np.empty(self.n_slots * self.capacity, np.int64)
        orders: dict[int, NDArray[np.int64]] = {}
        for tick in range(self.n_ticks):
            for number in self.held(tick):
                if number not in orders:
                    orders[number] = self.round_order(number)
                    start = number % self.n_slots * self.capacity
                    numbers[start : start + len(orders[number])] = self.round_rows(number)
            yield numbers[self.tick(tick, orders)]
            del orders[tick]
