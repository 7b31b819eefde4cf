"""What is behind a hit of ``actstore query``, as a matrix with the text of its tokens."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..columns import Columns
from ..explain import Explanation
from ..hits import Hits
from ..layout import EXAMPLES
from ..site import Site
from ..store import Store
from ..whiten import Whitener
from .examples import stored_tokenizer
from .matrix import Matrix, token_names
from .picture import shown


def of_maxsim(store: Store, site: Site, hits: Hits, rank: int, query_ids: Any, tokenizer: Any) -> Matrix:
    """The tokens of a hit's example by those of the query."""
    found = hits.explain(0, rank)
    tokenizer = tokenizer or stored_tokenizer(store.identity)
    n_query = found.shape[0]
    columns = [str(i) for i in range(n_query)] if query_ids is None else token_names(query_ids, tokenizer)
    title = f"{rank + 1}: {shown(found.id)}, score {hits.scores[0, rank]:.4g}: its tokens by the query's"
    return Matrix(title, found.scores.T, _tokens(store, site.axis, found, tokenizer), columns, False)


def of_search(
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
) -> Matrix:
    """The tokens of an example by layer.

    Parameters
    ----------
    site : Site
        The rows that were captured, all layers.
    vectors : array ``[1, L, D]`` or ``[1, D]``
        The query at these layers, or everywhere.
    layers : list of int
        Those to show.
    """
    if transform is not None and not set(layers) <= set(transform.layers):
        kept = [i for i, label in enumerate(layers) if label in transform.layers]
        layers = [layers[i] for i in kept]
        vectors = vectors[:, kept] if vectors.ndim == 3 and vectors.shape[1] > 1 else vectors
    view = site.select(layers=layers, examples=example)
    hits = view.search(vectors, k=1, metric=metric, transform=transform, on_nan="skip")  # type: ignore[arg-type]
    [name] = site._origin.ids(np.array([example], np.int64))
    title = f"{rank + 1}: {shown(name)}, score {score:.4g}: {metric} of its tokens by layer"
    if hits.rows[0, 0] < 0:
        return Matrix(title, np.zeros((0, len(layers)), np.float32), [], [str(i) for i in layers], True)
    found = hits.explain(0, 0)
    tokenizer = tokenizer or stored_tokenizer(store.identity)
    tokens = _tokens(store, site.axis, found, tokenizer)
    return Matrix(title, found.scores, tokens, [str(label) for label in found.layers], True)


def _tokens(store: Store, axis: str, found: Explanation, tokenizer: Any) -> list[str]:
    """The text of an example's rows."""
    if axis == EXAMPLES:
        return [found.id]
    ids = token_ids(store.axes[axis], found.rows)
    return [str(i) for i in range(len(found.rows))] if ids is None else token_names(ids, tokenizer)


def token_ids(columns: Columns, rows: NDArray[np.int64]) -> list[int] | None:
    """The token ids of some rows that stand together; None where there is no such column."""
    if "id" not in columns or not len(rows):
        return None
    first, last = int(rows.min()), int(rows.max())
    ids: list[int] = columns.read("id", first, last + 1)[rows - first].tolist()
    return ids
