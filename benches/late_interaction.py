"""Late interaction (MaxSim): the best of 1,000 documents of 256 vectors, beside NumPy, torch and maxsim-cpu.

The peers score all documents and leave the choice of ten to others. Of several ways to write it in NumPy and
in torch all are timed first, and the fastest is kept. maxsim-cpu is tried in a process of its own, for every
size, as at some it ends the process or has other scores; it is left out there.
"""

from __future__ import annotations

import itertools
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import actstore
import numpy as np
import torch
from numpy.typing import NDArray

from . import limits
from .measure import OURS, Case, Report, fastest, interleave
from .scanning import BARE_SCAN, bare_scan
from .search_peers import SPARE, Found, K, check_exact, check_scores, lane_sums, two_threads
from .searching import ON_DISK, found
from .store import SITE
from .threads import THREADS, pin, settle

DOCUMENTS, QUICK_DOCUMENTS = 1000, 250
TOKENS = 256  # vectors a document
QUERY_TOKENS = 32
QUERIES = (1, 4)
DIMS = (128, 384)
MAXSIM_CPU = "maxsim-cpu"
TRIES = 3
ROOT = Path(__file__).resolve().parents[1]

Scorer = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""From vectors ``[n, dim]``, `QUERY_TOKENS` a query, to scores ``[n_queries, n_documents]``."""


def maxsim(report: Report, tmpfs: Path, rounds: int, quick: bool) -> None:
    """Both widths, in memory and from a compressed store."""
    n_documents = QUICK_DOCUMENTS if quick else DOCUMENTS
    for dim in DIMS:
        path = tmpfs / f"documents-{dim}.act"
        _MaxSim(n_documents, dim, path, report, rounds).run()


def vectors(n: int, dim: int, seed: int) -> NDArray[np.float32]:
    """Of length 1, drawn at random, ``[n, dim]``."""
    drawn = np.random.default_rng(seed).standard_normal((n, dim), dtype=np.float32)
    drawn /= np.linalg.norm(drawn, axis=1, keepdims=True)
    return drawn


class Peers:
    """Documents as each peer takes them.

    Parameters
    ----------
    rows
        float32 ``[n_documents * TOKENS, dim]``.
    """

    def __init__(self, rows: NDArray[np.float32]) -> None:
        self.rows, self.tensor = rows, torch.from_numpy(rows)
        self.n = len(rows) // TOKENS
        self.starts = np.arange(self.n) * TOKENS
        self.out = np.empty(len(rows) * QUERY_TOKENS * max(QUERIES), np.float32)
        self.documents = rows.reshape(self.n, TOKENS, -1)

    def numpy_ways(self) -> dict[str, Scorer]:
        """One product with all rows, into an output that is reused, and maxima of it."""

        def by_rows(given: NDArray[np.float32]) -> NDArray[np.float32]:
            out = self.out[: len(given) * len(self.rows)].reshape(len(self.rows), len(given))
            product = np.matmul(self.rows, given.T, out=out)
            return _per_query(product.reshape(self.n, TOKENS, -1).max(axis=1).T)

        def by_vectors(given: NDArray[np.float32]) -> NDArray[np.float32]:
            return _per_query(self._product(given).reshape(len(given), self.n, TOKENS).max(axis=2))

        def reduceat(given: NDArray[np.float32]) -> NDArray[np.float32]:
            return _per_query(np.maximum.reduceat(self._product(given), self.starts, axis=1))

        return {
            "numpy, X @ q.T, max(1)": by_rows,
            "numpy, q @ X.T, max(2)": by_vectors,
            "numpy, q @ X.T, reduceat": reduceat,
        }

    def torch_ways(self) -> dict[str, Scorer]:
        """The same, with maxima on two threads."""

        def by_rows(given: torch.Tensor) -> torch.Tensor:
            return (self.tensor @ given.T).view(self.n, TOKENS, -1).amax(dim=1).T

        def by_vectors(given: torch.Tensor) -> torch.Tensor:
            return (given @ self.tensor.T).view(len(given), self.n, TOKENS).amax(dim=2)

        def einsum(given: torch.Tensor) -> torch.Tensor:
            documents = self.tensor.view(self.n, TOKENS, -1)
            return torch.einsum("qd,ntd->qnt", given, documents).amax(dim=2)

        def scorer(best: Callable[[torch.Tensor], torch.Tensor]) -> Scorer:
            def score(given: NDArray[np.float32]) -> NDArray[np.float32]:
                with two_threads():
                    return _per_query(best(torch.from_numpy(given)).numpy())

            return score

        return {
            "torch, X @ q.T, amax(1)": scorer(by_rows),
            "torch, q @ X.T, amax(2)": scorer(by_vectors),
            "torch, einsum, amax(2)": scorer(einsum),
        }

    def maxsim_cpu_ways(self) -> dict[str, Scorer]:
        """A call for each query; documents as one array, or as a list."""
        import maxsim_cpu  # late: it may not be there

        as_list = list(self.documents)

        def scorer(score: Callable[..., NDArray[np.float32]], documents: Any) -> Scorer:
            return lambda given: np.stack([score(query, documents) for query in _split(given)])

        return {
            f"{MAXSIM_CPU}, one array": scorer(maxsim_cpu.maxsim_scores, self.documents),
            f"{MAXSIM_CPU}, a list": scorer(maxsim_cpu.maxsim_scores_variable, as_list),
        }

    def _product(self, given: NDArray[np.float32]) -> NDArray[np.float32]:
        out = self.out[: len(given) * len(self.rows)].reshape(len(given), len(self.rows))
        return np.matmul(given, self.rows.T, out=out)


def _per_query(best: NDArray[np.float32]) -> NDArray[np.float32]:
    """The sums ``[n_queries, n_documents]`` of the best products ``[n vectors, n_documents]``."""
    sums: NDArray[np.float32] = best.reshape(-1, QUERY_TOKENS, best.shape[1]).sum(axis=1)
    return sums


def _split(given: NDArray[np.float32]) -> list[NDArray[np.float32]]:
    return list(given.reshape(-1, QUERY_TOKENS, given.shape[1]))


def all_scores(rows: NDArray[np.float32], given: NDArray[np.float32]) -> NDArray[np.float64]:
    """Every score in float64, ``[n_queries, n_documents]``."""
    n, wide = len(rows) // TOKENS, given.astype(np.float64)
    best = [wide @ document.astype(np.float64).T for document in rows.reshape(n, TOKENS, -1)]
    of_vectors = np.stack([product.max(axis=1) for product in best], axis=1)
    scores: NDArray[np.float64] = of_vectors.reshape(-1, QUERY_TOKENS, n).sum(axis=1)
    return scores


def brute_force(rows: NDArray[np.float32], given: NDArray[np.float32], scores: NDArray[np.float64]) -> Found:
    """The ten best documents: a few more by `scores`, scored again in the order that is promised."""
    best: list[NDArray[np.float32]] = []
    numbers: list[NDArray[np.int64]] = []
    for query, of_query in zip(_split(given), scores, strict=True):
        near = np.sort(np.argsort(-of_query)[: K + SPARE])
        exact = np.empty(len(near), np.float32)
        for i, document in enumerate(near.tolist()):
            own = rows[document * TOKENS : (document + 1) * TOKENS].astype(np.float64)
            of_vectors = [lane_sums(own * vector).max() for vector in query.astype(np.float64)]
            exact[i] = lane_sums(np.array(of_vectors))
        order = np.lexsort((near, -exact))[:K]
        best.append(exact[order])
        numbers.append(near[order])
    return np.stack(best), np.stack(numbers)


class _MaxSim:
    """One width, with its peers and limits."""

    def __init__(self, n_documents: int, dim: int, path: Path, report: Report, rounds: int) -> None:
        self.rows = vectors(n_documents * TOKENS, dim, 1)
        self.given = vectors(QUERY_TOKENS * max(QUERIES), dim, 2)
        self.offset = np.arange(n_documents + 1) * TOKENS
        self.peers, self.machine = Peers(self.rows), limits.Machine()
        self.report, self.rounds = report, rounds
        self.with_maxsim_cpu = tried(n_documents, dim)
        spec = actstore.SiteSpec(n_layers=1, dim=dim, dtype="bfloat16")
        stored = self.rows.astype(spec.dtype)[:, None]
        with actstore.create(path, {SITE: spec}, overwrite=True, threads=THREADS) as writer:
            writer.append({SITE: stored}, [TOKENS] * n_documents)
        self.site = actstore.open(path)[SITE]
        self._check(stored[:, 0].astype(np.float32))

    def run(self) -> None:
        for n_queries in QUERIES:
            self._measure(n_queries)

    def _check(self, stored: NDArray[np.float32]) -> None:
        """Ours to the bit, in memory and on disk; the peers' within float32's rounding."""
        queries = _split(self.given)
        on_disk = self.site.maxsim(queries, k=K, threads=THREADS, metric="dot", combine="sum")
        expected = brute_force(stored, self.given, all_scores(stored, self.given))
        check_exact("MaxSim on disk", found(on_disk), expected)
        scores = all_scores(self.rows, self.given)
        expected = brute_force(self.rows, self.given, scores)
        check_exact("MaxSim in memory", found(self._in_memory(queries)), expected)
        for ways in self._ways():
            for name, score in ways.items():
                check_scores(name, score(self.given), scores)

    def _ways(self) -> list[dict[str, Scorer]]:
        ways = [self.peers.numpy_ways(), self.peers.torch_ways()]
        return [*ways, self.peers.maxsim_cpu_ways()] if self.with_maxsim_cpu else ways

    def _in_memory(self, queries: list[NDArray[np.float32]]) -> Any:
        return actstore.maxsim(
            self.rows, self.offset, queries, k=K, threads=THREADS, metric="dot", combine="sum"
        )

    def _measure(self, n_queries: int) -> None:
        """One number of queries; the peers in the fastest of their ways."""
        given = self.given[: n_queries * QUERY_TOKENS]
        queries = _split(given)
        cases = {OURS: Case(lambda: self._in_memory(queries), settle)}
        for ways in self._ways():
            tries = {name: Case(partial(score, given), settle) for name, score in ways.items()}
            kept = fastest(tries)
            cases[kept] = tries[kept]
        cases[limits.F32_PEAK] = Case(self.machine.run, settle)
        cases[ON_DISK] = Case(
            lambda: self.site.maxsim(queries, k=K, threads=THREADS, metric="dot", combine="sum"), settle
        )
        cases[BARE_SCAN] = Case(bare_scan(self.site).run, settle)
        samples = interleave(cases, self.rounds)
        (n, dim), flops = self.rows.shape, 2.0 * len(given) * self.rows.size
        samples |= self.machine.seconds(self.rounds, self.rows.nbytes, flops)

        on_disk, bare = samples.pop(ON_DISK), samples.pop(BARE_SCAN)
        what = f"{n_queries} {'query' if n_queries == 1 else 'queries'} of {QUERY_TOKENS}"
        shape = f"{n // TOKENS:,} x {TOKENS} x {dim}, {what}"
        targets = {limits.F32_PEAK: 0.60}
        if n_queries == 1:
            targets |= {name: 2.0 for name in cases if name.startswith(("numpy", MAXSIM_CPU))}
        self.report.timed("MaxSim, float32 in memory", shape, samples, flops, targets, "GFLOP/s")
        beside = {OURS: on_disk, "actstore, in memory": samples[OURS], BARE_SCAN: bare}
        beside[limits.ROOFLINE] = samples[limits.ROOFLINE]
        self.report.timed("MaxSim, bf16 on disk", shape, beside, flops, unit="GFLOP/s")


def tried(n_documents: int, dim: int) -> bool:
    """Whether maxsim-cpu scores documents of this width as it should, found out in another process."""
    command = [sys.executable, "-m", "benches.late_interaction", str(n_documents), str(dim)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        # A signal is a negative status, and leaves no message.
        last = done.stderr.strip().splitlines()[-1:] if done.returncode > 0 else []
        why = "".join(last) or f"status {done.returncode}"
        print(f"\n{MAXSIM_CPU} is left out at dim {dim}: {why}", flush=True)
    return done.returncode == 0


def attempt(n_documents: int, dim: int) -> None:
    """Fail unless maxsim-cpu has the right scores, several times over."""
    rows, given = vectors(n_documents * TOKENS, dim, 1), vectors(QUERY_TOKENS * max(QUERIES), dim, 2)
    scores = all_scores(rows, given)
    for (name, score), _ in itertools.product(Peers(rows).maxsim_cpu_ways().items(), range(TRIES)):
        check_scores(name, score(given), scores)


if __name__ == "__main__":
    pin()
    attempt(int(sys.argv[1]), int(sys.argv[2]))
