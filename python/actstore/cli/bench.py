"""``actstore bench``: scan, pool and search on this machine, beside what the machine could do at best."""

import argparse
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from ..arrays import human_bytes
from ..create import create
from ..errors import StorageError
from ..machine import Limits, machine_limits
from ..plain import pool, scan, search
from ..site import Site
from ..site_spec import SiteSpec
from ..store import open as open_store
from ..summary import Summary
from .options import Commands, add_json, add_threads
from .output import print_json, table

_DIM = 768
_EXAMPLE = 128
"""Rows of an example."""
_QUERIES = (1, 16, 128, 1024)
_ROWS, _QUICK_ROWS = 1 << 18, 1 << 15
_LEAST_ROWS = 1 << 12
_SECONDS = 40.0
"""All searches together, at the speed of the first."""
_RUNS = 3


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench",
        help="measure scan, pool and search beside the machine's own limits",
        description="Measure how fast memory is read and float32 multiplied here, and how close scan, pool "
        "and search come to it, on random rows: float32 in memory, and bfloat16 in a compressed store, which "
        "is made in the folder for temporary files ($TMPDIR) and removed again.",
    )
    parser.add_argument("--quick", action="store_true", help="an eighth of the rows, in some seconds")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Timing:
    """How long something took."""

    data: str
    what: str
    seconds: float
    bytes: int
    """Of the rows, as they are when decoded."""
    flops: int


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    limits = machine_limits(args.threads)
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as folder:
        n_rows = _fitting(_QUICK_ROWS if args.quick else _ROWS, folder, limits)
        timings = list(_measure(folder, n_rows, args.threads))
    # Others may have been busy the first time: what counts is the best the machine has shown.
    limits = limits.best(machine_limits(args.threads))
    told = {
        "machine": {
            "cores": os.cpu_count(),
            "load_before": load,
            "read_bytes_per_second": limits.read_bytes_per_second,
            "f32_flops_per_second": limits.flops_per_second,
        },
        "rows": n_rows,
        "dim": _DIM,
        "threads": args.threads,
        "results": [_result(timing, limits) for timing in timings],
    }
    if args.json:
        print_json(told)
    else:
        for line in _lines(told):
            print(line)
    return 0


def _result(timing: Timing, limits: Limits) -> dict[str, Any]:
    """With what limits it at best, and how much of that it reaches."""
    least, limit = limits.least_seconds(timing.bytes, timing.flops)
    return {**asdict(timing), "limit": limit, "share": least / timing.seconds}


def _fitting(n_rows: int, folder: str, limits: Limits) -> int:
    """So many rows, or as many as the disk, the memory and a minute have room for.

    Raises
    ------
    StorageError
        When the disk has no room for a few.
    """
    free = shutil.disk_usage(folder).free
    flops = 2 * _DIM * sum(_QUERIES) * 2 * _RUNS
    # A third of the peak is within everybody's reach.
    by_time = int(_SECONDS * limits.flops_per_second / 3 / flops)
    n_rows = max(_LEAST_ROWS, min(n_rows, by_time, _memory() // 4 // (6 * _DIM)))
    n_rows = min(n_rows, free // 4 // (2 * _DIM)) // _EXAMPLE * _EXAMPLE
    if n_rows < _LEAST_ROWS:
        need = 4 * _LEAST_ROWS * 2 * _DIM
        raise StorageError(
            f"{folder} has {human_bytes(free)} free, bench wants {human_bytes(need)}",
            kind="disk_full",
            hint="TMPDIR=/another/folder actstore bench",
        )
    return n_rows


def _memory() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):
        return 8 << 30


def _random_rows(n: int) -> NDArray[np.float32]:
    """Heavy-tailed rows ``[n, dim]``, a few dims a hundred times as large: as hidden states are."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, _DIM), np.float32)
    rows *= np.exp(rng.standard_normal((n, 1), np.float32) / 2)
    rows[:, rng.choice(_DIM, 4, replace=False)] *= 100
    return rows


def _measure(folder: str, n_rows: int, threads: int) -> Iterator[Timing]:
    rows = _random_rows(n_rows)
    offset = np.arange(0, n_rows + 1, _EXAMPLE)
    queries = _random_rows(max(_QUERIES))
    path = os.path.join(folder, "bench.act")
    with create(path, {"resid": SiteSpec(1, _DIM, "bfloat16")}, threads=threads) as writer:
        for start in range(0, n_rows, 1 << 14):
            block = rows[start : start + (1 << 14)]
            lengths = np.full(len(block) // _EXAMPLE, _EXAMPLE)
            writer.append({"resid": block[:, None].astype(ml_dtypes.bfloat16)}, lengths)

    def timing(data: str, what: str, n_bytes: int, flops: int, work: Callable[[], object]) -> Timing:
        return Timing(data, what, _best(work), n_bytes, flops)

    size = n_rows * _DIM
    memory, stored = "float32 in memory", "bfloat16 compressed"
    # To add up is one operation for each value; the moments take about four.
    yield timing(
        memory, "scan: Summary", 4 * size, 4 * size, lambda: scan(rows, [Summary()], threads=threads)
    )
    yield timing(memory, "pool: mean", 4 * size, size, lambda: pool(rows, offset, "mean", threads=threads))
    for n in _QUERIES:
        yield timing(
            memory,
            f"search: {n} queries" if n > 1 else "search: 1 query",
            4 * size,
            2 * n * size,
            lambda n=n: search(rows, queries[:n], 10, threads=threads),  # type: ignore[misc]
        )
    with open_store(path) as store:
        site: Site = store["resid"]
        out = np.empty(site.shape, site.dtype)
        yield timing(stored, "read", 2 * size, 0, lambda: site.read(out=out, threads=threads))
        yield timing(
            stored, "scan: Summary", 2 * size, 4 * size, lambda: site.scan([Summary()], threads=threads)
        )
        yield timing(stored, "pool: mean", 2 * size, size, lambda: site.pool("mean", threads=threads))
        for n in _QUERIES:
            yield timing(
                stored,
                f"search: {n} queries" if n > 1 else "search: 1 query",
                2 * size,
                2 * n * size,
                lambda n=n: site.search(queries[:n], 10, threads=threads),  # type: ignore[misc]
            )


def _best(work: Callable[[], object]) -> float:
    """The least of some runs; of one that takes long, it alone."""
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        if best > 3:
            break
    return best


def _lines(told: Mapping[str, Any]) -> Iterator[str]:
    machine = told["machine"]
    threads = f"{told['threads']} threads" if told["threads"] else f"all {machine['cores']} cores"
    yield f"this machine, {threads}"
    if (machine["load_before"] or 0) > 0.5 * (machine["cores"] or 1):
        yield f"  !! others were at work, load {machine['load_before']:.1f}: nothing here is to be relied on"
    yield f"  bandwidth  {machine['read_bytes_per_second'] / 1e9:,.1f} GB/s, reading memory"
    yield f"  peak       {machine['f32_flops_per_second'] / 1e9:,.0f} GFLOP/s, float32"
    yield f"actstore, {told['rows']:,} rows of dim {told['dim']}; GB/s are of rows as they are when decoded"
    rows = [["data", "", "ms", "GB/s", "GFLOP/s", "of its limit"]]
    before = None
    for result in told["results"]:
        seconds = result["seconds"]
        rows.append(
            [
                result["data"] if result["data"] != before else "",
                result["what"],
                f"{1e3 * seconds:,.1f}",
                f"{result['bytes'] / seconds / 1e9:,.2f}",
                f"{result['flops'] / seconds / 1e9:,.1f}" if result["flops"] else "-",
                f"{result['share']:.0%} {result['limit']:<9}",
            ]
        )
        before = result["data"]
    yield from (f"  {line}" for line in table(rows, left=2))
