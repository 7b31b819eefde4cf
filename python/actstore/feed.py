"""One epoch's batches: rows are read as `shuffle` says and put together into arrays or tensors.

One thread reads rounds of chunks into the reservoir (itself on all cores) while whoever iterates gathers
batches from there. Memory is the reservoir, one round more, and the batches themselves.
"""

import hashlib
import operator
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from .ahead import Ahead
from .arrays import new_array
from .errors import InvalidInputError
from .lazy import lazy
from .selection import is_int
from .shuffle import (
    ORDER,
    WINDOW,
    Bounds,
    Cells,
    Schedule,
    Shuffle,
    chunk_edges,
    cut,
    rank_rows,
    worker_batches,
)
from .view import View

_RESERVOIR_BYTES = 128 << 20
_RESERVOIR_CHUNKS = 16
_RESERVOIR_CHUNK_BYTES = 512 << 20
_ROUND_BYTES = 16 << 20

Taken = tuple[NDArray[np.int64], list[Any]]
"""A batch: its rows in the array, int64 ``[b]``, and its values ``[b, L, D]`` of each site."""


# ---- What batches are put in ----


class Container(Protocol):
    """Where batches are put together, and what they become."""

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        """What to read a site as."""

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        """An empty batch, and its bytes ``[b, bytes of a row]``."""

    def finish(self, batch: Any) -> Any:
        """A full batch as the consumer gets it; called in the consumer's thread."""


@dataclass(frozen=True)
class NumpyContainer:
    """numpy arrays; `dtype` None is the site's own."""

    dtype: np.dtype[Any] | None

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        return self.dtype or stored

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        batch = new_array(shape, self.read_dtype(stored), "a batch")
        return batch, as_bytes(batch)

    def finish(self, batch: Any) -> Any:
        return batch


@dataclass(frozen=True)
class TorchContainer:
    """torch tensors on a device. They cross as stored, pinned if it is CUDA, and are converted there."""

    dtype: np.dtype[Any] | None
    device: str

    @property
    def _cuda(self) -> bool:
        return self.device.startswith("cuda")

    def read_dtype(self, stored: np.dtype[Any]) -> np.dtype[Any]:
        return stored

    def new(self, shape: tuple[int, int, int], stored: np.dtype[Any]) -> tuple[Any, NDArray[np.uint8]]:
        torch = import_torch()
        dtype = getattr(torch, stored.name)
        tensor = torch.empty(shape, dtype=dtype, pin_memory=self._cuda)
        width = shape[1] * shape[2] * stored.itemsize
        return tensor, tensor.view(torch.uint8).numpy().reshape(shape[0], width)

    def finish(self, batch: Any) -> Any:
        dtype = batch.dtype if self.dtype is None else getattr(import_torch(), self.dtype.name)
        # On the consumer's stream, so that what it does next comes after the copy.
        return batch.to(device=self.device, dtype=dtype, non_blocking=self._cuda)


def as_bytes(array: NDArray[Any]) -> NDArray[np.uint8]:
    """A C-contiguous array ``[n, ...]`` as bytes ``[n, bytes of a row]``: what numpy moves fastest."""
    width = array.itemsize * int(np.prod(array.shape[1:]))
    return array.reshape(-1).view(np.uint8).reshape(array.shape[0], width)


def import_torch() -> Any:
    """The module.

    Raises
    ------
    InvalidInputError
        When it is not installed.
    """
    try:
        import torch
    except ImportError as error:
        raise InvalidInputError(
            f"torch cannot be imported: {error}", hint='pip install "actstore[torch]"'
        ) from error
    return torch


def torch_device(device: Any) -> str:
    """A device's name.

    Raises
    ------
    InvalidInputError
        When it is none, or torch is not installed.
    """
    torch = import_torch()
    try:
        chosen = torch.device(device)
    except (RuntimeError, TypeError) as error:
        raise InvalidInputError(f"device {device!r}: {error}") from error
    if chosen.type == "cuda" and not torch.cuda.is_available():
        raise InvalidInputError(f"device {device!r}: torch sees no CUDA device here")
    return str(chosen)


# ---- One epoch ----


@dataclass(frozen=True)
class Feed:
    """What decides the batches of every epoch; made by `Feed.of`.

    Sites have the same rows. `reservoir` is in rows; without shuffling, those that are read at once.
    """

    sites: tuple[View, ...]
    batch_size: int
    shuffle: Shuffle
    seed: int
    drop_last: bool
    reservoir: int
    rank: int
    world_size: int
    threads: int

    @classmethod
    def of(
        cls,
        sites: Sequence[View],
        batch_size: int,
        shuffle: Shuffle,
        seed: int,
        drop_last: bool,
        reservoir: int | None,
        rank: int,
        world_size: int,
        threads: int,
    ) -> Self:
        """Checks everything, and decides the size of the reservoir.

        Raises
        ------
        InvalidInputError
            For what cannot be.
        StorageError
            When a site's store is closed.
        """
        for site in sites:
            site._origin.check_open()
        batch_size = at_least(1, batch_size, "batch_size")
        if not (isinstance(shuffle, bool | np.bool_) or shuffle == "full"):
            raise InvalidInputError(f"shuffle is {shuffle!r}, not one of False, True, 'full'")
        world_size = at_least(1, world_size, "world_size")
        rank = at_least(0, rank, "rank")
        if rank >= world_size:
            raise InvalidInputError(f"rank is {rank}, with world_size={world_size} it is below that")
        n_rows = len(sites[0])
        if drop_last and 0 < n_rows < batch_size * world_size:
            of_each = "" if world_size == 1 else f" for each of {world_size} ranks"
            raise InvalidInputError(
                f"batch_size={batch_size}{of_each} with drop_last=True gives nothing: "
                f"there are {n_rows} rows",
                hint="a smaller batch_size, or drop_last=False",
            )
        feed = cls(
            tuple(sites),
            batch_size,
            shuffle if shuffle == "full" else bool(shuffle),
            at_least(0, seed, "seed"),
            bool(drop_last),
            0,
            rank,
            world_size,
            at_least(0, threads, "threads"),
        )
        asked = feed._default_reservoir() if reservoir is None else at_least(1, reservoir, "reservoir")
        return replace(feed, reservoir=asked if shuffle else feed._rows_of(_ROUND_BYTES))

    @property
    def n_rows(self) -> int:
        """Rows of the view, over all ranks."""
        return len(self.sites[0])

    @lazy
    def bounds(self) -> Bounds:
        """Where this rank's batches begin."""
        return Bounds.of(self.n_rows, self.batch_size, self.drop_last, self.rank, self.world_size)

    @property
    def n_batches(self) -> int:
        """Batches of this rank in an epoch."""
        return self.bounds.n_batches

    @property
    def row_bytes(self) -> int:
        """Bytes of a row of all sites, as stored."""
        return max(1, sum(site.shape[1] * site.shape[2] * site.dtype.itemsize for site in self.sites))

    def _rows_of(self, n_bytes: int) -> int:
        return max(1, n_bytes // self.row_bytes)

    def _default_reservoir(self) -> int:
        chunks = _RESERVOIR_CHUNKS * max(chunk for _, chunk in self._parts)
        return max(
            self._rows_of(_RESERVOIR_BYTES),
            4 * self.batch_size,
            min(chunks, self._rows_of(_RESERVOIR_CHUNK_BYTES)),
        )

    @lazy
    def _parts(self) -> list[tuple[int, int]]:
        """Rows, and rows in a chunk, of each part; by the site with the largest chunks."""
        by_site = []
        for site in self.sites:
            by_site.append([(rows, max(1, chunk)) for rows, chunk in site._origin.pieces()])
        return max(by_site, key=lambda parts: max((chunk for _, chunk in parts), default=1))

    @lazy
    def cells(self) -> Cells:
        """The view's rows, cut where chunks end."""
        most = self.reservoir if self.shuffle else self._rows_of(_RESERVOIR_BYTES)
        edges = chunk_edges(self._parts, most)
        return cut(self.sites[0]._view.rows, edges, not self.shuffle, self.reservoir)

    def schedule(self, epoch: int, share: range) -> Schedule:
        """The order of some of an epoch's rows."""
        cells, held = self.cells, self.reservoir
        if self.shuffle == "full":
            return Schedule(cells, "full", self.seed, epoch, share, max(1, held // 2))
        if not self.shuffle:
            return Schedule(cells, False, self.seed, epoch, share, held)
        largest = max(1, cells.largest)
        window = max(1, min(WINDOW, held // largest))
        of_round = held // window
        # Whole cells, so that rounds are of one size and none needs room for a cell more.
        return Schedule(cells, True, self.seed, epoch, share, of_round // largest * largest or 1, window)

    # ---- States ----

    @lazy
    def fingerprint(self) -> dict[str, Any]:
        """What must be the same for an epoch to go on, ready for JSON."""
        rows = self.sites[0]._view.rows
        digest = hashlib.blake2b(digest_size=8)
        if isinstance(rows, range):
            digest.update(f"{rows.start}:{rows.stop}".encode())
        else:
            digest.update(np.ascontiguousarray(rows).data)
        if self.shuffle is True:
            digest.update(self.cells.starts.data)
        return {
            "order": ORDER,
            "sites": [[site.name, site.layers] for site in self.sites],
            "rows": self.n_rows,
            "view": digest.hexdigest(),
            "batch_size": self.batch_size,
            "drop_last": self.drop_last,
            "shuffle": self.shuffle,
            "seed": self.seed,
            "reservoir": self.reservoir if self.shuffle else None,
            "rank": self.rank,
            "world_size": self.world_size,
        }

    def check_state(self, state: object, most: int, own: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """The epoch and the number of batches given, of a state of this feed.

        Parameters
        ----------
        state : mapping
            Of `fingerprint`, `own`, ``epoch`` and ``batch``.
        most : int
            Batches of an epoch.
        own : mapping, optional
            What else must be the same.

        Raises
        ------
        InvalidInputError
            When it is of another feed, naming what differs, or no state.
        """
        if not isinstance(state, Mapping):
            raise InvalidInputError(f"state is a {type(state).__name__}, not what state() gave")
        mine = {**self.fingerprint, **(own or {})}
        missing = [name for name in ("epoch", "batch", *mine) if name not in state]
        if missing:
            raise InvalidInputError(f"state is not what state() gave: it has no {', '.join(missing)}")
        differs = [
            f"{name} was {state[name]!r} and is {value!r}"
            for name, value in mine.items()
            if state[name] != value
        ]
        if differs:
            if state["rows"] == self.n_rows and state["view"] != mine["view"]:
                differs = [d for d in differs if not d.startswith("view ")]
                differs.append("the view has other rows, or the store other chunks")
            raise InvalidInputError(
                f"the state is of other batches: {'; '.join(differs)}",
                hint="give what was given when the state was made; a store that has grown since "
                "needs select(tokens=slice(0, rows))",
            )
        epoch, batch = at_least(0, state["epoch"], "state: epoch"), state["batch"]
        if at_least(0, batch, "state: batch") > most:
            raise InvalidInputError(f"state: batch is {batch}, an epoch has {most}")
        return epoch, batch

    # ---- Running ----

    def run(
        self, container: Container, epoch: int, done: int = 0, worker: int = 0, n_workers: int = 1
    ) -> Generator[Taken, None, None]:
        """The batches of an epoch, or those of them that one of several workers makes.

        Parameters
        ----------
        container : Container
        epoch : int
        done : int
            How many of them to leave out at the beginning.
        worker, n_workers : int
        """
        batches = worker_batches(self.n_batches, worker, n_workers)
        bounds = [self.bounds[batches.start], self.bounds[batches.stop]]
        rank = rank_rows(self.n_rows, self.rank, self.world_size).start
        if done >= len(batches):
            return
        schedule = self.schedule(epoch, range(rank + bounds[0], rank + bounds[1]))
        first = self.bounds[batches.start + done] - bounds[0]
        sizes = (
            stop - start for start, stop in pairwise(map(self.bounds.__getitem__, _after(batches, done)))
        )
        yield from _Epoch(self, container, schedule, first).batches(sizes)


def _after(batches: range, done: int) -> range:
    return range(batches.start + done, batches.stop + 1)


class _Epoch:
    """The reservoir of one run through a schedule."""

    def __init__(self, feed: Feed, container: Container, schedule: Schedule, first: int) -> None:
        self._feed = feed
        self._container = container
        self._schedule = schedule
        # Ticks before the first batch need not be; what later ones take from them is in their rounds.
        starts = schedule.tick_starts()
        self._tick = int(np.searchsorted(starts, first, "right")) - 1
        self._skip = first - int(starts[self._tick])
        places = schedule.n_slots * schedule.capacity
        self._numbers = np.empty(places, np.int64)
        self._pools = [
            new_array((places, *site.shape[1:]), container.read_dtype(site.dtype), "the reservoir of batches")
            for site in feed.sites
        ]
        self._bytes = [as_bytes(pool) for pool in self._pools]

    def _ticks(self) -> Generator[NDArray[np.int64], None, None]:
        """Reads what each tick needs, and gives the places of its rows in the reservoir.

        What lies there is not touched until the next tick's are asked for, and once more: the round that
        is read then goes where one is that has given all.
        """
        schedule = self._schedule
        orders: dict[int, NDArray[np.int64]] = {}
        for tick in range(self._tick, schedule.n_ticks):
            for number in schedule.held(tick):
                if number not in orders:
                    self._read(number)
                    orders[number] = schedule.round_order(number)
            yield schedule.tick(tick, orders)
            del orders[tick]

    def _read(self, number: int) -> None:
        rows = self._schedule.round_rows(number)
        start = number % self._schedule.n_slots * self._schedule.capacity
        for site, pool in zip(self._feed.sites, self._pools, strict=True):
            site._read_into(rows, site._layers, pool[start : start + len(rows)], self._feed.threads)
        self._numbers[start : start + len(rows)] = rows

    def batches(self, sizes: Iterator[int]) -> Generator[Taken, None, None]:
        """Batches of these sizes."""
        # With a depth of 1, round t + window is read while tick t is given, into a place of its own.
        ticks = Ahead(self._ticks(), depth=1)
        try:
            places = next(ticks)[self._skip :]
            for size in sizes:
                rows = np.empty(size, np.int64)
                made = [self._container.new((size, *s.shape[1:]), s.dtype) for s in self._feed.sites]
                filled = 0
                while filled < size:
                    if not len(places):
                        places = next(ticks)
                    some, places = places[: size - filled], places[size - filled :]
                    here = slice(filled, filled + len(some))
                    rows[here] = self._numbers[some]
                    for pool, (_, out) in zip(self._bytes, made, strict=True):
                        self._move(pool, some, out[here])
                    filled += len(some)
                yield rows, [batch for batch, _ in made]
        finally:
            ticks.close()

    def _move(self, pool: NDArray[np.uint8], places: NDArray[np.int64], out: NDArray[np.uint8]) -> None:
        if self._schedule.mixes:
            # Any mode but "raise" writes to `out` at once.
            np.take(pool, places, axis=0, out=out, mode="clip")
        else:
            np.copyto(out, pool[places[0] : places[0] + len(places)])


def at_least(least: int, value: object, name: str) -> int:
    """A whole number from `least` up.

    Raises
    ------
    InvalidInputError
        When it is none.
    """
    if not is_int(value) or operator.index(value) < least:  # type: ignore[arg-type]
        raise InvalidInputError(f"{name} is {value!r}, not an int from {least} up")
    return operator.index(value)  # type: ignore[arg-type]
