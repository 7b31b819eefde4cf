"""Why a hit is one: the scores of its example's tokens, layer by layer or for each query vector."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InvalidInputError
from .layout import EXAMPLES
from .origin import Origin, StoredOrigin, stored_origin
from .selection import layer_positions
from .view import View


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scores behind a hit, as a matrix; it is used as an array is.

    Attributes
    ----------
    scores : array
        float32: of a search ``[T, L]``, the score of each row of the example in each layer; of a MaxSim
        ``[Tq, T]``, that of each query vector and each row.
    kind : {"search", "maxsim"}
    example, id : int, str
        Of the hit.
    rows : array
        int64 ``[T]``: the rows of the example, as they count in the whole store.
    layers : list of int
        The layers' labels, ``[L]``; of a MaxSim, those that were scored together.

    Examples
    --------
    >>> import actstore, numpy as np, tempfile
    >>> path = tempfile.mkdtemp() + "/x.act"
    >>> rows = np.array([[[1, 0], [1, 1]], [[0, 2], [1, 3]]], np.float32)
    >>> with actstore.create(path, {"resid": actstore.SiteSpec(2, 2, "float32")}) as w:
    ...     w.append({"resid": rows}, lengths=[2])
    >>> hits = actstore.open(path)["resid"].search(np.array([0.0, 1.0]), k=1)
    >>> np.asarray(hits.explain(0, 0)).tolist()
    [[0.0, 1.0], [2.0, 3.0]]
    """

    scores: NDArray[np.float32]
    kind: str
    example: int
    id: str
    rows: NDArray[np.int64]
    layers: list[int]

    @property
    def shape(self) -> tuple[int, ...]:
        """That of `scores`."""
        return self.scores.shape

    @property
    def best(self) -> NDArray[np.int64]:
        """Of a MaxSim, which row each query vector found best, int64 ``[Tq]``; of a search, the best row of
        each layer, ``[L]``. Counted within the example."""
        at: NDArray[np.int64] = self.scores.argmax(1 if self.kind == "maxsim" else 0)
        return at

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.scores, dtype=dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        return self.scores[key]

    def __len__(self) -> int:
        return len(self.scores)


def explained(
    view: View,
    vectors: NDArray[np.float32],
    how: Any,
    example: int,
    layers: Any = None,
    maxsim: bool = False,
) -> Explanation:
    """The scores of an example's rows.

    Parameters
    ----------
    view : View
        What was searched.
    vectors : array ``[Tq, 1 or L, D]``
        Of the query.
    how : Scoring
        How rows were scored.
    example : int
        Its number in the store.
    layers : optional
        Others than those that were searched, named as in `Site.select`.
    maxsim : bool
        Whether each vector is to be scored by itself.
    """
    origin = view._origin
    [name] = origin.ids(np.array([example], np.int64))
    tokens, labels, transform = _tokens(view, how)
    if layers is not None:
        labels = [tokens.labels[i] for i in _positions(tokens, layers)]
        if vectors.shape[1] > 1 and labels != list(view.layers):
            raise InvalidInputError(
                f"explain: the query has a vector for each of layers {view.layers}, not for layers {labels}"
            )
    rows = _rows_of(view, tokens, example)
    at = [tokens.labels.index(label) for label in labels]
    values = np.empty((len(rows), len(at), tokens.array.shape[2]), np.float32)
    if values.size:
        tokens.array.read(rows, at, values)
    recipe = origin.recipe or {}
    queries = vectors
    if recipe.get("mix") == "concat" and len(at) > 1 and tokens is not origin:
        queries = vectors.reshape(len(vectors), len(at), -1)
    scores = _scores(values, queries, labels, how.metric, transform)
    numbers = tokens.numbers_of(rows)
    if not maxsim:
        return Explanation(scores[0].astype(np.float32), "search", example, name, numbers, labels)
    if how.combine == "max":
        whole = scores.max(2)
    else:
        whole = scores @ (np.ones(len(labels)) if how.weights is None else how.weights)
    return Explanation(whole.astype(np.float32), "maxsim", example, name, numbers, labels)


def _positions(origin: Origin, layers: Any) -> list[int]:
    return layer_positions(layers, origin.labels, origin.what)


def _tokens(view: View, how: Any) -> tuple[Origin, list[int], Any]:
    """Where the tokens are: the site itself, or what it was pooled from; the layers, and the transform."""
    origin, recipe = view._origin, view._origin.recipe
    labels, transform = list(view.layers), how.transform
    if origin.axis != EXAMPLES or recipe is None:
        return origin, labels, transform
    source = origin.made_of
    if isinstance(origin, StoredOrigin):
        source = stored_origin(origin.snapshot, recipe["source"])
    if source is None:
        return origin, labels, transform
    if recipe["mix"] is not None and len(recipe["layers"]) > 1:
        labels = list(recipe["layers"])
        if transform is not None:
            raise InvalidInputError(
                "explain: rows were mixed from several layers before they were whitened: tokens were not",
                hint="whiten the layers, then search them together",
            )
    return source, labels, transform


def _rows_of(view: View, tokens: Origin, example: int) -> NDArray[np.int64]:
    """The rows of an example, in the array that the tokens are in."""
    if tokens.axis == EXAMPLES:
        if tokens.numbers is None:
            return np.array([example], np.int64)
        return np.flatnonzero(tokens.numbers == example)[:1].astype(np.int64)
    if tokens is view._origin:
        # Of the view: what was left out has no part in it.
        order, offset = view._view.grouped()
        examples = view._view.examples
        at = np.flatnonzero(np.asarray(examples) == example)
        if at.size:
            positions = np.arange(offset[at[0]], offset[at[0] + 1])
            positions = positions if order is None else order[positions]
            rows = view._view.rows
            return positions + rows.start if isinstance(rows, range) else rows[positions]
    offset = tokens.offset()
    return np.arange(offset[example], offset[example + 1])


def _scores(
    values: NDArray[np.float32],
    queries: NDArray[np.float32],
    labels: Sequence[int],
    metric: str,
    transform: Any,
) -> NDArray[np.float64]:
    """Scores ``[Tq, T, L]`` of rows ``[T, L, D]`` by metric, in float64."""
    x = values.astype(np.float64)
    q = np.broadcast_to(queries, (len(queries), *values.shape[1:])).astype(np.float64)
    if transform is not None:
        own = transform.select(labels)
        x, q = (np.einsum("tld,lrd->tlr", rows - own.mean, own.map_rows) for rows in (x, q))
    products: NDArray[np.float64] = np.einsum("qld,tld->qtl", q, x)
    if metric == "dot":
        return products
    of_x, of_q = np.einsum("tld,tld->tl", x, x), np.einsum("qld,qld->ql", q, q)[:, None]
    if metric == "cos":
        norms = np.sqrt(of_q) * np.sqrt(of_x)
        cosines: NDArray[np.float64] = np.divide(
            products, norms, out=np.zeros_like(products), where=norms > 0
        )
        return cosines
    scores: NDArray[np.float64] = -((q[:, None] - x) ** 2).sum(-1)
    return scores
