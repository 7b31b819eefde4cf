"""Why a hit is one: the scores of its example's tokens, layer by layer or for each query vector."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from .errors import InvalidInputError
from .layout import EXAMPLES
from .origin import Origin, StoredOrigin, stored_origin
from .selection import layer_positions, rows_array
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
        usual = np.where(np.isnan(self.scores), -np.inf, self.scores)
        at: NDArray[np.int64] = usual.argmax(1 if self.kind == "maxsim" else 0)
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
    tokens, rows, searched = _tokens(view, example)
    recipe = origin.recipe or {}
    mixed = recipe.get("mix") is not None and len(recipe["layers"]) > 1 and tokens is not origin
    if mixed and recipe["mix"] == "concat":
        vectors = vectors.reshape(len(vectors), len(searched), -1)
    labels = searched if layers is None else _labels(tokens, layers)
    if vectors.shape[1] > 1 or (maxsim and how.weights is not None):
        absent = [label for label in labels if label not in searched]
        if absent:
            what = "a vector for each" if vectors.shape[1] > 1 else "weights for each"
            raise InvalidInputError(
                f"explain: the query has {what} of layers {list(searched)}, not for layer {absent[0]}"
            )
    at = [searched.index(label) for label in labels] if set(labels) <= set(searched) else []
    if vectors.shape[1] > 1:
        vectors = vectors[:, at]
    transform = how.transform
    if transform is not None:
        if mixed:
            raise InvalidInputError(
                "explain: rows were mixed from several layers before they were whitened: tokens were not",
                hint="whiten the layers, then search them together",
            )
        transform = transform.select(labels)
    values = np.empty((len(rows), len(labels), tokens.array.shape[2]), np.float32)
    if values.size:
        tokens.array.read(rows, [tokens.labels.index(label) for label in labels], values)
    scores = _scores(values, vectors, how.metric, transform)
    numbers = tokens.numbers_of(rows)
    if not maxsim:
        return Explanation(scores[0].astype(np.float32), "search", example, name, numbers, list(labels))
    if how.combine == "max":
        whole = scores.max(2)
    else:
        whole = scores @ (np.ones(len(labels)) if how.weights is None else how.weights[at])
    return Explanation(whole.astype(np.float32), "maxsim", example, name, numbers, list(labels))


def _labels(origin: Origin, layers: Any) -> list[int]:
    return [origin.labels[i] for i in layer_positions(layers, origin.labels, origin.what)]


def _tokens(view: View, example: int) -> tuple[Origin, NDArray[np.int64], list[int]]:
    """Where an example's tokens are, their rows, and the layers that were searched.

    Of a pooled site they are those that were pooled, where these are at hand; else its one row.
    """
    origin, recipe, labels = view._origin, view._origin.recipe, list(view.layers)
    if origin.axis != EXAMPLES:
        return origin, _of_view(view, example), labels
    numbers = origin.numbers
    place = example if numbers is None else int(np.flatnonzero(numbers == example)[0])
    if recipe is None:
        return origin, np.array([place], np.int64), labels
    if recipe["mix"] is not None and len(recipe["layers"]) > 1:
        labels = list(recipe["layers"])
    if isinstance(origin, StoredOrigin):
        source = stored_origin(origin.snapshot, recipe["source"])
        first, last = (int(end) for end in source.offset()[example : example + 2])
        rows = np.arange(first, last)
        if not recipe["special"]:
            rows = rows[source.column("special", range(first, last)) == 0]
        return source, rows, labels
    if origin.made_of is None:
        return origin, np.array([place], np.int64), list(view.layers)
    made = origin.made_of
    own = made.rows[int(made.offset[place]) : int(made.offset[place + 1])]
    return made.origin, rows_array(own), labels


def _of_view(view: View, example: int) -> NDArray[np.int64]:
    """The rows of an example in a view: what was left out has no part in it."""
    order, offset = view._view.grouped()
    [place] = np.flatnonzero(rows_array(view._view.examples) == example)[:1]
    positions = np.arange(offset[place], offset[place + 1])
    positions = positions if order is None else order[positions]
    rows = view._view.rows
    return positions + rows.start if isinstance(rows, range) else rows[positions]


def _scores(
    values: NDArray[np.float32], queries: NDArray[np.float32], metric: str, transform: Any
) -> NDArray[np.float64]:
    """Scores ``[Tq, T, L]`` of rows ``[T, L, D]`` by metric, in float64."""
    n_queries, (n_rows, n_layers, _) = len(queries), values.shape
    out = np.zeros((n_queries, n_rows, n_layers))
    for i in range(n_layers):
        x = values[:, i].astype(np.float64)
        q = queries[:, i if queries.shape[1] > 1 else 0].astype(np.float64)
        if transform is not None:
            x, q = ((rows - transform.mean[i]) @ transform.map_rows[i].T for rows in (x, q))
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
