"""The nearest rows of each row, exact; the contract is that of `Site.neighbors`."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import new_array
from .errors import InvalidInputError
from .hits import Certificate
from .origin import Origin
from .search import Scoring, best_rows, check_k
from .view import Progress, View, one_of, shifted

METRICS = ("l2", "cos")
_QUERY_BYTES = 32 << 20
_MOST_QUERIES = 16_384


class Neighbors:
    """The `k` nearest rows of each row of a view, nearest first: distance ascending, then row ascending.

    ``distances, rows = neighbors`` unpacks them.

    Attributes
    ----------
    distances : array
        float32 ``[n, k]``: of l2 not squared, of cos 1 - cos; inf where there are fewer rows than that.
    rows : array
        int64 ``[n, k]``: rows as they count in the whole store, of pooled sites example numbers; -1 where
        missing.
    certificate : Certificate

    Examples
    --------
    >>> import actstore, numpy as np
    >>> nn = actstore.neighbors(np.array([[0.0], [1.0], [3.0]]), k=2)
    >>> nn.rows.tolist(), nn.distances.tolist()
    ([[1, 2], [0, 2], [1, 0]], [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]])
    """

    def __init__(
        self,
        distances: NDArray[np.float32],
        rows: NDArray[np.int64],
        certificate: Certificate,
        origin: Origin,
    ) -> None:
        self.distances, self.rows = distances, rows
        self.certificate = certificate
        self._origin: Origin | None = origin

    @property
    def ids(self) -> list[list[str | None]]:
        """The id of the example of each neighbour, ``[n][k]``; None where missing."""
        if self._origin is None:
            raise InvalidInputError(
                "neighbours that were pickled have no ids", hint="store.examples['id'][rows]"
            )
        self._origin.check_open()
        there = self.rows >= 0
        names = np.full(self.rows.shape, None, object)
        found, places = np.unique(self._origin.places(self.rows[there])[0], return_inverse=True)
        some = np.empty(len(found), object)
        some[:] = self._origin.ids(found)
        names[there] = some[places]
        ids: list[list[str | None]] = names.tolist()
        return ids

    def __iter__(self) -> Any:
        return iter((self.distances, self.rows))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n, k = self.rows.shape
        return f"Neighbors({n} rows, k={k})"

    def __reduce__(self) -> tuple[Any, ...]:
        return _unpickled, (self.distances, self.rows, self.certificate)


def _unpickled(
    distances: NDArray[np.float32], rows: NDArray[np.int64], certificate: Certificate
) -> Neighbors:
    found = Neighbors.__new__(Neighbors)
    found.distances, found.rows, found.certificate, found._origin = distances, rows, certificate, None
    return found


def neighbors_view(
    view: View, k: int, metric: str, on_nan: str, threads: int, progress: Progress | None
) -> Neighbors:
    """`Site.neighbors` of any view."""
    k = check_k(k, "neighbors")
    one_of(metric, METRICS, "neighbors: metric")
    one_of(on_nan, ("raise", "skip"), "neighbors: on_nan")
    n, n_layers, dim = view.shape
    if not n_layers or not dim:
        raise InvalidInputError(f"{view._what}: there is nothing to compare")
    numbers = view.rows
    if len(np.unique(numbers)) < n:
        raise InvalidInputError(
            "neighbors: rows of the view come more than once: which of them is left out as itself?",
            hint="select each row once",
        )
    how = Scoring(metric, skip_nan=on_nan == "skip", distances=True)
    distances = new_array((n, k), np.dtype(np.float32), "neighbors: distances")
    rows = new_array((n, k), np.dtype(np.int64), "neighbors: rows")
    n_rescored = 0
    # Queries are rows too: a block of them at a time, against all.
    step = int(min(_MOST_QUERIES, max(16, _QUERY_BYTES // (4 * n_layers * dim))))
    total = n * n_layers * -(-n // step)
    for start in range(0, n, step):
        stop = min(start + step, n)
        part = View(view._origin, view._layers, view._view.take_rows(range(start, stop)))
        queries = part.read("float32", threads=threads)
        bad = np.isnan(queries).any(axis=(1, 2))
        queries[bad] = 0  # Rows that have NaN are refused by the search, or have no neighbours.
        scores, found, _, rescored = best_rows(
            view, queries, k + 1, how, threads, shifted(progress, start // step * n * n_layers, total)
        )
        n_rescored += rescored
        own = found == numbers[start:stop, None]
        # Itself is among the nearest, or so many equal ones are that the last one goes.
        lost = np.where(own.any(1), own.argmax(1), k)
        kept = np.arange(k + 1) != lost[:, None]
        scores, found = scores[kept].reshape(-1, k), found[kept].reshape(-1, k)
        scores[bad], found[bad] = -np.inf, -1
        # Not -0.
        distances[start:stop], rows[start:stop] = 0 - scores, found
    return Neighbors(distances, rows, Certificate(True, n, n_rescored), view._origin)
