"""Exact search of the rows that score best; the contract is that of `Site.search`."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import FLOAT_DTYPES, as_numpy, new_array
from .errors import InvalidInputError, ShapeError
from .hits import Certificate, Hits
from .selection import is_int, native_rows
from .view import Progress, View, layer_weights, one_of

METRICS = ("dot", "cos", "l2")
COMBINE = ("sum", "max")
ON_NAN = ("raise", "skip")


def search_view(
    view: View,
    queries: Any,
    k: int,
    metric: str,
    combine: str,
    weights: Sequence[float] | None,
    min_score: float | None,
    on_nan: str,
    threads: int,
    progress: Progress | None,
) -> Hits:
    """`Site.search` of any view."""
    one_of(metric, METRICS, "search: metric")
    one_of(combine, COMBINE, "search: combine")
    one_of(on_nan, ON_NAN, "search: on_nan")
    if not is_int(k) or k < 1:
        raise InvalidInputError(f"search: k is {k!r}, not a positive int")
    n_rows, n_layers, _ = view.shape
    if not n_layers:
        raise InvalidInputError(f"{view._what}: there are no layers to search")
    by_layer = None
    if weights is not None:
        if combine != "sum":
            raise InvalidInputError(f"search: weights are for combine='sum', not {combine!r}")
        by_layer = layer_weights(weights, n_layers, "search: weights")
    floor = _floor(min_score)
    vectors = _vectors(queries, view)
    view._origin.check_open()

    shape = (len(vectors), int(k))
    scores = new_array(shape, np.dtype(np.float32), "search: scores")
    rows, layers = (new_array(shape, np.dtype(np.int64), "search: hits") for _ in range(2))
    scores[...], rows[...], layers[...] = -np.inf, -1, -1
    n_rescored = 0
    depth = min(int(k), n_rows)
    if depth and len(vectors):
        found = _native.search(
            view._origin.native,
            native_rows(view._view.rows),
            view._native_layers(),
            vectors,
            depth,
            metric,
            combine,
            by_layer,
            floor,
            on_nan == "skip",
            numbers=view._origin.numbers,
            threads=threads,
            progress=progress,
        )
        scores[:, :depth], rows[:, :depth], winners, n_rescored = found
        there = winners >= 0
        labels = np.full(winners.shape, -1, np.int64)
        if combine == "max" or n_layers == 1:
            labels[there] = np.array(view.layers, np.int64)[winners[there]]
        layers[:, :depth] = labels
    return Hits(scores, rows, layers, Certificate(True, n_rows, n_rescored), view._origin)


def _floor(min_score: float | None) -> float | None:
    if min_score is None:
        return None
    try:
        floor = float(min_score)
    except (TypeError, ValueError):
        floor = math.nan
    if math.isnan(floor) or isinstance(min_score, str | bytes):
        raise InvalidInputError(f"search: min_score is {min_score!r}, not a number")
    return floor


def _vectors(queries: Any, view: View) -> NDArray[np.float32]:
    """Queries as float32 ``[nq, 1 or L, D]``."""
    _, n_layers, dim = view.shape
    if isinstance(queries, View):
        if len(queries.layers) > 1 and queries.layers != view.layers:
            raise InvalidInputError(
                f"search: the queries are of layers {queries.layers}, {view._what} of layers {view.layers}",
                hint="queries.read() gives them without labels, if that is what you mean",
            )
        queries = queries.read()
    array = as_numpy(queries, "search: queries")
    if array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(
            f"search: queries are {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}"
        )
    if array.ndim not in (1, 2, 3):
        raise ShapeError(f"search: queries: expected [nq, D] or [nq, L, D], got {list(array.shape)}")
    if array.shape[-1] != dim:
        raise ShapeError(f"query has dim {array.shape[-1]}, {view._what} has dim {dim}")
    if array.ndim == 3 and array.shape[1] not in (1, n_layers):
        raise ShapeError(
            f"search: queries have {array.shape[1]} layers, {view._what} has {n_layers} to search",
            hint="select(layers=...) those that are meant",
        )
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, np.float32)
    # One query for all layers, or one for each.
    if array.ndim < 3:
        vectors = np.atleast_2d(vectors)[:, None]
    bad = np.unique(np.nonzero(np.isnan(vectors))[0])
    if bad.size:
        raise InvalidInputError(
            f"search: {bad.size} of {len(vectors)} queries have NaN, the first is query {int(bad[0])}"
        )
    return vectors
