"""Few rows at a time, as a training loop takes them, and what a search costs a layer as layers are added.

Rows of one raw layer, other rows each round: from a store that fits the last cache, and from one that does
not, both in memory. The limit is a copy of as many rows that follow one another.
"""

from __future__ import annotations

import itertools
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import median

import actstore
import ml_dtypes
import numpy as np
from numpy.typing import NDArray

from .measure import OURS, Case, Line, Report, interleave
from .threads import THREADS

MEMMAP, LIMIT = "np.memmap", "limit: memcpy of as many rows"
SITE = "resid"
N_ROWS = (64, 256, 1024, 4096, 16_384)
N_LAYERS = (8, 16, 24, 33)
DIM = 384
IN_CACHE, OUT_OF_CACHE = 4096, 1_000_000


def gathering(report: Report, tmpfs: Path, rounds: int, quick: bool) -> None:
    """``site[rows, 0]`` beside ``memmap[rows]``, both of float32."""
    for place, n in (("in cache", IN_CACHE), ("out of cache", OUT_OF_CACHE // (4 if quick else 1))):
        with tempfile.TemporaryDirectory(dir=tmpfs) as folder:
            _gather(report, Path(folder), place, n, 20 * rounds)


def _gather(report: Report, folder: Path, place: str, n: int, rounds: int) -> None:
    rows = np.random.default_rng(0).standard_normal((n, 1, DIM), np.float32)
    spec = actstore.SiteSpec(1, DIM, "float32")
    with actstore.create(folder / "x.act", {SITE: spec}, codec="raw") as writer:
        writer.append({SITE: rows}, [n])
    rows[:, 0].tofile(folder / "x.raw")
    memmap = np.memmap(folder / "x.raw", np.float32, "r", shape=(n, DIM))
    site = actstore.open(folder / "x.act")[SITE]
    site.read(threads=THREADS)  # Every chunk is checked at its first touch.
    rng = np.random.default_rng(1)
    for n_rows in N_ROWS:
        drawn = [rng.integers(0, n, n_rows) for _ in range(17)]
        if not np.array_equal(site[drawn[0], 0], rows[drawn[0], 0]):
            raise AssertionError("the rows gathered are not those asked for")
        out = np.empty((n_rows, DIM), np.float32)
        places: Iterator[int] = itertools.cycle(range(0, max(1, n - n_rows), max(1, n // 13)))

        def case(take: Callable[[NDArray[np.int64]], object], drawn: list[NDArray[np.int64]] = drawn) -> Case:
            turns = itertools.cycle(drawn)
            return Case(lambda: take(next(turns)))

        def copy(out: NDArray[np.float32] = out, places: Iterator[int] = places) -> None:
            at = next(places)  # Of an array of its own: to warm the peer's rows would help the peer.
            part = rows[at : at + len(out), 0]
            np.copyto(out[: len(part)], part)

        cases = {
            OURS: case(lambda at: site[at, 0]),
            MEMMAP: case(lambda at: memmap[at]),
            LIMIT: Case(copy),
        }
        samples = interleave(cases, rounds)
        report.timed(f"{n_rows:,} random rows, raw, {place}", "", samples, out.nbytes, {MEMMAP: 0.77})


def layers(report: Report, tmpfs: Path, rounds: int, quick: bool) -> None:
    """A query of one layer put to 8, 16, 24 and 33 layers of a compressed store; time by layer."""
    n = 8_192 if quick else 32_768
    rng = np.random.default_rng(2)
    with tempfile.TemporaryDirectory(dir=tmpfs) as folder:
        spec = actstore.SiteSpec(max(N_LAYERS), DIM, "bfloat16")
        with actstore.create(Path(folder) / "x.act", {SITE: spec}) as writer:
            for _ in range(n // 4096):
                block = rng.standard_normal((4096, max(N_LAYERS), DIM), np.float32)
                writer.append({SITE: block.astype(ml_dtypes.bfloat16)}, [4096])
        site = actstore.open(Path(folder) / "x.act")[SITE]
        query = rng.standard_normal((1, DIM), np.float32)
        views = {n_layers: site.select(layers=list(range(n_layers))) for n_layers in N_LAYERS}
        cases = {
            f"{n_layers} layers": Case(
                lambda view=view: view.search(query, k=10, metric="cos", threads=THREADS, combine="sum")  # type: ignore[misc]
            )
            for n_layers, view in views.items()
        }
        samples = interleave(cases, 3 * rounds)
        each = {name: median(taken) / int(name.split()[0]) for name, taken in samples.items()}
        least = min(each.values())
        lines = []
        for name, seconds in each.items():
            line = Line("search, time a layer", "", name, seconds, "s", samples=samples[name])
            line.judge(least / seconds, 1 / 1.1)
            lines.append(line)
        report.values("search, time a layer", f"{n:,} rows of dim {DIM}, compressed bfloat16", lines)
