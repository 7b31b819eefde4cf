"""Everything that determines the batches of every epoch: the sites, the options, and the reservoir's size."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Self

import numpy as np

from ..base.checks import at_least
from ..base.lazy import lazy
from ..errors import InvalidInputError
from ..rows.view import View
from .permutation import ORDER, Shuffle
from .schedule import (
    WINDOW,
    BatchBounds,
    Schedule,
    Segments,
    cut_segments,
    segment_edges,
)

_RESERVOIR_BYTES = 128 << 20
_RESERVOIR_CHUNKS = 16
_RESERVOIR_CHUNK_BYTES = 512 << 20
_ROUND_BYTES = 16 << 20


@dataclass(frozen=True)
class BatchPlan:
    """The sites and options of a loader, checked. `BatchPlan.of` makes one.

    Attributes
    ----------
    sites : tuple of View
        Views of the same rows.
    reservoir : int
        Rows of the reservoir; without shuffling, rows to read at once.
    threads : int
        Threads that read; 0 means all cores.
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
        """Check all options, and choose the size of the reservoir if it is None.

        Raises
        ------
        InvalidInputError
            When an option is invalid, or `drop_last` leaves no batch.
        StorageError
            When a site's store is closed.
        """
        for site in sites:
            site.backend.check_open()
        batch_size = at_least(1, batch_size, "batch_size")
        if not (isinstance(shuffle, bool | np.bool_) or shuffle == "full"):
            raise InvalidInputError(f"shuffle is {shuffle!r}, not one of False, True, 'full'")
        world_size = at_least(1, world_size, "world_size")
        rank = at_least(0, rank, "rank")
        if rank >= world_size:
            raise InvalidInputError(f"rank is {rank}, expected an int below world_size={world_size}")
        n_rows = len(sites[0])
        if drop_last and 0 < n_rows < batch_size * world_size:
            ranks = "" if world_size == 1 else f" for each of {world_size} ranks"
            raise InvalidInputError(
                f"batch_size={batch_size}{ranks} with drop_last=True leaves no batch: "
                f"there are {n_rows} rows",
                hint="use a smaller batch_size, or drop_last=False",
            )
        plan = cls(
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
        n_held = plan._default_reservoir() if reservoir is None else at_least(1, reservoir, "reservoir")
        return replace(plan, reservoir=n_held if shuffle else plan._rows_in(_ROUND_BYTES))

    @property
    def n_rows(self) -> int:
        """Rows of the view, over all ranks."""
        return len(self.sites[0])

    @lazy
    def bounds(self) -> BatchBounds:
        """Where the batches of this rank begin."""
        return BatchBounds.of(self.n_rows, self.batch_size, self.drop_last, self.rank, self.world_size)

    @property
    def n_batches(self) -> int:
        """Batches of this rank per epoch."""
        return self.bounds.n_batches

    @property
    def row_bytes(self) -> int:
        """Bytes per row in the stored dtypes, over all sites."""
        return max(1, sum(site.shape[1] * site.shape[2] * site.dtype.itemsize for site in self.sites))

    def _rows_in(self, n_bytes: int) -> int:
        return max(1, n_bytes // self.row_bytes)

    def _default_reservoir(self) -> int:
        chunks = _RESERVOIR_CHUNKS * max(chunk_rows for _, chunk_rows in self._parts)
        return max(
            self._rows_in(_RESERVOIR_BYTES),
            4 * self.batch_size,
            min(chunks, self._rows_in(_RESERVOIR_CHUNK_BYTES)),
        )

    @lazy
    def _parts(self) -> list[tuple[int, int]]:
        """Rows, and rows per chunk, of each part, taken from the site with the largest chunks."""
        by_site = []
        for site in self.sites:
            by_site.append([(rows, max(1, chunk_rows)) for rows, chunk_rows in site.backend.pieces()])
        return max(by_site, key=lambda parts: max((chunk_rows for _, chunk_rows in parts), default=1))

    @lazy
    def segments(self) -> Segments:
        """The view's rows, cut at chunk boundaries."""
        max_rows = self.reservoir if self.shuffle else self._rows_in(_RESERVOIR_BYTES)
        edges = segment_edges(self._parts, max_rows)
        return cut_segments(self.sites[0].rowset.rows, edges, not self.shuffle, self.reservoir)

    def schedule(self, epoch: int, share: range) -> Schedule:
        """The schedule of one epoch.

        Parameters
        ----------
        epoch : int
        share : range
            The part of the epoch's rows to return, as positions in the epoch's order.
        """
        segments, held = self.segments, self.reservoir
        if self.shuffle == "full":
            return Schedule(segments, "full", self.seed, epoch, share, max(1, held // 2))
        if not self.shuffle:
            return Schedule(segments, False, self.seed, epoch, share, held)
        largest = max(1, segments.largest)
        window = max(1, min(WINDOW, held // largest))
        round_rows = held // window
        # A multiple of the segment size, so that no round exceeds its slot by part of a segment.
        return Schedule(segments, True, self.seed, epoch, share, round_rows // largest * largest or 1, window)

    # ---- States ----

    @lazy
    def fingerprint(self) -> dict[str, Any]:
        """The properties that must match for a saved state to be resumed, ready for JSON."""
        rows = self.sites[0].rowset.rows
        digest = hashlib.blake2b(digest_size=8)
        if isinstance(rows, range):
            digest.update(f"{rows.start}:{rows.stop}".encode())
        else:
            digest.update(np.ascontiguousarray(rows).data)
        if self.shuffle is True:
            digest.update(self.segments.starts.data)
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

    def check_state(
        self, state: object, max_batches: int, extra: Mapping[str, Any] | None = None
    ) -> tuple[int, int]:
        """Check that a saved state matches this plan; return its epoch and its number of finished batches.

        Parameters
        ----------
        state : mapping
            The entries of `fingerprint` and `extra`, and ``epoch`` and ``batch``.
        max_batches : int
            Batches per epoch.
        extra : mapping, optional
            Further entries that must match.

        Raises
        ------
        InvalidInputError
            When `state` is not a saved state, or does not match; the message names the differences.
        """
        if not isinstance(state, Mapping):
            raise InvalidInputError(
                f"state has type {type(state).__name__}, expected the dict that state() returned"
            )
        expected = {**self.fingerprint, **(extra or {})}
        missing = [name for name in ("epoch", "batch", *expected) if name not in state]
        if missing:
            raise InvalidInputError(f"state was not returned by state(): it has no {', '.join(missing)}")
        differences = [
            f"{name} was {state[name]!r} and is {value!r}"
            for name, value in expected.items()
            if state[name] != value
        ]
        if differences:
            if state["rows"] == self.n_rows and state["view"] != expected["view"]:
                differences = [text for text in differences if not text.startswith("view ")]
                differences.append("the view has other rows, or the store other chunks")
            raise InvalidInputError(
                f"the state does not match these batches: {'; '.join(differences)}",
                hint="pass the same arguments as for the saved state; if the store has grown since, "
                "select(rows=slice(0, rows))",
            )
        epoch, batch = at_least(0, state["epoch"], "state: epoch"), state["batch"]
        if at_least(0, batch, "state: batch") > max_batches:
            raise InvalidInputError(f"state: batch is {batch}, an epoch has {max_batches} batches")
        return epoch, batch
