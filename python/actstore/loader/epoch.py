"""Reading the batches of one epoch through the reservoir.

One background thread reads rounds of chunks into the reservoir (with all cores), while the consumer's side
gathers batches from it. Memory use is the reservoir, one more round, and the batches themselves.
"""

from collections.abc import Generator, Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import new_array
from .batch_plan import BatchPlan
from .containers import BatchContainer, as_bytes
from .prefetch import Prefetcher
from .schedule import Schedule, rank_rows, worker_batches


class GatheredBatch(NamedTuple):
    """One batch, before the container's `finish`."""

    rows: NDArray[np.int64]
    """Rows of the backend's array, ``[b]``."""
    values: list[Any]
    """``[b, L, D]`` for each site."""


def read_epoch(
    plan: BatchPlan,
    container: BatchContainer,
    epoch: int,
    skip: int = 0,
    worker: int = 0,
    n_workers: int = 1,
) -> Generator[GatheredBatch, None, None]:
    """The batches of one epoch, or of one worker's share of it.

    Parameters
    ----------
    plan : BatchPlan
    container : BatchContainer
    epoch : int
    skip : int
        How many batches to skip at the beginning.
    worker, n_workers : int
        This worker's number, and the number of workers that share the epoch.
    """
    batches = worker_batches(plan.n_batches, worker, n_workers)
    if skip >= len(batches):
        return
    start, stop = plan.bounds[batches.start], plan.bounds[batches.stop]
    rank_start = rank_rows(plan.n_rows, plan.rank, plan.world_size).start
    schedule = plan.schedule(epoch, range(rank_start + start, rank_start + stop))
    first_row = plan.bounds[batches.start + skip] - start
    bounds = (plan.bounds[batch] for batch in range(batches.start + skip, batches.stop + 1))
    sizes = (stop - start for start, stop in pairwise(bounds))
    yield from _ReservoirReader(plan, container, schedule, first_row).batches(sizes)


class _ReservoirReader:
    """The reservoir of one run through a schedule, starting at row `first_row` of the schedule's order."""

    def __init__(
        self, plan: BatchPlan, container: BatchContainer, schedule: Schedule, first_row: int
    ) -> None:
        self._plan = plan
        self._container = container
        self._schedule = schedule
        # Skip the steps before the first row. The rounds of its step still hold all rows of later steps.
        starts = schedule.step_starts()
        self._first_step = int(np.searchsorted(starts, first_row, "right")) - 1
        self._skip_rows = first_row - int(starts[self._first_step])
        n_rows = schedule.n_slots * schedule.capacity
        self._row_numbers = np.empty(n_rows, np.int64)
        self._values = [
            new_array((n_rows, *site.shape[1:]), container.read_dtype(site.dtype), "the reservoir of batches")
            for site in plan.sites
        ]
        self._bytes = [as_bytes(values) for values in self._values]

    def _steps(self) -> Generator[NDArray[np.int64], None, None]:
        """Read the rounds that each step needs, and yield the positions of its rows in the reservoir.

        The rows at these positions stay valid until the step after the next is requested: the round that the
        next step reads goes into a slot whose rows have all been returned.
        """
        schedule = self._schedule
        orders: dict[int, NDArray[np.int64]] = {}
        for step in range(self._first_step, schedule.n_steps):
            for number in schedule.rounds_of(step):
                if number not in orders:
                    self._read_round(number)
                    orders[number] = schedule.round_order(number)
            yield schedule.step(step, orders)
            del orders[step]

    def _read_round(self, number: int) -> None:
        rows = self._schedule.round_rows(number)
        start = number % self._schedule.n_slots * self._schedule.capacity
        for site, values in zip(self._plan.sites, self._values, strict=True):
            site.read_rows_into(
                rows, site.layer_positions, values[start : start + len(rows)], self._plan.threads
            )
        self._row_numbers[start : start + len(rows)] = rows

    def batches(self, sizes: Iterator[int]) -> Generator[GatheredBatch, None, None]:
        """Batches of the given sizes."""
        # With depth 1, the thread reads round t + window into a free slot while step t is being consumed.
        steps = Prefetcher(self._steps(), depth=1)
        try:
            positions = next(steps)[self._skip_rows :]
            for size in sizes:
                rows = np.empty(size, np.int64)
                allocated = [self._container.new((size, *s.shape[1:]), s.dtype) for s in self._plan.sites]
                filled = 0
                while filled < size:
                    if not len(positions):
                        positions = next(steps)
                    head, positions = positions[: size - filled], positions[size - filled :]
                    target = slice(filled, filled + len(head))
                    rows[target] = self._row_numbers[head]
                    for reservoir, (_, out) in zip(self._bytes, allocated, strict=True):
                        self._gather(reservoir, head, out[target])
                    filled += len(head)
                yield GatheredBatch(rows, [batch for batch, _ in allocated])
        finally:
            steps.close()

    def _gather(
        self, reservoir: NDArray[np.uint8], positions: NDArray[np.int64], out: NDArray[np.uint8]
    ) -> None:
        if self._schedule.mixes:
            # Any mode but "raise" lets np.take write to `out` without a buffer. All positions are in range.
            np.take(reservoir, positions, axis=0, out=out, mode="clip")
        else:
            np.copyto(out, reservoir[positions[0] : positions[0] + len(positions)])
