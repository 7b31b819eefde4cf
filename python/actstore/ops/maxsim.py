"""Exact late interaction (MaxSim) over the rows of each example."""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import as_numpy
from ..base.checks import check_k
from ..base.progress import Progress
from ..base.selection import Rows, compact_rows, rows_array, take
from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError, ShapeError
from ..rows.rowset import RowSet
from ..rows.view import View
from .hits import Certificate, Hits, SearchInputs
from .scoring import query_vectors, scoring
from .search import no_hits
from .whiten import Whitener


def maxsim(
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
    """The `k` examples that score best for each query by late interaction; exact.

    The score of an example is sum_i max_t s(q_i, x_t) over the query's vectors q_i and the example's rows x_t
    in this view (MaxSim: Khattab and Zaharia, "ColBERT", 2020, arXiv:2004.12832), with s as in `search`, in
    float64 and rounded once to float32. Nothing is padded: examples may have any number of rows, scores may
    all be negative, and an example without rows is never a hit. `select` says which rows count:
    ``examples=``, ``layers=``, and ``rows=`` to leave special tokens out.

    Parameters
    ----------
    queries : list of array ``[Tq, D]`` or ``[Tq, L, D]``, or Site
        The vectors of each query; one query ``[Tq, D]`` needs no list. In a Site each example is a query.
    k : int
        Number of hits per query; when there are fewer examples, the remaining hits are missing.
    metric, combine, weights, transform, min_score, on_nan, threads, progress
        As in `search`. ``on_nan="skip"`` leaves out rows with NaN, not the other rows of their examples.

    Returns
    -------
    Hits
        ``scores`` ``[nq, k]``; ``rows`` are example numbers.

    Raises
    ------
    ShapeError, InvalidInputError, NotFoundError
        When the site is pooled, or a query has no vectors or vectors of another dim, number of layers or
        dtype; else as `search`.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[1, 0], [0, 1], [0.6, 0.8]], np.float32)
    >>> site = actstore.from_array(rows, [0, 2, 2, 3], ids=["a", "empty", "b"])
    >>> hits = site.maxsim([np.array([[1.0, 0.0], [0.0, 1.0]])], k=3)
    >>> hits.ids, hits.scores.round(2).tolist()
    ([['a', 'b', None]], [[2.0, 1.399999976158142, -inf]])
    >>> hits.explain(0, 1).shape
    (2, 1)
    """
    _check_not_pooled(self)
    vectors, bounds = _query_vectors(queries, self)
    how = scoring(self, vectors.shape[1], metric, combine, weights, transform, min_score, on_nan, "maxsim")
    k = check_k(k, "maxsim")
    n_queries = len(bounds) - 1
    scores, rows, layers = no_hits(n_queries, k)
    order, offsets = self.rowset.grouped()
    grouped = self.rowset.rows
    if order is not None:
        grouped = take(grouped, compact_rows(order))
    source = self.source_of(grouped)
    n_rescored = 0
    depth = min(k, int((np.diff(offsets) > 0).sum()))
    if depth and n_queries:
        normed = self if order is None else self.with_rows(_one_example(grouped))
        examples = np.ascontiguousarray(rows_array(self.rowset.examples))
        scores[:, :depth], rows[:, :depth], _, n_rescored = _native.maxsim(
            *source,
            offsets,
            vectors,
            bounds,
            depth,
            how.native(normed, examples, threads),
            threads=threads,
            progress=progress,
        )
        if len(self.layers) == 1:
            layers[rows >= 0] = self.layers[0]
    certificate = Certificate(True, len(self), n_rescored)
    return Hits(scores, rows, layers, certificate, SearchInputs(self, vectors, how, bounds))


def _one_example(rows: Rows) -> RowSet:
    """Rows as a single example, so that norms are computed in the order of the rows."""
    return RowSet(rows, range(1), lambda: np.array([0, len(rows)], np.int64))


def _query_vectors(queries: Any, view: View) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors of all queries, ``[n, 1 or L, D]``, and the start of each query in them, ``[nq + 1]``."""
    what = "maxsim: queries"
    if isinstance(queries, View):
        order, offsets = queries.rowset.grouped()
        vectors = query_vectors(queries, view, what)
        parts = [vectors if order is None else vectors[order]]
        lengths = np.diff(offsets).tolist()
    else:
        if not isinstance(queries, list | tuple):
            array = as_numpy(queries, what)
            # One query, or one per entry of the first axis.
            if array.ndim == 2:
                queries = [array]
            elif array.ndim in (3, 4):
                queries = list(array)
            else:
                raise ShapeError(f"{what}: expected a list of [Tq, D] or [Tq, L, D], got {list(array.shape)}")
        parts = []
        for i, query in enumerate(queries):
            array = as_numpy(query, f"{what}[{i}]")
            if array.ndim not in (2, 3):
                raise ShapeError(
                    f"{what}[{i}]: expected [Tq, D] or [Tq, L, D], got {list(array.shape)}",
                    hint="give a list of queries, each an array of vectors",
                )
            parts.append(query_vectors(array, view, f"{what}[{i}]"))
        lengths = [len(part) for part in parts]
    empty = [i for i, length in enumerate(lengths) if not length]
    if empty:
        raise InvalidInputError(
            f"{what}: {len(empty)} of {len(lengths)} have no vectors, the first is query {empty[0]}"
        )
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    n_layers, dim = view.shape[1:]
    n_query_layers = max((part.shape[1] for part in parts), default=1)
    if n_query_layers > 1:
        mixed = next((i for i, part in enumerate(parts) if part.shape[1] == 1), None)
        if mixed is not None:
            raise ShapeError(
                f"{what}[{mixed}] has one layer, others have {n_query_layers}: "
                "give all queries the same number of layers"
            )
        parts = [np.broadcast_to(part, (len(part), n_layers, dim)) for part in parts]
    vectors = np.concatenate(parts) if parts else np.zeros((0, 1, dim), np.float32)
    return np.ascontiguousarray(vectors), bounds


def _check_not_pooled(view: View) -> None:
    """Raise InvalidInputError for a pooled site, which has one row per example."""
    if view.axis == EXAMPLES and view.backend.recipe is not None:
        raise InvalidInputError(
            f"maxsim: {view.full_name} is pooled: it has one row for each example",
            hint="run maxsim on the source of the site, or use search",
        )
