"""The result of a search."""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, overload

import numpy as np
from numpy.typing import NDArray

from ..base.checks import as_path
from ..base.html import table
from ..base.lazy import lazy
from ..base.selection import int_position, is_int
from ..base.tables import Table
from ..base.text import count
from ..disk.layout import EXAMPLES
from ..errors import InvalidInputError, ShapeError, StorageError
from ..rows.backend import Backend
from ..rows.view import View
from .explain import Explanation, explain_example
from .scoring import Scoring

_HTML_HITS = 10


@dataclass(frozen=True)
class Certificate:
    """The guarantee that a search gives, and its cost.

    Attributes
    ----------
    exact : bool
        Whether the k best of all rows were found.
    n_rows : int
        Rows that were searched.
    n_rescored : int
        Scores, over all queries, that the fast pass could not rank and that were recomputed in float64.
    """

    exact: bool
    n_rows: int
    n_rescored: int


class Hit(NamedTuple):
    """One hit: its score, row id, the id and number of its example, its position in it, and the layer."""

    score: float
    row: int
    id: str
    example: int
    position: int
    layer: int


@dataclass(frozen=True, eq=False)
class SearchInputs:
    """The inputs of a search: the view, the query vectors ``[n, 1 or L, D]``, and how they were scored."""

    view: View
    vectors: NDArray[np.float32]
    how: Scoring
    bounds: NDArray[np.int64] | None = None
    """For MaxSim, where the vectors of each query start, ``[nq + 1]``; None when rows are ranked."""


class Hits(Table):
    """The best rows for each query: score descending, then row ascending.

    ``len(hits)`` is the number of queries. ``hits[q]`` is a list of `Hit`, without missing ones; a slice of
    queries is Hits again. Ids, examples and positions are looked up on first use, while the store is open. A
    pickle contains them and no reference to the store, so `site` and `explain` raise for unpickled hits.

    Attributes
    ----------
    scores : array
        float32 ``[nq, k]``; -inf where missing.
    rows : array
        int64 ``[nq, k]``: row ids, which count in the whole store; for pooled sites and MaxSim, example
        numbers; -1 where missing.
    layers : array
        int64 ``[nq, k]``: the label of the winning layer (``combine="max"``) or of the only layer; -1 where
        missing or where several layers were summed.
    certificate : Certificate

    Examples
    --------
    >>> import actstore, numpy as np
    >>> hits = actstore.search(np.eye(3, dtype=np.float32), np.array([[0.0, 2.0, 1.0]]), k=2, metric="dot")
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
        inputs: SearchInputs | None,
        places: tuple[NDArray[np.int64], NDArray[np.int64]] | None = None,
        ids: list[list[str | None]] | None = None,
    ) -> None:
        self.scores, self.rows, self.layers = scores, rows, layers
        self.certificate = certificate
        self._inputs = inputs
        if places is not None:
            self._places = places
        if ids is not None:
            self.ids = ids

    @lazy
    def _places(self) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        assert self._inputs is not None
        backend = self._inputs.view.backend
        backend.check_open()
        examples, positions = (np.full(self.rows.shape, -1, np.int64) for _ in range(2))
        hit = self.rows >= 0
        if self._inputs.bounds is not None:  # MaxSim: rows are example numbers.
            examples[hit], positions[hit] = self.rows[hit], 0
        else:
            examples[hit], positions[hit] = backend.places(self.rows[hit])
        return examples, positions

    @property
    def examples(self) -> NDArray[np.int64]:
        """The number of each hit's example in the store, int64 ``[nq, k]``; -1 where missing."""
        return self._places[0]

    @property
    def positions(self) -> NDArray[np.int64]:
        """The position of each hit's row within its example, int64 ``[nq, k]``; -1 where missing."""
        return self._places[1]

    @lazy
    def ids(self) -> list[list[str | None]]:
        """The id of each hit's example, ``[nq][k]``; None where missing."""
        assert self._inputs is not None
        return ids_of(self._inputs.view.backend, self.examples)

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, query: int) -> list[Hit]: ...
    @overload
    def __getitem__(self, query: slice) -> "Hits": ...
    def __getitem__(self, query: int | slice) -> "list[Hit] | Hits":
        if isinstance(query, slice):
            return self._queries(query)
        if not is_int(query):
            raise InvalidInputError(f"hits: expected the number of a query or a slice, got {query!r}")
        q = int_position(query, len(self), "hits: query")
        n = int((self.rows[q] >= 0).sum())
        columns = (self.scores, self.rows, self.examples, self.positions, self.layers)
        scores, rows, examples, positions, layers = (column[q, :n].tolist() for column in columns)
        ids = self.ids[q][:n]
        return [Hit(*hit) for hit in zip(scores, rows, ids, examples, positions, layers, strict=True)]

    def _queries(self, some: slice) -> "Hits":
        inputs = self._inputs
        if inputs is not None:
            vectors, bounds = inputs.vectors, inputs.bounds
            if bounds is None:
                inputs = SearchInputs(inputs.view, vectors[some], inputs.how)
            else:
                pieces = [slice(int(bounds[q]), int(bounds[q + 1])) for q in range(len(self))[some]]
                parts = [vectors[piece] for piece in pieces]
                lengths = np.cumsum([0, *(len(part) for part in parts)], dtype=np.int64)
                vectors = np.concatenate(parts) if parts else vectors[:0]
                inputs = SearchInputs(inputs.view, vectors, inputs.how, lengths)
        # Keep looked-up places and ids: unpickled hits cannot look them up again.
        places = ids = None
        if "_places" in self.__dict__:
            examples, positions = self._places
            places = examples[some], positions[some]
        if "ids" in self.__dict__:
            ids = self.ids[some]
        return Hits(
            self.scores[some], self.rows[some], self.layers[some], self.certificate, inputs, places, ids
        )

    def __iter__(self) -> Iterator[list[Hit]]:
        return (self[q] for q in range(len(self)))

    def __repr__(self) -> str:
        nq, k = self.rows.shape
        best = "no hits"
        if nq and k and self.rows[0, 0] >= 0:
            best = f"the first is row {self.rows[0, 0]} at {self.scores[0, 0]:.6g}"
        queries, rows = count(nq, "query", "queries"), count(self.certificate.n_rows, "row")
        return f"Hits({queries}, k={k}, of {rows}; {best})"

    def _repr_html_(self) -> str:
        rows = [
            (q, rank, hit.id, hit.position, hit.row, f"{hit.score:.6g}")
            for q in range(min(len(self), _HTML_HITS))
            for rank, hit in enumerate(self[q][:_HTML_HITS])
        ]
        return table(repr(self), ("query", "rank", "id", "position", "row", "score"), rows)

    def site(self, query: int) -> Any:
        """The hits of one query as a Site, best first.

        Parameters
        ----------
        query : int
            The position of the query.

        Returns
        -------
        Site ``[n, L, D]``
            The rows of the hits; for MaxSim, all rows of their examples. Missing hits are left out.

        Raises
        ------
        InvalidInputError
            When there is no such query, or the hits were pickled.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> hits = actstore.search(np.eye(3), np.array([0.0, 2.0, 1.0]), k=2)
        >>> hits.site(0).read()[:, 0].tolist()
        [[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]]
        """
        inputs = self._require_inputs("site")
        q = int_position(query, len(self), "site: query")
        rows = self.rows[q][self.rows[q] >= 0]
        view = inputs.view
        if inputs.bounds is None and view.axis != EXAMPLES:
            return view.select(row_ids=rows)
        known = {number: i for i, number in enumerate(np.asarray(view.rowset.examples).tolist())}
        return view.select(examples=[known[row] for row in rows.tolist()])

    def explain(self, query: int, rank: int, *, layers: Any = None) -> Explanation:
        """The scores of the tokens of a hit's example, per layer or, for MaxSim, per query vector.

        For a pooled site, the tokens are those of its source, scored before pooling.

        Parameters
        ----------
        query, rank : int
            The position of the query, and the rank of one of its hits; rank 0 is the best.
        layers : int, list of int or slice of labels, optional
            As in `Site.select`; by default the searched layers. A query of one vector can be compared with
            all layers of the site: ``layers=slice(None)``.

        Returns
        -------
        Explanation
            An array ``[T, L]`` for the T rows of the example, or for MaxSim ``[Tq, T]``.

        Raises
        ------
        InvalidInputError
            When there is no such hit, or the hits were pickled.
        NotFoundError
            When there is no such layer.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> site = actstore.from_array(np.array([[1.0, 0.0], [3.0, 0.0]]), [0, 2])
        >>> explanation = site.search(np.array([1.0, 0.0]), k=1, metric="dot").explain(0, 0)
        >>> explanation.scores.tolist(), explanation.best.tolist()
        ([[1.0], [3.0]], [1])
        """
        inputs = self._require_inputs("explain")
        if not is_int(query) or not is_int(rank):
            raise InvalidInputError(f"explain: query and rank must be ints, got {query!r} and {rank!r}")
        q = int_position(query, len(self), "explain: query")
        n = int((self.rows[q] >= 0).sum())
        at = int_position(rank, n, f"explain: rank of a hit of query {q}")
        inputs.view.backend.check_open()
        first, last = (q, q + 1) if inputs.bounds is None else (int(i) for i in inputs.bounds[q : q + 2])
        example = int(self.examples[q, at])
        vectors = inputs.vectors[first:last]
        return explain_example(inputs.view, vectors, inputs.how, example, layers, inputs.bounds is not None)

    def _require_inputs(self, verb: str) -> SearchInputs:
        if self._inputs is None:
            raise InvalidInputError(f"{verb}: these hits were pickled and have no store", hint="search again")
        return self._inputs

    def to_columns(self) -> dict[str, Any]:
        """One row per hit, without missing ones: ``query``, ``rank``, ``id``, ``example``, ``position``,
        ``row``, ``layer``, ``score``."""
        hit = self.rows >= 0
        queries, ranks = np.nonzero(hit)
        ids = [self.ids[q][r] for q, r in zip(queries.tolist(), ranks.tolist(), strict=True)]
        return {
            "query": queries,
            "rank": ranks,
            "id": ids,
            "example": self.examples[hit],
            "position": self.positions[hit],
            "row": self.rows[hit],
            "layer": self.layers[hit],
            "score": self.scores[hit],
        }

    def to_dicts(self) -> list[list[dict[str, Any]]]:
        """``{"id", "score"}`` of each hit, a list per query: the format of PyLate.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> actstore.search(np.eye(2, dtype=np.float32), np.array([0.5, 2.0]), k=2, metric="dot").to_dicts()
        [[{'id': '1', 'score': 2.0}, {'id': '0', 'score': 0.5}]]
        """
        return [[{"id": hit.id, "score": hit.score} for hit in hits] for hits in self]

    def to_run(self, query_ids: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
        """A run ``{query id: {document id: score}}`` for trec_eval's wrappers, ir-measures and mteb.

        An example with several rows among the hits counts once, with its best score. Evaluators sort a run
        again, trec_eval by float32 score and equal scores by id descending. To keep the order, a score that
        is not below its predecessor is lowered to the next smaller float32.

        Parameters
        ----------
        query_ids : sequence of str, optional
            Ids of the queries ``[nq]``; by default their positions as text.

        Raises
        ------
        ShapeError, InvalidInputError
            When `query_ids` are not `nq` distinct strings.

        Examples
        --------
        >>> import actstore, numpy as np
        >>> hits = actstore.search(np.ones((2, 1), np.float32), np.array([[1.0]]), k=2, metric="dot")
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

    def write_run(
        self,
        path: str | os.PathLike[str],
        query_ids: Sequence[str] | None = None,
        tag: str = "actstore",
    ) -> None:
        """Write a run in TREC's format: ``query Q0 document rank score tag``, one line per document.

        Documents and scores are those of `to_run`.

        Parameters
        ----------
        path : path
            The file to write; an existing file is replaced.
        query_ids : sequence of str, optional
            Ids of the queries ``[nq]``; by default their positions as text.
        tag : str
            The name of the run.

        Raises
        ------
        ShapeError, InvalidInputError
            As `to_run`; also for an id or tag that is empty or has whitespace, which the format cannot hold.
        StorageError
            When the file cannot be written.

        Examples
        --------
        >>> import actstore, numpy as np, pathlib, tempfile
        >>> path = tempfile.mkdtemp() + "/a.run"
        >>> actstore.search(np.eye(2), np.array([1.0, 0.5]), k=1, metric="dot").write_run(path, ["q1"])
        >>> pathlib.Path(path).read_text()
        'q1 Q0 0 1 1.0 actstore\\n'
        """
        run = self.to_run(query_ids)
        for what, names in (
            ("query id", run),
            ("document id", (document for documents in run.values() for document in documents)),
            ("tag", (tag,)),
        ):
            for name in names:
                if not isinstance(name, str) or name.split() != [name]:
                    raise InvalidInputError(
                        f"write_run: {what} {name!r} is empty or has whitespace, which a TREC run cannot hold"
                    )
        text = "".join(
            f"{query} Q0 {document} {rank} {score!r} {tag}\n"
            for query, documents in run.items()
            for rank, (document, score) in enumerate(documents.items(), 1)
        )
        target = as_path(path, "write_run")
        try:
            with open(target, "w", encoding="utf-8") as file:
                file.write(text)
        except OSError as error:
            raise StorageError(f"{target}: {error.strerror or error}", kind="io") from error

    def __reduce__(self) -> tuple[Any, ...]:
        values = (self.scores, self.rows, self.layers, self.certificate, None, self._places, self.ids)
        return Hits, values


def ids_of(backend: Backend, examples: NDArray[np.int64]) -> list[list[str | None]]:
    """The ids of examples ``[n, k]``, given by number; None for -1. Each example is looked up once."""
    numbers, places = np.unique(examples, return_inverse=True)
    n_missing = int(np.searchsorted(numbers, 0))
    names = np.empty(len(numbers), object)
    names[n_missing:] = backend.ids(numbers[n_missing:])
    ids: list[list[str | None]] = names[places.reshape(examples.shape)].tolist()
    return ids
