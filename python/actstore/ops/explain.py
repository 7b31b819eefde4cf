"""Explanations of hits: the scores of an example's tokens, per layer or per query vector."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import DTypeLike, NDArray

from ..base.selection import layer_positions, rows_array
from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError
from ..rows.backend import Backend
from ..rows.view import View
from .scoring import Scoring, layer_scores


@dataclass(frozen=True, eq=False)
class Explanation:
    """The scores behind a hit as a matrix; usable as an array.

    Attributes
    ----------
    scores : array
        float32. For a search ``[T, L]``: the score of each row of the example in each layer. For MaxSim
        ``[Tq, T]``: the score of each query vector and row.
    kind : {"search", "maxsim"}
    example, id : int, str
        The example of the hit.
    rows : array
        int64 ``[T]``: row ids of the example's rows.
    layers : list of int
        Labels of the layers, ``[L]``; for MaxSim, the layers whose scores were combined.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> rows = np.array([[[1, 0], [1, 1]], [[0, 2], [1, 3]]], np.float32)
    >>> site = actstore.from_array(rows, [0, 2])
    >>> hits = site.search(np.array([0.0, 1.0]), k=1, metric="dot", combine="sum")
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
        """The shape of `scores`."""
        return self.scores.shape

    @property
    def best(self) -> NDArray[np.int64]:
        """The position of the best row, int64: per layer ``[L]``, or for MaxSim per query vector ``[Tq]``."""
        scores = np.where(np.isnan(self.scores), -np.inf, self.scores)
        best: NDArray[np.int64] = scores.argmax(1 if self.kind == "maxsim" else 0)
        return best

    def __array__(self, dtype: DTypeLike | None = None, copy: bool | None = None) -> NDArray[Any]:
        return np.array(self.scores, dtype=dtype, copy=copy)

    def __getitem__(self, key: Any) -> Any:
        return self.scores[key]

    def __len__(self) -> int:
        return len(self.scores)


def explain_example(
    view: View,
    vectors: NDArray[np.float32],
    how: Scoring,
    example: int,
    layers: Any = None,
    maxsim: bool = False,
) -> Explanation:
    """The scores of an example's rows.

    Parameters
    ----------
    view : View
        The view that was searched.
    vectors : array ``[Tq, 1 or L, D]``
        The vectors of the query.
    how : Scoring
        How rows were scored.
    example : int
        The example's number in the store.
    layers : optional
        Layers to score, as in `Site.select`; by default those of the view.
    maxsim : bool
        Whether to score each vector separately.
    """
    backend = view.backend
    [name] = backend.ids(np.array([example], np.int64))
    tokens, rows, searched = _token_rows(view, example)
    recipe = backend.recipe or {}
    mixed = recipe.get("mix") is not None and len(recipe["layers"]) > 1 and tokens is not backend
    if mixed and recipe["mix"] == "concat":
        vectors = vectors.reshape(len(vectors), len(searched), -1)
    labels = searched
    if layers is not None:
        labels = [tokens.labels[i] for i in layer_positions(layers, tokens.labels, tokens.what)]
    if vectors.shape[1] > 1 or (maxsim and how.weights is not None):
        absent = [label for label in labels if label not in searched]
        if absent:
            what = "a vector" if vectors.shape[1] > 1 else "a weight"
            raise InvalidInputError(
                f"explain: the query has {what} for each of layers {list(searched)}, none for {absent[0]}"
            )
    at = [searched.index(label) for label in labels] if set(labels) <= set(searched) else []
    if vectors.shape[1] > 1:
        vectors = vectors[:, at]
    transform = how.transform
    if transform is not None:
        if mixed:
            raise InvalidInputError(
                "explain: layers were mixed before the whitener was fitted, so it does not apply to tokens",
                hint="whiten the layers, then search them together",
            )
        transform = transform.select(labels)
    values = np.empty((len(rows), len(labels), tokens.array.shape[2]), np.float32)
    if values.size:
        tokens.array.read(rows, [tokens.labels.index(label) for label in labels], values)
    scores = layer_scores(values, vectors, how.metric, transform)
    row_ids = tokens.numbers_of(rows)
    if not maxsim:
        return Explanation(scores[0].astype(np.float32), "search", example, name, row_ids, list(labels))
    if how.combine == "max":
        combined = scores.max(2)
    else:
        combined = scores @ (np.ones(len(labels)) if how.weights is None else how.weights[at])
    return Explanation(combined.astype(np.float32), "maxsim", example, name, row_ids, list(labels))


def _token_rows(view: View, example: int) -> tuple[Backend, NDArray[np.int64], list[int]]:
    """The backend with an example's tokens, their rows in it, and the labels of the searched layers.

    For a pooled site: the tokens that were pooled if these are available, else the pooled row itself.
    """
    backend, recipe, labels = view.backend, view.backend.recipe, list(view.layers)
    if backend.axis != EXAMPLES:
        return backend, _rows_of_example(view, example), labels
    numbers = backend.numbers
    row = example if numbers is None else int(np.flatnonzero(numbers == example)[0])
    pooled = backend.rows_pooled_into(row)
    if pooled is None or recipe is None:
        return backend, np.array([row], np.int64), labels
    if recipe["mix"] is not None and len(recipe["layers"]) > 1:
        labels = list(recipe["layers"])
    return *pooled, labels


def _rows_of_example(view: View, example: int) -> NDArray[np.int64]:
    """The rows of an example in this view."""
    order, offsets = view.rowset.grouped()
    [place] = np.flatnonzero(rows_array(view.rowset.examples) == example)[:1]
    positions = np.arange(offsets[place], offsets[place + 1])
    positions = positions if order is None else order[positions]
    rows = view.rowset.rows
    return positions + rows.start if isinstance(rows, range) else rows[positions]
