"""Exact search of the rows that score best; the contract is that of `Site.search`."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import FLOAT_DTYPES, as_numpy, new_array
from .errors import InvalidInputError, ShapeError
from .hits import Asked, Certificate, Hits
from .selection import is_int, native_rows
from .view import Progress, View, layer_weights, one_of
from .whiten import Whitener

METRICS = ("dot", "cos", "l2")
COMBINE = ("sum", "max")
ON_NAN = ("raise", "skip")


@dataclass(frozen=True, eq=False)
class Scoring:
    """How rows are scored against query vectors, checked; see `Site.search`."""

    metric: str = "dot"
    combine: str = "sum"
    weights: NDArray[np.float64] | None = None
    min_score: float | None = None
    skip_nan: bool = False
    transform: Whitener | None = None
    distances: bool = False
    """Whether scores are distances, negated: for l2 not squared, for cos what is lacking of 1."""

    def native(self, view: View, numbers: NDArray[np.int64] | None, threads: int) -> dict[str, Any]:
        """As the core takes it; of a transform, the norms of the view's rows are found or computed."""
        mapped = None
        if self.transform is not None:
            mean, rows = self.transform.map_of(view)
            n_layers = view.shape[1] if self.metric != "dot" else 0
            norms = self.transform.norms(view, threads) if n_layers else np.zeros((0, 0))
            mapped = (mean, rows, norms)
        return {
            "metric": self.metric,
            "combine": self.combine,
            "weights": self.weights,
            "distances": self.distances,
            "min_score": self.min_score,
            "skip_nan": self.skip_nan,
            "numbers": numbers,
            "map": mapped,
        }


def scoring(
    view: View,
    metric: str,
    combine: str,
    weights: Sequence[float] | None,
    transform: Whitener | None,
    min_score: float | None,
    on_nan: str,
    verb: str = "search",
) -> Scoring:
    """How to score the rows of a view.

    Raises
    ------
    ShapeError, InvalidInputError, NotFoundError
        Naming what cannot be.
    """
    one_of(metric, METRICS, f"{verb}: metric")
    one_of(combine, COMBINE, f"{verb}: combine")
    one_of(on_nan, ON_NAN, f"{verb}: on_nan")
    _, n_layers, dim = view.shape
    if not n_layers:
        raise InvalidInputError(f"{view._what}: there are no layers to search")
    by_layer = None
    if weights is not None:
        if combine != "sum":
            raise InvalidInputError(f"{verb}: weights are for combine='sum', not {combine!r}")
        by_layer = layer_weights(weights, n_layers, f"{verb}: weights")
    if transform is not None:
        if not isinstance(transform, Whitener):
            raise InvalidInputError(
                f"{verb}: transform is a {type(transform).__name__}, not a Whitener",
                hint="actstore.Whitener.fit(site)",
            )
        if transform.mean.shape[1] != dim:
            raise ShapeError(
                f"{verb}: the whitener is of dim {transform.mean.shape[1]}, {view._what} of {dim}"
            )
        transform.map_of(view)
    return Scoring(metric, combine, by_layer, _floor(min_score, verb), on_nan == "skip", transform)


def check_k(k: Any, verb: str) -> int:
    """A number of hits; InvalidInputError when it is none."""
    if not is_int(k) or k < 1:
        raise InvalidInputError(f"{verb}: k is {k!r}, not a positive int")
    return int(k)


def search_view(
    view: View,
    queries: Any,
    k: int,
    how: Scoring,
    threads: int,
    progress: Progress | None,
) -> Hits:
    """`Site.search` of any view."""
    k = check_k(k, "search")
    vectors = query_vectors(queries, view)
    view._origin.check_open()
    scores, rows, layers, n_rescored = best_rows(view, vectors, k, how, threads, progress)
    return Hits(
        scores,
        rows,
        layers,
        Certificate(True, len(view), n_rescored),
        view._origin,
        asked=Asked(view, vectors, how),
    )


def best_rows(
    view: View,
    vectors: NDArray[np.float32],
    k: int,
    how: Scoring,
    threads: int,
    progress: Progress | None,
) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64], int]:
    """Scores, rows and layers ``[nq, k]`` for queries ``[nq, 1 or L, D]``, and how many were rescored."""
    scores, rows, layers = no_hits(len(vectors), k)
    n_rescored = 0
    depth = min(k, len(view))
    if depth and len(vectors):
        found = _native.search(
            view._origin.native,
            native_rows(view._view.rows),
            view._native_layers(),
            vectors,
            depth,
            how.native(view, view._origin.numbers, threads),
            threads=threads,
            progress=progress,
        )
        scores[:, :depth], rows[:, :depth], winners, n_rescored = found
        there = winners >= 0
        labels = np.full(winners.shape, -1, np.int64)
        if how.combine == "max" or len(view.layers) == 1:
            labels[there] = np.array(view.layers, np.int64)[winners[there]]
        layers[:, :depth] = labels
    return scores, rows, layers, n_rescored


def no_hits(n: int, k: int) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
    """Scores, rows and layers of `n` queries that have found nothing yet."""
    scores = new_array((n, k), np.dtype(np.float32), "search: scores")
    rows, layers = (new_array((n, k), np.dtype(np.int64), "search: hits") for _ in range(2))
    scores[...], rows[...], layers[...] = -np.inf, -1, -1
    return scores, rows, layers


def _floor(min_score: float | None, verb: str) -> float | None:
    if min_score is None:
        return None
    try:
        floor = float(min_score)
    except (TypeError, ValueError):
        floor = math.nan
    if math.isnan(floor) or isinstance(min_score, str | bytes):
        raise InvalidInputError(f"{verb}: min_score is {min_score!r}, not a number")
    return floor


def query_vectors(queries: Any, view: View, what: str = "search: queries") -> NDArray[np.float32]:
    """Queries as float32 ``[nq, 1 or L, D]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When they do not fit the view, or hold NaN.
    """
    _, n_layers, dim = view.shape
    if isinstance(queries, View):
        if len(queries.layers) > 1 and queries.layers != view.layers:
            raise InvalidInputError(
                f"{what} are of layers {queries.layers}, {view._what} of layers {view.layers}",
                hint="queries.read() gives them without labels, if that is what you mean",
            )
        queries = queries.read()
    array = as_numpy(queries, what)
    if array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"{what} are {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}")
    if array.ndim not in (1, 2, 3):
        raise ShapeError(f"{what}: expected [nq, D] or [nq, L, D], got {list(array.shape)}")
    if array.shape[-1] != dim:
        raise ShapeError(f"query has dim {array.shape[-1]}, {view._what} has dim {dim}")
    if array.ndim == 3 and array.shape[1] not in (1, n_layers):
        raise ShapeError(
            f"{what} have {array.shape[1]} layers, {view._what} has {n_layers} to search",
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
            f"{what}: {bad.size} of {len(vectors)} have NaN, the first is query {int(bad[0])}"
        )
    return vectors
