"""The peers of search, each on two threads, and the brute force that all results are compared with.

``Faiss``
    ``IndexFlatIP``. It multiplies matrices where queries x dim reaches ``distance_compute_blas_threshold``
    (128,000 in faiss 1.15) and scores pair by pair below that. Both are measured: as it comes, and with
    the threshold at 1.
``TorchTopK``
    A matrix product and ``topk`` over blocks of rows, then ``topk`` over what the blocks found: several
    times faster than one product with all rows, whose scores would go through memory twice.
``NumpyProduct``
    The products alone, into an output that is reused: what no search built on this BLAS can beat.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import faiss
import numpy as np
import torch
from numpy.typing import NDArray

from .threads import THREADS

K = 10
SPARE = 6
BLOCK_ROWS = 8192  # scores of 1,024 queries: 32 MiB

Found = tuple[NDArray[np.float32], NDArray[np.int64]]  # scores and rows, each [nq, k]

faiss.omp_set_num_threads(THREADS)


class Faiss:
    """An index over `array` ``[n, dim]``, which it copies."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.index = faiss.IndexFlatIP(array.shape[1])
        self.index.add(array)

    def search(self, queries: NDArray[np.float32], k: int = K) -> Found:
        """As it comes."""
        found: Found = self.index.search(queries, k)
        return found

    def search_by_product(self, queries: NDArray[np.float32], k: int = K) -> Found:
        """By matrix products, however few the queries."""
        before = faiss.cvar.distance_compute_blas_threshold
        faiss.cvar.distance_compute_blas_threshold = 1
        try:
            return self.search(queries, k)
        finally:
            faiss.cvar.distance_compute_blas_threshold = before

    def search_rows(self, queries: NDArray[np.float32], rows: NDArray[np.int64], k: int = K) -> Found:
        """Among some rows ``[n_rows]``, sorted: a range where they are one, else a bitmap."""
        if rows[-1] - rows[0] + 1 == len(rows):
            selector = faiss.IDSelectorRange(int(rows[0]), int(rows[-1]) + 1)
        else:
            mask = np.zeros(self.index.ntotal, np.uint8)
            mask[rows] = 1
            selector = faiss.IDSelectorBitmap(np.packbits(mask, bitorder="little"))
        found: Found = self.index.search(queries, k, params=faiss.SearchParameters(sel=selector))
        return found


class TorchTopK:
    """Matrix products with blocks of `array` ``[n, dim]``."""

    def __init__(self, array: NDArray[np.float32]) -> None:
        self.blocks = torch.from_numpy(array).split(BLOCK_ROWS)

    def search(self, queries: NDArray[np.float32], k: int = K) -> Found:
        given = torch.from_numpy(queries)
        scores, rows = [], []
        with two_threads():
            for number, block in enumerate(self.blocks):
                best, at = (given @ block.T).topk(min(k, len(block)), dim=1)
                scores.append(best)
                rows.append(at + number * BLOCK_ROWS)
            best, at = torch.cat(scores, 1).topk(k, dim=1)
            return best.numpy(), torch.cat(rows, 1).gather(1, at).numpy()


class NumpyProduct:
    """``queries @ block.T`` for each block of `array` ``[n, dim]``, and no top-k."""

    def __init__(self, array: NDArray[np.float32], most_queries: int) -> None:
        self.blocks = [array[start : start + BLOCK_ROWS] for start in range(0, len(array), BLOCK_ROWS)]
        self.out = np.empty(most_queries * BLOCK_ROWS, np.float32)

    def run(self, queries: NDArray[np.float32]) -> None:
        for block in self.blocks:
            out = self.out[: len(queries) * len(block)].reshape(len(queries), len(block))
            np.matmul(queries, block.T, out=out)


def brute_force(array: NDArray[np.float32], queries: NDArray[np.float32], k: int = K) -> Found:
    """Exact top-k: scores in float64, rounded to float32 once; ties by row.

    Matrix products in float64 find a few more than k; these are scored again, in the order of additions
    that the guide promises, so that what is compared must be equal to the last bit.

    Parameters
    ----------
    array
        ``[n, dim]``.
    queries
        ``[nq, dim]``.
    """
    given = torch.from_numpy(queries).double()
    best = torch.empty(len(queries), 0, dtype=torch.double)
    rows = torch.empty(len(queries), 0, dtype=torch.long)
    with two_threads():
        for start in range(0, len(array), BLOCK_ROWS):
            block = torch.from_numpy(array[start : start + BLOCK_ROWS]).double()
            found = given @ block.T
            best = torch.cat([best, found], 1)
            rows = torch.cat([rows, torch.arange(start, start + len(block)).expand_as(found)], 1)
            best, at = best.topk(min(k + SPARE, best.shape[1]), dim=1)
            rows = rows.gather(1, at)
    numbers = rows.numpy()
    scores = np.stack([_scores(array[near], query) for near, query in zip(numbers, queries, strict=True)])
    order = np.lexsort((numbers, -scores))[:, :k]
    return np.take_along_axis(scores, order, 1), np.take_along_axis(numbers, order, 1)


def _scores(rows: NDArray[np.float32], query: NDArray[np.float32]) -> NDArray[np.float32]:
    """Dot products ``[n]``, rounded once."""
    return lane_sums(rows.astype(np.float64) * query.astype(np.float64)).astype(np.float32)


def lane_sums(terms: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums over the last axis with 8 accumulators by index mod 8, these added pairwise."""
    before, dim = terms.shape[:-1], terms.shape[-1]
    padded = np.zeros((*before, -(-dim // 8) * 8))
    padded[..., :dim] = terms
    sums = np.add.accumulate(padded.reshape(*before, -1, 8), axis=-2)[..., -1, :]
    while sums.shape[-1] > 1:
        sums = sums[..., 0::2] + sums[..., 1::2]
    return sums[..., 0]


def check_exact(name: str, found: Found, expected: Found) -> None:
    """Fail unless rows and scores are those of the brute force, to the bit."""
    if not np.array_equal(found[1], expected[1]) or not np.array_equal(found[0], expected[0]):
        raise AssertionError(f"{name}: the results are not those of the brute force")


def check_close(name: str, found: Found, expected: Found) -> None:
    """Fail unless the scores, computed in float32, are within rounding of the brute force's."""
    check_scores(name, found[0], expected[0])


def check_scores(name: str, found: NDArray[Any], expected: NDArray[Any]) -> None:
    """The same of scores alone, ``[nq, any]``, relative to each query's greatest."""
    scale = np.abs(expected).max(axis=1, keepdims=True)
    if found.shape != expected.shape or not (np.abs(found - expected) <= 1e-5 * scale).all():
        raise AssertionError(f"{name}: scores are not those of the brute force")


@contextmanager
def two_threads() -> Iterator[None]:
    """torch's own pool for the products; everywhere else blocks are spread over threads of ours."""
    torch.set_num_threads(THREADS)
    try:
        yield
    finally:
        torch.set_num_threads(1)
