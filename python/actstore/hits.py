"""What a search found."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .errors import InvalidInputError, ShapeError
from .explain import Explanation, explained
from .lazy import lazy
from .origin import Origin
from .selection import int_position, is_int
from .view import View


@dataclass(frozen=True)
class Certificate:
    """What stands behind the hits of a search.

    Attributes
    ----------
    exact : bool
        Whether no row was left out: the k best are the k best.
    n_rows : int
        Rows that were searched.
    n_rescored : int
        Scores, over all queries, that the fast pass could not tell apart and that were computed in float64.
    """

    exact: bool
    n_rows: int
    n_rescored: int


class Hit(NamedTuple):
    """One hit: its score, the row it is of, that row's example and place in it, and the layer."""

    score: float
    row: int
    id: str
    example: int
    position: int
    layer: int


@dataclass(frozen=True, eq=False)
class Asked:
    """What was asked: of which rows, with which vectors ``[n, 1 or L, D]``, and how they were scored."""

    view: View
    vectors: NDArray[np.float32]
    how: Any
    bounds: NDArray[np.int64] | None = None
    """Where the vectors of each query begin, ``[nq + 1]``; None where each has one and ranks rows."""


class Hits:
    """The best rows for each query, best first: score descending, then row ascending.

    ``len(hits)`` is the number of queries, ``hits[q]`` a list of `Hit`, without those that are missing.
    Ids, examples and positions are looked up when first asked for, while the store is open. A pickle
    holds all of it and needs no store.

    Attributes
    ----------
    scores : array
        float32 ``[nq, k]``; -inf where there are fewer than k.
    rows : array
        int64 ``[nq, k]``: rows as they count in the whole store, of pooled sites example numbers; -1
        where missing.
    layers : array
        int64 ``[nq, k]``: the label of the layer that won (``combine="max"``), or of the only one that was
        searched; -1 where missing, and where several were summed.
    certificate : Certificate

    Examples
    --------
    >>> import actstore, numpy as np
    >>> hits = actstore.search(np.eye(3, dtype=np.float32), np.array([[0.0, 2.0, 1.0]]), k=2)
    >>> hits.scores, hits.rows, hits.ids
    (array([[2., 1.]], dtype=float32), array([[1, 2]]), [['1', '2']])
    >>> hits[0][0]
    Hit(score=2.0, row=1, id='1', example=1, position=0, layer=0)
    """

    def __init__(
        self,
        scores: NDArray[np.float32],
        rows: NDArray[np.int64],
        layers: NDArray[np.int64],
        certificate: Certificate,
        origin: Origin,
        asked: Asked,
    ) -> None:
        self.scores, self.rows, self.layers = scores, rows, layers
        self.certificate = certificate
        self._origin: Origin | None = origin
        self._asked: Asked | None = asked

    @lazy
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self._origin is not None
        self._origin.check_open()
        examples, positions = (np.full(self.rows.shape, -1, np.int64) for _ in range(2))
        there = self.rows >= 0
        if self._asked is not None and self._asked.bounds is not None:  # Rows are examples.
            examples[there], positions[there] = self.rows[there], 0
        else:
            examples[there], positions[there] = self._origin.places(self.rows[there])
        return examples, positions

    @property
    def examples(self) -> NDArray[np.int64]:
        """The number of each hit's example in the store, int64 ``[nq, k]``; -1 where missing."""
        return self._places[0]

    @property
    def positions(self) -> NDArray[np.int64]:
        """The place of each hit's row within its example, int64 ``[nq, k]``; -1 where missing."""
        return self._places[1]

    @lazy
    def ids(self) -> list[list[str | None]]:
        """The id of each hit's example, ``[nq][k]``; None where missing."""
        assert self._origin is not None
        found, places = np.unique(self.examples, return_inverse=True)
        n_missing = int(np.searchsorted(found, 0))
        names = np.empty(len(found), object)
        names[n_missing:] = self._origin.ids(found[n_missing:])
        ids: list[list[str | None]] = names[places.reshape(self.rows.shape)].tolist()
        return ids

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, query: int) -> list[Hit]:
        if not is_int(query):
            raise InvalidInputError(f"hits of a query are asked for by its number, got {query!r}")
        q = int_position(query, len(self), "hits: query")
        n = int((self.rows[q] >= 0).sum())
        columns = (self.scores, self.rows, self.examples, self.positions, self.layers)
        scores, rows, examples, positions, layers = (column[q, :n].tolist() for column in columns)
        ids = self.ids[q][:n]
        return [Hit(*hit) for hit in zip(scores, rows, ids, examples, positions, layers, strict=True)]

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[q] for q in range(len(self)))

    def __repr__(self) -> str:
        nq, k = self.rows.shape
        best = "nothing found"
        if nq and k and self.rows[0, 0] >= 0:
            best = f"the first is row {self.rows[0, 0]} at {self.scores[0, 0]:.6g}"
        return f"Hits({nq} queries, k={k}, of {self.certificate.n_rows} rows; {best})"

    def explain(self, query: int, rank: int, *, layers: Any = None) -> Explanation:
        """The scores behind a hit: of each token of its example in each layer, or for each query vector.

        Of a pooled site the tokens are those of the site that it was made of: their scores are what was
        pooled, before it was.

        Parameters
        ----------
        query, rank : int
            Which query, and which of its hits; 0 is the first, and the best.
        layers : int, list of int or slice of labels, optional
            As `Site.select` has them; by default those that were searched. A query of one vector can be held
            against all layers that there are: ``layers=slice(None)``.

        Returns
        -------
        Explanation
            An array ``[T, L]`` of the example's T rows, or, of hits of a MaxSim, ``[Tq, T]``.

        Raises
        ------
        InvalidInputError
            When there is no such hit, or the hits were pickled.
        NotFoundError
            When there is no such layer.
        """
        if self._asked is None or self._origin is None:
            raise InvalidInputError("hits that were pickled cannot be explained", hint="search again")
        if not is_int(query) or not is_int(rank):
            raise InvalidInputError(f"explain: a query and a rank are ints, got {query!r} and {rank!r}")
        q = int_position(query, len(self), "explain: query")
        n = int((self.rows[q] >= 0).sum())
        at = int_position(rank, n, f"explain: rank of a hit of query {q}")
        asked = self._asked
        self._origin.check_open()
        first, last = (q, q + 1) if asked.bounds is None else (int(i) for i in asked.bounds[q : q + 2])
        example = int(self.examples[q, at])
        vectors = asked.vectors[first:last]
        return explained(asked.view, vectors, asked.how, example, layers, asked.bounds is not None)

    def to_dicts(self) -> list[list[dict[str, Any]]]:
        """``{"id", "score"}`` of each hit, a list for each query: as PyLate has it.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> actstore.search(np.eye(2, dtype=np.float32), np.array([0.5, 2.0]), k=2).to_dicts()
        [[{'id': '1', 'score': 2.0}, {'id': '0', 'score': 0.5}]]
        """
        return [[{"id": hit.id, "score": hit.score} for hit in hits] for hits in self]

    def to_run(self, query_ids: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """A run ``{query id: {document id: score}}``, as trec_eval's wrappers, ir-measures and mteb take it.

        An example with several rows among the hits counts once, by its best. Evaluators sort a run anew,
        trec_eval by float32 score and, of equal ones, the last id first. So that the order stays, a score
        that is not below the one before it is lowered to the next float32 that is.

        Parameters
        ----------
        query_ids : sequence of str, optional
            The queries' ids ``[nq]``; by default their positions as text.

        Raises
        ------
        ShapeError, InvalidInputError
            When they are not as many different strings as there are queries.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> hits = actstore.search(np.ones((2, 1), np.float32), np.array([[1.0]]), k=2)
        >>> hits.to_run(["q1"])
        {'q1': {'0': 1.0, '1': 0.9999999403953552}}
        """
        names = [str(q) for q in range(len(self))] if query_ids is None else list(query_ids)
        if len(names) != len(self):
            raise ShapeError(f"query_ids: expected {len(self)}, one for each query, got {len(names)}")
        if len(set(names)) != len(names) or not all(isinstance(name, str) for name in names):
            raise InvalidInputError("query_ids: expected different strings")
        run: dict[str, dict[str, float]] = {}
        for q, name in enumerate(names):
            documents: dict[str, float] = {}
            last = np.float32(np.inf)
            for document, score in zip(self.ids[q], self.scores[q], strict=True):
                if document is not None and document not in documents:
                    last = score if score < last else np.nextafter(last, np.float32(-np.inf))
                    documents[document] = float(last)
            run[name] = documents
        return run

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.scores, self.rows, self.layers, self.certificate, self._places, self.ids)
        return _unpickled, values


def _unpickled(
    scores: NDArray[np.float32],
    rows: NDArray[np.int64],
    layers: NDArray[np.int64],
    certificate: Certificate,
    places: tuple[NDArray[np.int64], NDArray[np.int64]],
    ids: list[list[str | None]],
) -> Hits:
    hits = Hits.__new__(Hits)
    hits.scores, hits.rows, hits.layers, hits.certificate = scores, rows, layers, certificate
    hits._origin, hits._asked, hits._places, hits.ids = None, None, places, ids
    return hits
