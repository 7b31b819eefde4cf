"""The scores behind a hit of ``actstore query``: a matrix labeled with the text of the tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...disk.columns import Columns
from ...disk.layout import EXAMPLES
from ...ops.explain import Explanation
from ...ops.hits import Hits
from ...ops.whiten import Whitener
from ...site import Site
from ...store import Store
from .formatting import one_line
from .matrix import ScoreMatrix, token_names
from .texts import stored_tokenizer


def explain_maxsim(
    store: Store, site: Site, hits: Hits, rank: int, query_ids: list[int] | None, tokenizer: Any
) -> ScoreMatrix:
    """Score of each token of a hit's example for each token of the query.

    Parameters
    ----------
    store : Store
    site : Site
        The site that was searched.
    hits : Hits
        Of one query.
    rank : int
        Which hit, from 0.
    query_ids : list of int, optional
        Token ids of the query; by default its columns are numbered.
    tokenizer : optional
        The model's tokenizer, if it is loaded.
    """
    explanation = hits.explain(0, rank)
    tokenizer = tokenizer or stored_tokenizer(store.identity)
    n_query = explanation.shape[0]
    columns = [str(i) for i in range(n_query)] if query_ids is None else token_names(query_ids, tokenizer)
    name = one_line(explanation.id)
    title = f"{rank + 1}: {name}, score {hits.scores[0, rank]:.4g}: its tokens by query token"
    rows = _row_names(store, site.axis, explanation, tokenizer)
    return ScoreMatrix(title, explanation.scores.T, rows, columns, by_layer=False)


def explain_search(
    store: Store,
    site: Site,
    example: int,
    rank: int,
    score: float,
    vectors: NDArray[Any],
    layers: list[int],
    metric: str,
    transform: Whitener | None,
    tokenizer: Any,
) -> ScoreMatrix:
    """Score of each token of an example in each layer.

    Parameters
    ----------
    store : Store
    site : Site
        The captured site, with all its rows and layers.
    example : int
        The hit's example, by its number in the store.
    rank : int
        The rank of the hit, from 0.
    score : float
        The score of the hit.
    vectors : array ``[1, L, D]`` or ``[1, D]``
        The query: one vector for each of `layers`, or one for all of them.
    layers : list of int
        Layers to show; those that `transform` lacks are left out.
    metric, transform
        As for the search.
    tokenizer : optional
        The model's tokenizer, if it is loaded.
    """
    if transform is not None and not set(layers) <= set(transform.layers_):
        kept = [i for i, label in enumerate(layers) if label in transform.layers_]
        layers = [layers[i] for i in kept]
        vectors = vectors[:, kept] if vectors.ndim == 3 and vectors.shape[1] > 1 else vectors
    view = site.select(layers=layers, examples=example)
    hits = view.search(
        vectors,
        k=1,
        metric=metric,
        combine="sum",  # Irrelevant here: the explanation has the score of each layer.
        transform=transform,
        on_nan="skip",
    )
    name = one_line(store.examples.text("id", example))
    what = metric if site.axis == EXAMPLES else f"{metric} of its tokens"
    title = f"{rank + 1}: {name}, score {score:.4g}: {what} by layer"
    if hits.rows[0, 0] < 0:
        scores = np.zeros((0, len(layers)), np.float32)
        return ScoreMatrix(title, scores, [], [str(label) for label in layers], by_layer=True)
    explanation = hits.explain(0, 0)
    tokenizer = tokenizer or stored_tokenizer(store.identity)
    rows = _row_names(store, site.axis, explanation, tokenizer)
    columns = [str(label) for label in explanation.layers]
    return ScoreMatrix(title, explanation.scores, rows, columns, by_layer=True)


def _row_names(store: Store, axis: str, explanation: Explanation, tokenizer: Any) -> list[str]:
    """A name for each row of the explained example: the text of its token if known."""
    if axis == EXAMPLES:
        return [explanation.id]
    ids = token_ids(store.axes[axis], explanation.rows)
    if ids is None:
        return [str(i) for i in range(len(explanation.rows))]
    return token_names(ids, tokenizer)


def token_ids(columns: Columns, rows: NDArray[np.int64]) -> list[int] | None:
    """The token ids of the rows of one example; None without such a column or without rows."""
    if "id" not in columns or not len(rows):
        return None
    first, last = int(rows.min()), int(rows.max())
    ids: list[int] = columns.read("id", first, last + 1)[rows - first].tolist()
    return ids
