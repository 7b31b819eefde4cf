"""``actstore bench``: the speed of scan, pool and search, compared with the limits of the machine."""

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

from ...base.machine import Limits, machine_limits
from ...base.text import human_bytes
from ...disk.create import create
from ...disk.spec import SiteSpec
from ...errors import StorageError
from ...functional import pool, scan, search
from ...ops.summary import Summary
from ...site import Site
from ...store import open as open_store
from ..args import Commands, add_json, add_threads
from ..terminal import print_json, table

_DIM = 768
_EXAMPLE = 128
"""Rows per example."""
_QUERIES = (1, 16, 128, 1024)
_ROWS, _QUICK_ROWS = 1 << 18, 1 << 15
_MIN_ROWS = 1 << 12
_SEARCH_SECONDS = 40.0
"""Time budget of all searches together."""
_RUNS = 3
"""Repetitions of each measurement, of which the fastest counts."""


def add(commands: Commands) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "bench",
        help="measure the speed of scan, pool and search against the machine's limits",
        description="Measure the memory bandwidth and the float32 throughput of this machine, and how close "
        "scan, pool and search come to them. The data are random rows: float32 in memory, and bfloat16 in a "
        "compressed store, which is written to the folder for temporary files ($TMPDIR) and removed again.",
    )
    parser.add_argument("--quick", action="store_true", help="use an eighth of the rows; takes seconds")
    add_threads(parser)
    add_json(parser)
    parser.set_defaults(run=run)


@dataclass(frozen=True)
class Timing:
    """The duration of one operation.

    Attributes
    ----------
    data : str
        Where the rows were.
    what : str
        The operation.
    seconds : float
    bytes : int
        Size of the decoded rows.
    flops : int
        Arithmetic operations.
    """

    data: str
    what: str
    seconds: float
    bytes: int
    flops: int


def run(args: argparse.Namespace) -> int:
    """Run the command."""
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else None
    limits = machine_limits(args.threads)
    with tempfile.TemporaryDirectory(prefix="actstore-bench-") as folder:
        n_rows = _affordable_rows(_QUICK_ROWS if args.quick else _ROWS, folder, limits)
        timings = list(_measure(folder, n_rows, args.threads))
    # Other processes may have disturbed the first measurement: keep the better one.
    limits = limits.best(machine_limits(args.threads))
    report = {
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
        print_json(report)
    else:
        for line in _lines(report):
            print(line)
    return 0


def _result(timing: Timing, limits: Limits) -> dict[str, Any]:
    """A timing with the limit that applies to it and the fraction of that limit it reaches."""
    minimum, limit = limits.least_seconds(timing.bytes, timing.flops)
    return {**asdict(timing), "limit": limit, "share": minimum / timing.seconds}


def _affordable_rows(n_rows: int, folder: str, limits: Limits) -> int:
    """The number of rows, reduced to what disk, memory and the time budget allow.

    Raises
    ------
    StorageError
        If the disk is too small even for the minimum.
    """
    free = shutil.disk_usage(folder).free
    flops = 2 * _DIM * sum(_QUERIES) * 2 * _RUNS
    # Assume that a search reaches at least a third of the peak.
    by_time = int(_SEARCH_SECONDS * limits.flops_per_second / 3 / flops)
    n_rows = max(_MIN_ROWS, min(n_rows, by_time, _memory() // 4 // (6 * _DIM)))
    n_rows = min(n_rows, free // 4 // (2 * _DIM)) // _EXAMPLE * _EXAMPLE
    if n_rows < _MIN_ROWS:
        need = 4 * _MIN_ROWS * 2 * _DIM
        raise StorageError(
            f"{folder} has {human_bytes(free)} free, bench needs {human_bytes(need)}",
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
    """Rows ``[n, dim]`` that resemble hidden states: heavy-tailed, with a few dims 100 times larger."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((n, _DIM), np.float32)
    rows *= np.exp(rng.standard_normal((n, 1), np.float32) / 2)
    rows[:, rng.choice(_DIM, 4, replace=False)] *= 100
    return rows


def _measure(folder: str, n_rows: int, threads: int) -> Iterator[Timing]:
    rows = _random_rows(n_rows)
    offsets = np.arange(0, n_rows + 1, _EXAMPLE)
    queries = _random_rows(max(_QUERIES))
    path = os.path.join(folder, "bench.act")
    with create(path, {"resid": SiteSpec(1, _DIM, "bfloat16")}, threads=threads) as writer:
        for start in range(0, n_rows, 1 << 14):
            block = rows[start : start + (1 << 14)]
            lengths = np.full(len(block) // _EXAMPLE, _EXAMPLE)
            writer.append({"resid": block[:, None].astype(ml_dtypes.bfloat16)}, lengths)

    def timing(data: str, what: str, n_bytes: int, flops: int, work: Callable[[], object]) -> Timing:
        return Timing(data, what, _fastest(work), n_bytes, flops)

    size = n_rows * _DIM
    memory, stored = "float32 in memory", "bfloat16 compressed"
    # Pooling adds each value once; a Summary takes about four operations per value.
    yield timing(
        memory, "scan: Summary", 4 * size, 4 * size, lambda: scan(rows, [Summary()], threads=threads)
    )
    yield timing(memory, "pool: mean", 4 * size, size, lambda: pool(rows, offsets, "mean", threads=threads))
    for n in _QUERIES:
        yield timing(
            memory,
            f"search: {n} queries" if n > 1 else "search: 1 query",
            4 * size,
            2 * n * size,
            lambda n=n: search(rows, queries[:n], 10, metric="dot", threads=threads),  # type: ignore[misc]
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
                lambda n=n: site.search(queries[:n], 10, metric="dot", threads=threads),  # type: ignore[misc]
            )


def _fastest(work: Callable[[], object]) -> float:
    """The seconds of the fastest of several runs; a run over 3 s is the last."""
    best = float("inf")
    for _ in range(_RUNS):
        start = time.perf_counter()
        work()
        best = min(best, time.perf_counter() - start)
        if best > 3:
            break
    return best


def _lines(report: Mapping[str, Any]) -> Iterator[str]:
    machine = report["machine"]
    threads = f"{report['threads']} threads" if report["threads"] else f"all {machine['cores']} cores"
    yield f"this machine, {threads}"
    if (machine["load_before"] or 0) > 0.5 * (machine["cores"] or 1):
        yield f"  !! the machine was busy (load {machine['load_before']:.1f}): these numbers are unreliable"
    yield f"  bandwidth  {machine['read_bytes_per_second'] / 1e9:,.1f} GB/s, reading memory"
    yield f"  peak       {machine['f32_flops_per_second'] / 1e9:,.0f} GFLOP/s, float32"
    yield f"actstore, {report['rows']:,} rows of dim {report['dim']}; GB/s count decoded rows"
    rows = [["data", "", "ms", "GB/s", "GFLOP/s", "of its limit"]]
    previous = None
    for result in report["results"]:
        seconds = result["seconds"]
        rows.append(
            [
                result["data"] if result["data"] != previous else "",
                result["what"],
                f"{1e3 * seconds:,.1f}",
                f"{result['bytes'] / seconds / 1e9:,.2f}",
                f"{result['flops'] / seconds / 1e9:,.1f}" if result["flops"] else "-",
                f"{result['share']:.0%} {result['limit']:<9}",
            ]
        )
        previous = result["data"]
    yield from (f"  {line}" for line in table(rows, left=2))
