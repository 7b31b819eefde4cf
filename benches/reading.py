"""Reading: one layer as float32, one raw layer, random rows."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator

import actstore
import numpy as np
from numpy.typing import NDArray

from . import limits
from .measure import OURS, Case, interleave
from .peers import Memmap, TensorStore, ZarrPython
from .store import MEMMAP, SITE, TENSORSTORE, ZARR, Bench, check, check_equal
from .threads import THREADS

GATHER_ROWS = 4096
BARE_DECODE = "limit: bare decode"


def layer_blosc(bench: Bench) -> None:
    """One layer to float32 from the compressed store, into an output that is reused, and a fresh one."""
    site = actstore.open(bench.blosc)[SITE]
    view = site.select(layers=[bench.layer])
    folder = bench.blosc / SITE
    tensorstore, zarr = TensorStore(folder), ZarrPython(folder)
    bare = limits.BareDecode(folder, bench.layer)
    out = np.zeros(bench.expected.shape, np.float32)
    cases = {
        OURS: Case(lambda: view.read(dtype="float32", out=out[:, None], threads=THREADS)),
        TENSORSTORE: Case(lambda: tensorstore.layer_f32(bench.layer, out)),
        ZARR: Case(lambda: zarr.layer_f32(bench.layer, out)),
    }
    check(cases, out, bench.expected)
    cases[BARE_DECODE] = Case(lambda: bare.run())
    cases[f"{BARE_DECODE} + write"] = Case(lambda: bare.run(out))
    samples = interleave(cases, bench.rounds.read)
    targets = {TENSORSTORE: 2.5, ZARR: 2.5, f"{BARE_DECODE} + write": 0.85}
    bench.report.timed("one layer to float32", bench.data.label, samples, out.nbytes, targets)

    fresh = {
        OURS: Case(lambda: view.read(dtype="float32", threads=THREADS)),
        TENSORSTORE: Case(lambda: tensorstore.layer_f32_fresh(bench.layer)),
        "limit: memcpy of the output": Case(lambda: limits.memcpy_fresh(bench.expected)),
    }
    samples = interleave(fresh, bench.rounds.read)
    bench.report.timed("one layer to float32, fresh output", bench.data.label, samples, out.nbytes)


def layer_raw(bench: Bench) -> None:
    """One layer from the raw store, in its own dtype and to float32, beside np.memmap."""
    view = actstore.open(bench.raw)[SITE].select(layers=[bench.layer])
    memmap = Memmap(bench.npy, bench.data.dtype)
    out = np.zeros(bench.expected.shape, np.float32)
    cases = {
        OURS: Case(lambda: view.read(dtype="float32", out=out[:, None], threads=THREADS)),
        MEMMAP: Case(lambda: memmap.layer_f32(bench.layer, out)),
    }
    check(cases, out, bench.expected)
    cases["limit: memcpy of the output"] = Case(lambda: limits.memcpy(bench.expected, out))
    samples = interleave(cases, bench.rounds.read)
    bench.report.timed("one raw layer to float32", bench.data.label, samples, out.nbytes, {MEMMAP: 1.0})

    source = np.ascontiguousarray(bench.data.acts[:, bench.layer])
    own = np.zeros_like(source)
    cases = {
        OURS: Case(lambda: view.read(out=own[:, None], threads=THREADS)),
        MEMMAP: Case(lambda: memmap.layer(bench.layer, own)),
    }
    check(cases, own, source)
    cases["limit: memcpy of the output"] = Case(lambda: limits.memcpy(source, own))
    samples = interleave(cases, bench.rounds.read)
    bench.report.timed("one raw layer, own dtype", bench.data.label, samples, own.nbytes, {MEMMAP: 1.0})


def gather(bench: Bench) -> None:
    """4,096 random rows of one layer, other rows each round, from the raw and the compressed store."""
    raw, blosc = actstore.open(bench.raw)[SITE], actstore.open(bench.blosc)[SITE]
    folder = bench.blosc / SITE
    memmap, tensorstore, zarr = Memmap(bench.npy, bench.data.dtype), TensorStore(folder), ZarrPython(folder)
    bare = limits.BareDecode(folder, bench.layer)
    rng = np.random.default_rng(4096)
    drawn = [rng.integers(0, len(bench.data.acts), GATHER_ROWS) for _ in range(bench.rounds.read + 1)]
    touched = [bare.of_rows(rows) for rows in drawn]
    layer = bench.layer

    def case(take: Callable[[NDArray[np.int64]], object]) -> Case:
        turns: Iterator[NDArray[np.int64]] = itertools.cycle(drawn)
        return Case(lambda: take(next(turns)))

    expected = bench.data.acts[drawn[0], layer]
    for name, read in (
        ("raw", raw[drawn[0], layer]),
        ("blosc", blosc[drawn[0], layer]),
        (MEMMAP, memmap.gather(drawn[0], layer)),
        (TENSORSTORE, tensorstore.gather(drawn[0], layer)),
        (ZARR, zarr.gather(drawn[0], layer)),
    ):
        check_equal(name, read, expected)

    raw.select(layers=[layer]).read(threads=THREADS)  # every chunk is checked at its first touch
    cases = {OURS: case(lambda rows: raw[rows, layer]), MEMMAP: case(lambda rows: memmap.gather(rows, layer))}
    label, nbytes = bench.data.label, expected.nbytes
    samples = interleave(cases, 3 * bench.rounds.read)
    bench.report.timed("4,096 random rows, raw", label, samples, nbytes, {MEMMAP: 1 / 1.3})

    rounds = itertools.cycle(touched), itertools.cycle(touched)
    cases = {
        OURS: case(lambda rows: blosc[rows, layer]),
        TENSORSTORE: case(lambda rows: tensorstore.gather(rows, layer)),
        ZARR: case(lambda rows: zarr.gather(rows, layer)),
        BARE_DECODE: Case(lambda: bare.run(which=next(rounds[0]))),
        "limit: its zstd frames alone": Case(lambda: bare.run(which=next(rounds[1]), copy_stored=False)),
    }
    samples = interleave(cases, bench.rounds.read)
    bench.report.timed("4,096 random rows", label, samples, nbytes, {TENSORSTORE: 2.0, BARE_DECODE: 0.85})
