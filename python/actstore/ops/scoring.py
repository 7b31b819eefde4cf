"""How rows are scored against query vectors: metrics, layer weights and whitening.

The native core computes exact scores in float64 in one fixed order; `layer_scores` computes the same formulas
in numpy, for a few rows.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import FLOAT_DTYPES, as_numpy
from ..base.checks import layer_weights, one_of
from ..errors import InvalidInputError, ShapeError
from ..rows.view import View
from .norms import mapped_norms
from .whiten import Whitener

Metric = Literal["cos", "dot", "l2"]
METRICS = ("cos", "dot", "l2")
METRIC_ALIASES = {
    "cosine": "cos",
    "cosine_similarity": "cos",
    "dot_product": "dot",
    "inner_product": "dot",
    "ip": "dot",
    "euclidean": "l2",
    "l2sq": "l2",
    "sqeuclidean": "l2",
}
"""Names that faiss, scikit-learn, sentence-transformers and usearch give to the metrics."""
COMBINE = ("sum", "max")
ON_NAN = ("raise", "skip")


def metric_name(metric: object, verb: str, among: Sequence[str] = METRICS) -> str:
    """The name of a metric, given by name or alias; InvalidInputError for any other value."""
    name = METRIC_ALIASES.get(metric, metric) if isinstance(metric, str) else metric
    one_of(name, among, f"{verb}: metric")
    assert isinstance(name, str)
    return name


@dataclass(frozen=True, eq=False)
class Scoring:
    """How rows are scored, checked against a view; see `Site.search`."""

    metric: str = "cos"
    combine: str = "sum"
    weights: NDArray[np.float64] | None = None
    min_score: float | None = None
    skip_nan: bool = False
    transform: Whitener | None = None
    distances: bool = False
    """Whether scores are negated distances: for l2 not squared, for cos 1 - cos."""

    def native(self, view: View, numbers: NDArray[np.int64] | None, threads: int) -> dict[str, Any]:
        """The native form, with the norms of the view's mapped rows if the transform needs them."""
        mapped = None
        if self.transform is not None:
            mapping = self.transform.mapping
            mean, matrix = mapping.of_layers(view.layers)
            norms = np.zeros((0, 0)) if self.metric == "dot" else mapped_norms(view, mapping, threads)
            mapped = (mean, matrix, norms)
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
    n_query_layers: int,
    metric: str,
    combine: str | None,
    weights: Sequence[float] | None,
    transform: Whitener | None,
    min_score: float | None,
    on_nan: str,
    verb: str = "search",
) -> Scoring:
    """Check the scoring arguments for the rows of a view and queries of one or several layers.

    Raises
    ------
    ShapeError, InvalidInputError, NotFoundError
        When an argument is invalid or does not match the view; the message names it.
    """
    metric = metric_name(metric, verb)
    if combine is not None:
        one_of(combine, COMBINE, f"{verb}: combine")
    one_of(on_nan, ON_NAN, f"{verb}: on_nan")
    _, n_layers, dim = view.shape
    if not n_layers:
        raise InvalidInputError(f"{view.full_name}: there are no layers to search")
    by_layer = None
    if weights is not None:
        if combine not in (None, "sum"):
            raise InvalidInputError(f"{verb}: weights need combine='sum', not {combine!r}")
        by_layer = layer_weights(weights, n_layers, f"{verb}: weights")
    if combine is None:
        if n_layers > 1 and n_query_layers == 1 and weights is None:
            raise InvalidInputError(
                f"{verb}: {view.full_name} has {n_layers} layers and each query one vector: "
                "combine= must say how to join the scores of the layers",
                hint="select(layers=...) one layer, or combine='sum' or 'max'",
            )
        combine = "sum"
    if transform is not None:
        if not isinstance(transform, Whitener):
            raise InvalidInputError(
                f"{verb}: transform has type {type(transform).__name__}, not a Whitener",
                hint="actstore.Whitener().fit(site)",
            )
        transform.check_fitted()
        if transform.n_features_in_ != dim:
            raise ShapeError(
                f"{verb}: the whitener has dim {transform.n_features_in_}, {view.full_name} has dim {dim}"
            )
        transform.mapping.positions(view.layers)
    return Scoring(metric, combine, by_layer, _min_score(min_score, verb), on_nan == "skip", transform)


def _min_score(min_score: float | None, verb: str) -> float | None:
    if min_score is None:
        return None
    try:
        value = float(min_score)
    except (TypeError, ValueError):
        value = math.nan
    if math.isnan(value) or isinstance(min_score, str | bytes):
        raise InvalidInputError(f"{verb}: min_score is {min_score!r}, not a number")
    return value


def query_vectors(queries: Any, view: View, what: str = "search: queries") -> NDArray[np.float32]:
    """Queries as float32 ``[nq, 1, D]``, one vector for every layer, or ``[nq, L, D]``, one per layer.

    The layers of a Site of queries are matched with those of the view by label.

    Raises
    ------
    ShapeError, InvalidInputError
        When the queries do not match the view, or have NaN.
    """
    _, n_layers, dim = view.shape
    if isinstance(queries, View):
        if len(queries.layers) > 1:
            if sorted(queries.layers) != sorted(view.layers):
                raise InvalidInputError(
                    f"{what} have layers {queries.layers}, {view.full_name} has layers {view.layers}",
                    hint="select(layers=...) the same layers of both",
                )
            at = [queries.layer_positions[queries.layers.index(label)] for label in view.layers]
            array = queries.read_rows(queries.rowset.rows, at, queries.dtype)
        else:
            array = queries.read()
    else:
        array = as_numpy(queries, what)
    if array.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(
            f"{what} are {array.dtype}, expected one of {', '.join(FLOAT_DTYPES)}",
            hint="actstore.embed turns texts into vectors" if array.dtype.kind in "UO" else None,
        )
    if array.ndim not in (1, 2, 3):
        raise ShapeError(f"{what}: expected [nq, D] or [nq, L, D], got {list(array.shape)}")
    if array.shape[-1] != dim:
        raise ShapeError(f"query has dim {array.shape[-1]}, {view.full_name} has dim {dim}")
    if array.ndim == 3 and array.shape[1] not in (1, n_layers):
        raise ShapeError(
            f"{what} have {array.shape[1]} layers, {view.full_name} has {n_layers}",
            hint="select(layers=...) the layers that the queries have",
        )
    with np.errstate(over="ignore"):
        vectors = np.ascontiguousarray(array, np.float32)
    if array.ndim < 3:
        vectors = np.atleast_2d(vectors)[:, None]
    bad = np.unique(np.nonzero(np.isnan(vectors))[0])
    if bad.size:
        raise InvalidInputError(
            f"{what}: {bad.size} of {len(vectors)} have NaN, the first is query {int(bad[0])}"
        )
    return vectors


def layer_scores(
    values: NDArray[np.float32], queries: NDArray[np.float32], metric: str, transform: Whitener | None
) -> NDArray[np.float64]:
    """Scores ``[Tq, T, L]`` of rows ``[T, L, D]`` for query vectors ``[Tq, 1 or L, D]``, in float64."""
    n_queries, (n_rows, n_layers, _) = len(queries), values.shape
    out = np.zeros((n_queries, n_rows, n_layers))
    for i in range(n_layers):
        x = values[:, i].astype(np.float64)
        q = queries[:, i if queries.shape[1] > 1 else 0].astype(np.float64)
        if transform is not None:
            mapping = transform.mapping
            x, q = ((rows - mapping.mean[i]) @ mapping.matrix[i].T for rows in (x, q))
        if metric == "l2":
            for j in range(n_queries):
                out[j, :, i] = -((q[j] - x) ** 2).sum(1)
            continue
        products = q @ x.T
        if metric == "cos":
            norms = np.linalg.norm(q, axis=1)[:, None] * np.linalg.norm(x, axis=1)
            products = np.divide(products, norms, out=np.zeros_like(products), where=norms != 0)
        out[:, :, i] = products
    return out
