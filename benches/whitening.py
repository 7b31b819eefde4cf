"""Top-10 by cosine in a whitened space over rows as they are, beside the same search without whitening.

What a whitened search needs once, a fit and the norm of each whitened row, is timed by itself. Rows that are
whitened beforehand, at the price of a float32 copy of them all, stand beside it for information.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Any

import actstore
import numpy as np
from actstore.ops.norms import compute_norms
from actstore.rows.memory import array_backend
from numpy.typing import NDArray

from .data import LONG_ROWS, long_rows
from .measure import OURS, Case, interleave
from .search_peers import Found, K
from .searching import found, queries_of
from .store import SITE, Bench
from .threads import THREADS, blocks, settle

QUERIES = (1, 32, 128)
PLAIN, BEFOREHAND = "actstore, plain cos", "actstore, rows whitened beforehand"
FIT, NORMS = "fit", "norms of all rows"
SLACK = 1.1
TOLERANCE = 1e-6


def whitened(bench: Bench) -> None:
    """The last layer, float32 in memory and in the stored dtype on disk."""
    n, layers, _ = bench.data.acts.shape
    last = layers - 1
    queries = queries_of(long_rows(LONG_ROWS, LONG_ROWS + max(QUERIES), [last]))
    rows = np.ascontiguousarray(long_rows(0, n, [last])[:, 0])
    # `actstore.search(array, ...)` would compute the norms each time: they are kept with a site.
    _Whitened("float32 in memory", actstore.Site(array_backend(rows)), rows, queries, bench).run()
    del rows
    site = actstore.open(bench.blosc)[SITE].select(layers=[last])
    stored = bench.data.acts[:, last].astype(np.float32)
    _Whitened(f"{bench.data.label} on disk", site, stored, queries, bench).run()


@dataclass
class _Whitened:
    """One source of rows.

    Attributes
    ----------
    where
        What to call it.
    site
        One layer.
    rows
        The same in float32, ``[n, dim]``.
    queries
        float32 ``[most queries, dim]``.
    """

    where: str
    site: actstore.Site
    rows: NDArray[np.float32]
    queries: NDArray[np.float32]
    bench: Bench

    def __post_init__(self) -> None:
        self.whitener = actstore.Whitener().fit(self.site, threads=THREADS)
        # This call computes the norms, which are kept from here on.
        hits = found(self._search(self.site, self.queries, self.whitener))
        check(f"whitened search, {self.where}", hits, self.whitener, self.rows, self.queries)
        self.explicit = actstore.Site(array_backend(self.whitener.transform(self.rows)))

    def run(self) -> None:
        self._once()
        for n_queries in QUERIES:
            self._measure(n_queries)

    def _search(
        self, site: actstore.Site, queries: NDArray[np.float32], transform: actstore.Whitener | None = None
    ) -> Any:
        return site.search(queries, k=K, metric="cos", transform=transform, threads=THREADS, combine="sum")

    def _once(self) -> None:
        cases = {
            FIT: Case(lambda: actstore.Whitener().fit(self.site, threads=THREADS), settle),
            NORMS: Case(lambda: compute_norms(self.site, self.whitener.mapping, THREADS), settle),
        }
        samples = interleave(cases, self.bench.rounds.slow)
        self.bench.report.timed(
            f"whitening, once, {self.where}", self._shape, samples, len(self.rows), unit="Mrow/s"
        )

    @property
    def _shape(self) -> str:
        n, dim = self.rows.shape
        return f"{n:,} x {dim}"

    def _measure(self, n_queries: int) -> None:
        queries = self.queries[:n_queries]
        mapped = self.whitener.transform(queries)
        rounds = self.bench.rounds.read if n_queries < 128 else self.bench.rounds.scan
        cases = {
            OURS: Case(partial(self._search, self.site, queries, self.whitener), settle),
            PLAIN: Case(partial(self._search, self.site, queries), settle),
            BEFOREHAND: Case(partial(self._search, self.explicit, mapped), settle),
        }
        samples = interleave(cases, rounds)
        label = f"{self._shape}, {n_queries} {'query' if n_queries == 1 else 'queries'}"
        flops = 2.0 * n_queries * self.rows.size
        self.bench.report.timed(
            f"whitened top-10, {self.where}", label, samples, flops, {PLAIN: 1 / SLACK}, "GFLOP/s"
        )


def check(
    name: str,
    hits: Found,
    whitener: actstore.Whitener,
    rows: NDArray[np.float32],
    queries: NDArray[np.float32],
) -> None:
    """Fail unless scores are those of rows whitened in float64, and rows too where scores differ."""

    def directions(given: NDArray[np.float32]) -> NDArray[np.float64]:
        wide = given.astype(np.float64)
        away: NDArray[np.float64] = (wide - whitener.mean_[0]) @ whitener.components_[0].T
        away /= np.sqrt(whitener.explained_variance_[0] + whitener.eps)
        away /= np.linalg.norm(away, axis=1, keepdims=True)
        return away

    own = directions(queries)
    parts = [own @ directions(rows[part]).T for part in blocks(len(rows), rows[0].nbytes, 32 << 20)]
    scores = np.concatenate(parts, axis=1)
    best = -np.sort(np.partition(-scores, K, axis=1)[:, :K], axis=1)
    # A row that was found may stand for another only where both are as good as equal.
    of_found = np.take_along_axis(scores, hits[1], 1)
    for what in (hits[0], of_found):
        if not (np.abs(what - best) <= TOLERANCE).all():
            raise AssertionError(f"{name}: the results are not those of the brute force")
    if any(len(set(numbers)) < K for numbers in hits[1].tolist()):
        raise AssertionError(f"{name}: a row was found twice")
