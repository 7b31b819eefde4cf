"""Two threads for everything measured here: ours, the peers and the limits."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")

THREADS = 2
_pool = ThreadPoolExecutor(THREADS)


def limit_libraries() -> None:
    """Two threads for BLAS and OpenMP, which read this when they are loaded, before anyone can ask."""
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ[name] = str(THREADS)


def pin() -> None:
    """Keep this process, and what it starts, to two cores: no library's own pool can cheat then."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:THREADS])


def settle() -> None:
    """Wait until the threads that libraries keep spinning after their turn are asleep; a second at most.

    OpenBLAS counts cycles until then: 25 ms on one machine, nearly 100 on another.
    """
    step, give_up = 0.005, time.perf_counter() + 1.0
    while time.perf_counter() < give_up:
        before = time.process_time()
        time.sleep(step)
        if time.process_time() - before < 0.2 * step:
            return


def spread(work: Callable[[T], object], items: Iterable[T], threads: int = THREADS) -> None:
    """`work` on every item, each thread taking the next when it is done with one."""
    queue: Iterator[T] = iter(list(items))

    def drain(_: int) -> None:
        for item in queue:  # a list iterator may be shared: `next` runs under the GIL
            work(item)

    if threads == 1:
        drain(0)
    else:
        list(_pool.map(drain, range(threads)))


def blocks(rows: int, row_bytes: int, block_bytes: int = 1 << 20) -> list[slice]:
    """Runs of rows of about `block_bytes`: small enough for the cache, large enough for a thread."""
    step = max(1, block_bytes // row_bytes)
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]
