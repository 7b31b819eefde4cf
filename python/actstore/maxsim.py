"""Exact late interaction over the rows of each example; the contract is that of `Site.maxsim`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import as_numpy
from .errors import InvalidInputError, ShapeError
from .hits import Asked, Certificate, Hits
from .layout import EXAMPLES
from .search import Scoring, check_k, no_hits, query_vectors
from .selection import compact_rows, native_rows, rows_array, take
from .view import Progress, View


def maxsim_view(
    view: View, queries: Any, k: int, how: Scoring, threads: int, progress: Progress | None
) -> Hits:
    """`Site.maxsim` of any view."""
    k = check_k(k, "maxsim")
    vectors, bounds = _vectors(queries, view)
    view._origin.check_open()
    n_queries = len(bounds) - 1
    scores, rows, layers = no_hits(n_queries, k)
    order, offset = view._view.grouped()
    own = view._view.rows
    if order is not None:
        own = take(own, compact_rows(order))
    n_rescored = 0
    there = int((np.diff(offset) > 0).sum())
    depth = min(k, there)
    if depth and n_queries:
        sorted_view = view if order is None else View(view._origin, view._layers, _as_rows(view, own))
        examples = rows_array(view._view.examples)
        found = _native.maxsim(
            view._origin.native,
            native_rows(own),
            view._native_layers(),
            offset,
            vectors,
            bounds,
            depth,
            how.native(sorted_view, np.ascontiguousarray(examples), threads),
            threads=threads,
            progress=progress,
        )
        scores[:, :depth], rows[:, :depth], _, n_rescored = found
        if len(view.layers) == 1:
            layers[rows >= 0] = view.layers[0]
    asked = Asked(view, vectors, how, bounds)
    return Hits(scores, rows, layers, Certificate(True, len(view), n_rescored), view._origin, asked=asked)


def _as_rows(view: View, rows: Any) -> Any:
    """All rows of a view in another order, as one example: norms of them are asked for."""
    return type(view._view)(rows, range(1), lambda: np.array([0, len(rows)], np.int64))


def _vectors(queries: Any, view: View) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """The vectors of all queries ``[n, 1 or L, D]``, and where each query's begin, ``[nq + 1]``."""
    what = "maxsim: queries"
    if isinstance(queries, View):
        order, offset = queries._view.grouped()
        vectors = query_vectors(queries, view, what)
        parts = [vectors if order is None else vectors[order]]
        lengths = np.diff(offset).tolist()
    else:
        if not isinstance(queries, list | tuple):
            array = as_numpy(queries, what)
            # One query by itself, or as many as the first axis has.
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
                    hint="a list of queries, each of them an array of vectors",
                )
            parts.append(query_vectors(array, view, f"{what}[{i}]"))
        lengths = [len(part) for part in parts]
    empty = [i for i, length in enumerate(lengths) if not length]
    if empty:
        raise InvalidInputError(
            f"{what}: {len(empty)} of {len(lengths)} have no vectors, the first is {empty[0]}"
        )
    bounds = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths, dtype=np.int64)])
    n_layers, dim = view.shape[1:]
    across = max((part.shape[1] for part in parts), default=1)
    if across > 1:
        parts = [np.broadcast_to(part, (len(part), n_layers, dim)) for part in parts]
    vectors = np.concatenate(parts) if parts else np.zeros((0, 1, dim), np.float32)
    return np.ascontiguousarray(vectors), bounds


def check_tokens(view: View) -> None:
    """Raise InvalidInputError for a view that has one row for each example."""
    if view.axis == EXAMPLES and view._origin.recipe is not None:
        raise InvalidInputError(
            f"maxsim: {view._what} is pooled: it has one row for each example",
            hint="ask the site it was made of, or use search",
        )
