"""Exact scores for the candidates of an approximate index; the contract is that of `Site.search`."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import as_numpy
from ..base.checks import check_k
from ..base.progress import Progress
from ..base.selection import Rows, compact_rows, rows_array, take
from ..errors import InvalidInputError, ShapeError
from ..rows.memory import MemoryBackend, PositionIds, array_backend
from ..rows.view import View
from .hits import Certificate, Hits, SearchInputs
from .scoring import query_vectors, scoring
from .search import best_rows, no_hits
from .whiten import Whitener

BLOCK_BYTES = 64 << 20
"""Bytes of candidate rows to read at once."""


def rerank(
    site: Any,
    queries: Any,
    candidates: Any,
    k: int = 10,
    *,
    metric: str = "cos",
    combine: Literal["sum", "max"] | None = None,
    weights: Sequence[float] | None = None,
    transform: Whitener | None = None,
    min_score: float | None = None,
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Hits:
    """Score each query's candidates exactly, as `Site.search` does, and return the best `k`.

    Parameters
    ----------
    site : Site, or array ``[n, D]`` or ``[n, L, D]``
        The rows that the candidates refer to. Its layers may differ from those of the index.
    queries : array ``[nq, D]``, ``[nq, L, D]`` or ``[D]``, or Site
        As in `Site.search`; neither normalized nor whitened.
    candidates : array ``[nq, m]``, or the matches of a usearch index
        Row ids as in `Site.rows`, negative for missing candidates. (For usearch, pass the matches rather than
        their keys: a missing key is 0, and only the matches contain the counts.)
    k, metric, combine, weights, transform, min_score, on_nan, threads
        See `Site.search`.
    progress : callable, optional
        Called as ``progress(done, total)`` in queries.

    Returns
    -------
    Hits
        ``scores``, ``rows`` and ``layers`` ``[nq, k]``. Its certificate has ``exact=False``, since only
        candidates can be hits.

    Raises
    ------
    ShapeError
        When there is not one list of candidates per query, or as in `Site.search`.
    InvalidInputError
        When a candidate is not a row of the site, or as in `Site.search`.
    NotFoundError
        As in `Site.search`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1.0, 0.0], [0.6, 0.8], [0.0, 2.0]], np.float32)
    >>> hits = actstore.rerank(rows, np.array([[0.0, 1.0]]), [[0, 1, -1]], k=2, metric="dot")
    >>> hits.rows.tolist(), hits.scores.round(3).tolist()
    ([[1, 0]], [[0.800000011920929, 0.0]])
    """
    view = site if isinstance(site, View) else View(array_backend(site))
    vectors = query_vectors(queries, view, "rerank: queries")
    rule = scoring(view, vectors.shape[1], metric, combine, weights, transform, min_score, on_nan, "rerank")
    k = check_k(k, "rerank")
    candidate_ids = _candidate_ids(candidates, len(vectors))
    view.backend.check_open()
    row_ids, rows_by_id = sorted_by_row_id(view)
    scores, rows, layers = no_hits(len(vectors), k)
    n_rescored, names = 0, (view.name, view.full_name, view.backend.title)
    row_bytes = view.shape[1] * view.shape[2] * view.dtype.itemsize
    n_block = max(1, BLOCK_BYTES // max(1, candidate_ids.shape[1] * row_bytes))
    for start in range(0, len(vectors), n_block):
        # Read the candidates of a block of queries together: each row and each chunk is decoded once.
        block_ids = candidate_ids[start : start + n_block]
        union = np.unique(block_ids[block_ids >= 0])
        block_rows = take(rows_by_id, _positions(row_ids, union, view))
        values = view.read_rows(block_rows, view.layer_positions, view.dtype, threads)
        for q, query_ids in enumerate(block_ids, start):
            own_ids = np.unique(query_ids[query_ids >= 0])
            own_values = values[np.searchsorted(union, own_ids)]
            backend = MemoryBackend(
                own_values, view.layers, PositionIds(0), compact_rows(own_ids), titles=names
            )
            # One thread: a search this small finishes before other threads would start.
            best = best_rows(View(backend), vectors[q : q + 1], k, rule, 1, None)
            scores[q], rows[q], layers[q] = (array[0] for array in best[:3])
            n_rescored += best[3]
        if progress is not None:
            progress(min(start + n_block, len(vectors)), len(vectors))
    n_candidates = len(np.unique(candidate_ids[candidate_ids >= 0]))
    certificate = Certificate(False, n_candidates, n_rescored)
    return Hits(scores, rows, layers, certificate, SearchInputs(view, vectors, rule))


def sorted_by_row_id(view: View) -> tuple[Rows, Rows]:
    """The row ids of a view in ascending order, and the corresponding rows of the backend's array."""
    rows = view.rowset.rows
    if view.backend.numbers is None and isinstance(rows, range):
        return rows, rows
    row_ids = view.rows
    order = np.argsort(row_ids, kind="stable")
    return compact_rows(row_ids[order]), compact_rows(rows_array(rows)[order])


def _positions(row_ids: Rows, wanted: NDArray[np.int64], view: View) -> Rows:
    """The positions of the wanted ids, ascending, among the ascending row ids of a view."""
    if isinstance(row_ids, range):
        positions = wanted - row_ids.start
        absent = (positions < 0) | (positions >= len(row_ids))
    else:
        positions = np.searchsorted(row_ids, wanted).astype(np.int64)
        absent = row_ids[np.minimum(positions, len(row_ids) - 1)] != wanted
    if absent.any():
        raise InvalidInputError(
            f"rerank: candidate {wanted[absent][0]} is not a row of {view.full_name}, or not of this view",
            hint="search an index that was built from this view",
        )
    return compact_rows(positions)


def _candidate_ids(candidates: Any, nq: int) -> NDArray[np.int64]:
    """Candidates as int64 ``[nq, m]``, negative where missing."""
    what = "rerank: candidates"
    counts = getattr(candidates, "counts", None)
    # The matches of usearch have keys, distances and, for several queries, counts.
    array = as_numpy(candidates.keys if hasattr(candidates, "distances") else candidates, what)
    array = array[None] if array.ndim == 1 else array
    if array.ndim != 2 or len(array) != nq:
        raise ShapeError(f"{what}: expected [{nq}, m], one list per query, got {list(array.shape)}")
    if array.size and array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: expected row ids as integers, got {array.dtype}")
    row_ids: NDArray[np.int64] = array.astype(np.int64)
    if counts is not None:
        row_ids[np.arange(row_ids.shape[1]) >= np.asarray(counts)[:, None]] = -1
    return row_ids
