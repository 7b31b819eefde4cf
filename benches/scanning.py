"""The parallel pass: a scan with one reducer and with three, beside decoding alone."""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

import actstore
import numpy as np
from actstore import _native

from . import limits
from .measure import OURS, Case, interleave
from .store import SITE, Bench
from .threads import THREADS, blocks

BARE_SCAN = "limit: bare scan"
BARE_DECODE = "limit: bare decode"

REDUCERS: dict[str, Callable[[], Any]] = {
    "Summary alone": actstore.Summary,
    "Histogram alone": actstore.Histogram,
    "Pool alone": lambda: actstore.Pool("mean"),
}


def bare_scan(site: actstore.Site) -> Case:
    """Our own pass over all rows with nothing to do: it reads, checks, decodes and converts.

    ``site.scan([])`` returns without reading, so this calls the core.
    """
    source = site.source
    return Case(lambda: _native.scan(*source, [], THREADS))


def scan(bench: Bench) -> None:
    """The summary reducer beside decoding alone, then three reducers in one pass."""
    site = actstore.open(bench.blosc)[SITE]
    label, nbytes = bench.data.label, bench.data.acts.nbytes
    check_summary(bench, site)

    def with_reducers(*new: Callable[[], Any]) -> Case:
        return Case(lambda: site.scan([make() for make in new], threads=THREADS))

    cases = {
        OURS: with_reducers(actstore.Summary),
        BARE_SCAN: bare_scan(site),
        BARE_DECODE: Case(limits.BareDecode(bench.blosc / SITE, None).run),
    }
    samples = interleave(cases, bench.rounds.scan)
    bench.report.timed("scan, Summary", label, samples, nbytes, {BARE_SCAN: 0.85})

    cases = {OURS: with_reducers(*REDUCERS.values())}
    cases |= {name: with_reducers(new) for name, new in REDUCERS.items()}
    samples = interleave(cases, bench.rounds.scan)
    slowest = max(REDUCERS, key=lambda name: median(samples[name]))
    bench.report.timed("scan, three reducers", label, samples, nbytes, {slowest: 1 / 1.3})


def check_summary(bench: Bench, site: actstore.Site) -> None:
    """Fail unless the moments of one layer are those of float64, and its extremes and counts exact."""
    state = site.scan([actstore.Summary()], threads=THREADS, partial=True)[0]
    values, layer = bench.expected, bench.layer
    mean = values.mean(axis=0, dtype=np.float64)
    squares = np.zeros_like(mean)
    for rows in blocks(len(values), values[0].nbytes, 32 << 20):
        squares += np.square(values[rows] - mean).sum(axis=0)
    exact = {
        "n": len(values),
        "n_zero": np.count_nonzero(values == 0),
        "min": values.min(),
        "max": values.max(),
    }
    close = {"mean": mean, "m2": squares}
    for name, expected in exact.items():
        if state[name][layer] != expected:
            raise AssertionError(f"Summary: {name} is {state[name][layer]}, not {expected}")
    for name, sums in close.items():
        # Relative to the spread: float32 would be several digits off.
        if not np.allclose(
            state[name][layer], sums, rtol=1e-9, atol=1e-9 * float(np.sqrt(squares / len(values)).max())
        ):
            raise AssertionError(f"Summary: {name} is not that of float64")
