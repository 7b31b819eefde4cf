"""Search among some rows: a run of them costs its share of the chunks, scattered ones never more than all.

A run of rows is held to 1.2 times its share of the chunks, times what the whole takes, plus a constant:
what the same search takes among the rows of one example, which is opening a view, a chunk, and threads.
faiss, over float32 in memory, is told the same rows by an ``IDSelector``.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import actstore
import numpy as np
from numpy.typing import NDArray

from .data import LONG_ROWS, long_rows
from .layout import Layout
from .measure import Case, Line, interleave
from .search_peers import Faiss, K, brute_force, check_exact
from .searching import found, queries_of
from .store import SITE, Bench
from .threads import THREADS, settle

QUERIES = (1, 32)
SHARES = {"1/16": 1 / 16, "1/4": 1 / 4, "1/2": 1 / 2}
SLACK = 1.2
ALL, ONE = "all rows", "one example"


def filtered(bench: Bench) -> None:
    """The last layer on disk, ``site.select(...)`` included in the time."""
    n, layers, _ = bench.data.acts.shape
    last = layers - 1
    site = actstore.open(bench.blosc)[SITE]
    array = bench.data.acts[:, last].astype(np.float32)
    later = queries_of(long_rows(LONG_ROWS, LONG_ROWS + max(QUERIES), [last]))
    peer = Faiss(array)
    ends = np.cumsum(bench.data.lengths)
    chunk_rows = Layout.read(bench.blosc / SITE).chunk_rows
    n_chunks = -(-n // chunk_rows)

    runs = {ONE: slice(len(ends) // 3, len(ends) // 3 + 1)}
    for name, share in SHARES.items():
        stop = int(np.searchsorted(ends, ends[len(ends) // 3] + share * n))
        runs[f"{name} of the rows"] = slice(len(ends) // 3, stop)
    rng = np.random.default_rng(10)
    scattered = {
        "every 2nd row": np.arange(0, n, 2),
        "10% of the rows, random": np.sort(rng.choice(n, n // 10, replace=False)),
        "50% of the rows, random": np.sort(rng.choice(n, n // 2, replace=False)),
    }
    views: dict[str, Callable[[], actstore.Site]] = {ALL: partial(site.select, layers=[last])}
    views |= {name: partial(site.select, layers=[last], examples=part) for name, part in runs.items()}
    views |= {name: partial(site.select, layers=[last], tokens=rows) for name, rows in scattered.items()}
    rows_of = {name: view().rows for name, view in views.items()}

    def ours(name: str, queries: NDArray[np.float32]) -> Any:
        return views[name]().search(queries, k=K, threads=THREADS, metric="dot", combine="sum")

    for name, rows in rows_of.items():
        scores, at = brute_force(array[rows], later)
        check_exact(f"search among {name}", found(ours(name, later)), (scores, rows[at]))

    for n_queries in QUERIES:
        queries = later[:n_queries]
        cases = {name: Case(partial(ours, name, queries), settle) for name in views}
        samples = interleave(cases, bench.rounds.read)
        peers = {
            name: Case(partial(peer.search_rows, queries, rows_of[name]), settle)
            for name in views
            if name != ALL
        }
        peers[ALL] = Case(partial(peer.search, queries), settle)
        beside = interleave(peers, max(1, bench.rounds.scan // 2), warm=False)
        label = f"{bench.data.label}, {n_queries} {'query' if n_queries == 1 else 'queries'}"
        whole, constant = median(samples[ALL]), median(samples[ONE])
        lines = []
        for name, taken in samples.items():
            line = Line("filter", label, name, median(taken), "s", samples=taken)
            if name in runs and name != ONE:
                touched = len(np.unique(rows_of[name] // chunk_rows)) / n_chunks
                allowed = SLACK * touched * whole + constant
                line.name = f"{name}, {touched:.3f} of the chunks"
                line.judge(allowed / line.value, 1.0)
            elif name in scattered:
                line.judge(whole / line.value, 1.0)
            lines.append(line)
        for name, taken in beside.items():
            lines.append(Line("filter", label, f"faiss, {name}", median(taken), "s", samples=taken))
        bench.report.values("filter", label, lines)
