"""The ten nearest other rows of every row, beside faiss, torch and scikit-learn.

The peers are asked for eleven, as each row is its own nearest (scikit-learn leaves it out by itself). All of
them expand the square: products of matrices in blocks, then the best of each block. scikit-learn, which does
it in float64, is slower and runs once. usearch's exact search goes pair by pair and took five times as long
again: it is left out.
"""

from __future__ import annotations

from typing import Any

import actstore
import faiss
import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from . import limits
from .data import long_rows
from .measure import OURS, Case, interleave
from .search_peers import SPARE, Found, K, check_exact, lane_sums, two_threads
from .store import Bench
from .threads import THREADS, settle

ROWS, QUICK_ROWS = 50_000, 10_000
SAMPLE = 256  # rows that the brute force is asked about
QUERY_BLOCK, ROW_BLOCK = 2048, 8192  # scores of a block: 64 MiB
FAISS, TORCH = "faiss IndexFlatL2", "torch, product + topk"
SKLEARN = "sklearn NearestNeighbors, once"


def neighbors(bench: Bench) -> None:
    """The last layer, float32 in memory."""
    n, layers, _ = bench.data.acts.shape
    n = ROWS if n >= ROWS else QUICK_ROWS
    rows = np.ascontiguousarray(long_rows(0, n, [layers - 1])[:, 0])
    index = faiss.IndexFlatL2(rows.shape[1])
    index.add(rows)

    def ours() -> Any:
        return actstore.neighbors(rows, k=K, threads=THREADS)

    def by_faiss() -> NDArray[np.float32]:
        squares: NDArray[np.float32] = index.search(rows, K + 1)[0]
        return squares

    # These calls stand for the round that is thrown away elsewhere.
    nearest = ours()
    sample = np.linspace(0, n - 1, SAMPLE).astype(np.int64)
    distances, found = nearest
    check_exact("neighbors", (distances[sample], found[sample]), brute_force(rows, sample))
    check_squares(FAISS, by_faiss()[:, 1:], distances, rows)
    check_squares(TORCH, torch_nearest(rows)[0][:, 1:], distances, rows)
    machine = limits.Machine()
    cases = {
        OURS: Case(ours, settle),
        FAISS: Case(by_faiss, settle),
        TORCH: Case(lambda: torch_nearest(rows), settle),
        limits.F32_PEAK: Case(machine.run, settle),
    }
    rounds = bench.rounds.slow
    samples = interleave(cases, rounds, warm=False)
    flops = 2.0 * n * rows.size
    samples[limits.F32_PEAK] = machine.seconds(rounds, 0, flops)[limits.F32_PEAK]

    results: list[NDArray[Any]] = []

    def by_sklearn() -> None:
        results.append(NearestNeighbors(n_neighbors=K, algorithm="brute").fit(rows).kneighbors()[0])

    samples |= interleave({SKLEARN: Case(by_sklearn, settle)}, 1, warm=False)
    check_squares(SKLEARN, results[0] ** 2, distances, rows)
    label = f"{n:,} x {rows.shape[1]}"
    targets = {limits.F32_PEAK: 0.60}
    bench.report.timed("10 neighbors, float32 in memory", label, samples, flops, targets, "GFLOP/s")


def torch_nearest(rows: NDArray[np.float32]) -> Found:
    """Squared distances and rows, ``[n, K + 1]``: products less half the squares, the best of each block."""
    given = torch.from_numpy(rows)
    squares = given.square().sum(dim=1)
    apart, found = torch.empty(len(given), K + 1), torch.empty(len(given), K + 1, dtype=torch.long)
    with two_threads():
        for start in range(0, len(given), QUERY_BLOCK):
            queries = given[start : start + QUERY_BLOCK]
            best, numbers = [], []
            for first in range(0, len(given), ROW_BLOCK):
                block = given[first : first + ROW_BLOCK]
                less = squares[first : first + ROW_BLOCK] * -0.5
                scores, at = torch.addmm(less, queries, block.T).topk(min(K + 1, len(block)), dim=1)
                best.append(scores)
                numbers.append(at + first)
            scores, at = torch.cat(best, 1).topk(K + 1, dim=1)
            found[start : start + QUERY_BLOCK] = torch.cat(numbers, 1).gather(1, at)
            apart[start : start + QUERY_BLOCK] = squares[start : start + QUERY_BLOCK, None] - 2 * scores
    return apart.numpy(), found.numpy()


def brute_force(rows: NDArray[np.float32], sample: NDArray[np.int64]) -> Found:
    """Distances and numbers of the nearest others of some rows, in float64 and rounded once; ties by row."""
    wide = rows.astype(np.float64)
    squares = np.square(wide).sum(axis=1)
    apart = squares[sample, None] + squares - 2 * (wide[sample] @ wide.T)
    apart[np.arange(len(sample)), sample] = np.inf
    near = np.sort(np.argpartition(apart, K + SPARE, axis=1)[:, : K + SPARE], axis=1)
    # The square was expanded, which cancels: these are computed again, difference by difference.
    exact = np.sqrt(lane_sums(np.square(wide[near] - wide[sample, None]))).astype(np.float32)
    order = np.lexsort((near, exact))[:, :K]
    return np.take_along_axis(exact, order, 1), np.take_along_axis(near, order, 1)


def check_squares(
    name: str, squares: NDArray[Any], distances: NDArray[np.float32], rows: NDArray[np.float32]
) -> None:
    """Fail unless squared distances are ours, within the rounding of float32 where a square is expanded."""
    scale = np.square(rows, dtype=np.float64).sum(axis=1).max()
    apart = np.abs(squares - np.square(distances, dtype=np.float64))
    if squares.shape != distances.shape or not (apart <= 1e-5 * scale).all():
        raise AssertionError(f"{name}: distances are not ours")
