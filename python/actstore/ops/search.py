"""Exact search for the best-scoring rows."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import new_array
from ..base.checks import check_k
from ..base.progress import Progress
from ..rows.view import View
from .hits import Certificate, Hits, SearchInputs
from .scoring import Scoring, query_vectors, scoring
from .whiten import Whitener


def search(
    self: View,
    queries: Any,
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
    """The `k` rows of this view that score best for each query; exact.

    Scores are computed in float64 in one fixed order and rounded once to float32. Rows are sorted by score
    descending, then by row ascending. Scores and order are the same for any batch of queries, `k`, number of
    threads, codec and machine.

    Parameters
    ----------
    queries : array ``[D]``, ``[nq, D]`` or ``[nq, L, D]``, or Site
        numpy, ml_dtypes or torch. A query of one layer is compared with every layer of this view, a query of
        several layers with the same layers; the layers of a Site are matched by label. bfloat16, float16 and
        float32 are used exactly, float64 is rounded to float32.
    k : int
        Number of hits per query; when the view has fewer rows, the remaining hits are missing.
    metric : {"cos", "dot", "l2"}
        Cosine (0 for a zero vector), dot product, or -||q - x||^2. Higher is better. "cosine", "ip" and
        "euclidean" are accepted too.
    combine : {"sum", "max"}, optional
        How to join the scores s_l of several layers: sum_l w_l s_l, or max_l s_l (`Hits.layers` names the
        winner). Required when the view has several layers and the queries one; queries of several layers are
        summed by default.
    weights : sequence of float ``[L]``, optional
        w_l for each layer of the view; implies ``combine="sum"``.
    transform : Whitener, optional
        Score whitened rows against whitened queries. Stored rows are not transformed: the map is folded into
        the queries, and for cos and l2 the norm of each whitened row is computed once and cached
        (`Whitener.save` stores the norms).
    min_score : float, optional
        Leave out hits with a lower score.
    on_nan : {"raise", "skip"}
        Whether rows with NaN raise an error or are left out.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers.

    Returns
    -------
    Hits
        ``scores``, ``rows`` and ``layers`` ``[nq, k]``; ids, examples and positions on demand.

    Raises
    ------
    ShapeError
        When the queries or the whitener have another dim, or the queries another number of layers.
    InvalidInputError
        For another dtype, NaN in queries or rows, several layers without `combine`, or an invalid argument.
    NotFoundError
        When the whitener lacks a layer of the view.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> site = actstore.from_array(np.array([[1.0, 0], [0, 1], [1, 1]]), [0, 1, 3], ids=["a", "b"])
    >>> hits = site.search(np.array([0.5, 1.0]), k=2, metric="dot")
    >>> hits.scores.tolist(), hits.rows.tolist(), hits.ids
    ([[1.5, 1.0]], [[2, 1]], [['b', 'b']])
    """
    vectors = query_vectors(queries, self)
    how = scoring(self, vectors.shape[1], metric, combine, weights, transform, min_score, on_nan)
    k = check_k(k, "search")
    scores, rows, layers, n_rescored = best_rows(self, vectors, k, how, threads, progress)
    certificate = Certificate(True, len(self), n_rescored)
    return Hits(scores, rows, layers, certificate, SearchInputs(self, vectors, how))


def best_rows(
    view: View,
    vectors: NDArray[np.float32],
    k: int,
    how: Scoring,
    threads: int,
    progress: Progress | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], int]:
    """Scores, row ids and layers ``[nq, k]`` for queries ``[nq, 1 or L, D]``, and the number rescored."""
    source = view.source
    scores, rows, layers = no_hits(len(vectors), k)
    n_rescored = 0
    depth = min(k, len(view))
    if depth and len(vectors):
        scores[:, :depth], rows[:, :depth], winners, n_rescored = _native.search(
            *source,
            vectors,
            depth,
            how.native(view, view.backend.numbers, threads),
            threads=threads,
            progress=progress,
        )
        if how.combine == "max" or len(view.layers) == 1:
            hit = winners >= 0
            layers[:, :depth][hit] = np.array(view.layers, np.int64)[winners[hit]]
    return scores, rows, layers, n_rescored


def no_hits(n: int, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, row ids and layers ``[n, k]``, all missing."""
    scores = new_array((n, k), np.dtype(np.float32), "search: scores")
    rows, layers = (new_array((n, k), np.dtype(np.int64), "search: hits") for _ in range(2))
    scores[...], rows[...], layers[...] = -np.inf, -1, -1
    return scores, rows, layers
