"""Exact top-10 in memory and from disk, for few queries and for many, beside faiss, torch and NumPy."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import actstore
import numpy as np
from numpy.typing import NDArray

from . import limits
from .data import LONG_ROWS, long_rows
from .measure import OURS, Case, Report, interleave
from .scanning import BARE_SCAN, bare_scan
from .search_peers import Faiss, Found, K, NumpyProduct, TorchTopK, brute_force, check_close, check_exact
from .store import SITE, Bench, Rounds
from .threads import THREADS, settle

QUERIES = (1, 16, 32, 128, 1024)
BARE_READ = "limit: bare read"
FAISS, FAISS_PRODUCT = "faiss IndexFlatIP", "faiss, products forced"
ON_DISK = "actstore, on disk"
TORCH, NUMPY = "torch, product + topk", "numpy, product alone"

# How many times the speed of faiss, by number of queries.
FAISS_IN_MEMORY = {16: 5.0, 32: 5.0, 128: 5.0, 1024: 0.9}
FAISS_ON_DISK = {16: 3.0, 32: 3.0, 128: 3.0, 1024: 0.8}


def found(hits: Any) -> Found:
    """The scores and rows of our hits, as the peers return them."""
    return hits.scores, hits.rows


def queries_of(rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows ``[nq, n_layers, dim]`` of the long data set as queries ``[nq, n_layers * dim]``."""
    return np.ascontiguousarray(rows.reshape(len(rows), -1))


def search(bench: Bench) -> None:
    """The last layer, float32 in memory and in the stored dtype on disk; then two layers side by side."""
    n, layers, _ = bench.data.acts.shape
    last = layers - 1
    later = long_rows(LONG_ROWS, LONG_ROWS + max(QUERIES), range(layers))
    array = np.ascontiguousarray(long_rows(0, n, [last])[:, 0])
    site = actstore.open(bench.blosc)[SITE].select(layers=[last])
    stored = bench.data.acts[:, last].astype(np.float32)
    queries = queries_of(later[:, [last]])
    check_exact(
        "search on disk",
        found(site.search(queries, k=K, threads=THREADS, metric="dot", combine="sum")),
        brute_force(stored, queries),
    )
    del stored
    _Search(array, queries, bench.report, bench.rounds, bench.data.label, site).run()
    del array

    both = [layers // 2, last]
    wide = long_rows(0, n // 2, both).reshape(n // 2, -1)
    _Search(wide, queries_of(later[:, both]), bench.report, bench.rounds, bench.data.label).run()


@dataclass
class _Search:
    """One array, with its peers and limits.

    Attributes
    ----------
    array
        float32 ``[n, dim]``.
    queries
        float32 ``[most queries, dim]``.
    site
        The same rows on disk, in another dtype, one layer; or None.
    """

    array: NDArray[np.float32]
    queries: NDArray[np.float32]
    report: Report
    rounds: Rounds
    dtype: str
    site: actstore.Site | None = None

    def __post_init__(self) -> None:
        self.faiss, self.torch = Faiss(self.array), TorchTopK(self.array)
        self.numpy = NumpyProduct(self.array, len(self.queries))
        self.read, self.machine = limits.bare_read(self.array), limits.Machine()
        expected = brute_force(self.array, self.queries)
        check_exact("search in memory", found(self._in_memory(self.queries)), expected)
        for name, peer in ((FAISS, self.faiss.search), (TORCH, self.torch.search)):
            check_close(name, peer(self.queries), expected)

    def run(self) -> None:
        for n_queries in QUERIES:
            self._measure(n_queries)

    def _in_memory(self, queries: NDArray[np.float32]) -> Any:
        return actstore.search(self.array, queries, k=K, threads=THREADS, metric="dot", combine="sum")

    def _measure(self, n_queries: int) -> None:
        """One number of queries. Both figures share the rounds, so that faiss runs once."""
        (n, dim), queries = self.array.shape, self.queries[:n_queries]
        site = self.site
        cases = {
            OURS: Case(lambda: self._in_memory(queries), settle),
            FAISS: Case(lambda: self.faiss.search(queries), settle),
            FAISS_PRODUCT: Case(lambda: self.faiss.search_by_product(queries), settle),
            TORCH: Case(lambda: self.torch.search(queries), settle),
            NUMPY: Case(lambda: self.numpy.run(queries), settle),
            limits.F32_PEAK: Case(self.machine.run, settle),
        }
        if n_queries == 1:
            cases[BARE_READ] = Case(self.read, settle)
        if site is not None:
            cases[ON_DISK] = Case(
                lambda: site.search(queries, k=K, threads=THREADS, metric="dot", combine="sum"), settle
            )
            cases[BARE_SCAN] = Case(bare_scan(site).run, settle)
        rounds = self.rounds.read if n_queries < 128 else self.rounds.scan
        if n_queries * dim >= 128_000:
            del cases[FAISS_PRODUCT]  # it is what faiss does by itself then
        samples = interleave(cases, rounds)
        flops = 2.0 * n_queries * n * dim
        samples |= self.machine.seconds(rounds, self.array.nbytes, flops)
        if n_queries == 1:
            del samples[limits.F32_PEAK]

        on_disk, bare = samples.pop(ON_DISK, None), samples.pop(BARE_SCAN, None)
        amount, unit = (self.array.nbytes, "GB/s") if n_queries == 1 else (flops, "GFLOP/s")
        shape = f"{n:,} x {dim}, {n_queries:,} {'query' if n_queries == 1 else 'queries'}"
        targets = {BARE_READ: 0.85} if n_queries == 1 else {limits.F32_PEAK: 0.60}
        if n_queries in FAISS_IN_MEMORY:
            targets[FAISS] = FAISS_IN_MEMORY[n_queries]
        self.report.timed("top-10, float32 in memory", shape, samples, amount, targets, unit)
        if on_disk is None or bare is None:
            return

        beside = {OURS: on_disk, "actstore, in memory": samples[OURS], FAISS: samples[FAISS], BARE_SCAN: bare}
        beside[limits.ROOFLINE] = samples[limits.ROOFLINE]
        targets = {BARE_SCAN: 0.85} if n_queries == 1 else {FAISS: FAISS_ON_DISK[n_queries]}
        figure = f"top-10, {self.dtype} on disk"
        self.report.timed(figure, shape, beside, amount, targets, unit)
