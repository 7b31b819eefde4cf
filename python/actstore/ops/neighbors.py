"""The exact nearest neighbors of each row."""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import new_array
from ..base.checks import check_k, one_of
from ..base.progress import Progress, shifted
from ..base.selection import int_position, is_int
from ..base.tables import Table
from ..base.text import count
from ..errors import InvalidInputError
from ..rows.backend import Backend
from ..rows.view import View
from .hits import Certificate, ids_of
from .scoring import ON_NAN, Scoring, metric_name
from .search import best_rows

METRICS = ("l2", "cos")
_QUERY_BYTES = 32 << 20
_MOST_QUERIES = 16_384


class Neighbor(NamedTuple):
    """One neighbor of a row: its distance and row id."""

    distance: float
    row: int


class Neighbors(Table):
    """The `k` nearest rows of each row of a view: distance ascending, then row ascending.

    ``len(neighbors)`` is the number of rows; ``neighbors[i]`` is the list of the neighbors of row i, each a
    `Neighbor`, without missing ones. Iteration yields these lists.

    Attributes
    ----------
    distances : array
        float32 ``[n, k]``: for l2 ||x - y||, for cos 1 - cos; inf where missing.
    rows : array
        int64 ``[n, k]``: row ids, which count in the whole store; for pooled sites, example numbers; -1 where
        missing.
    certificate : Certificate

    Examples
    --------
    >>> import actstore, numpy as np
    >>> nn = actstore.neighbors(np.array([[0.0], [1.0], [3.0]]), k=2)
    >>> nn.rows.tolist(), nn.distances.tolist()
    ([[1, 2], [0, 2], [1, 0]], [[1.0, 3.0], [1.0, 2.0], [2.0, 3.0]])
    >>> [near[0].row for near in nn]
    [1, 0, 1]
    """

    def __init__(
        self,
        distances: NDArray[np.float32],
        rows: NDArray[np.int64],
        certificate: Certificate,
        of: NDArray[np.int64],
        backend: Backend | None,
    ) -> None:
        self.distances, self.rows = distances, rows
        self.certificate = certificate
        self.of = of
        """int64 ``[n]``: the row ids of the rows whose neighbors these are."""
        self._backend = backend

    @property
    def ids(self) -> list[list[str | None]]:
        """The id of the example of each neighbor, ``[n][k]``; None where missing.

        Raises
        ------
        InvalidInputError
            When these neighbors were pickled.
        """
        if self._backend is None:
            raise InvalidInputError(
                "these neighbors were pickled and have no ids", hint="store.examples['id'][rows]"
            )
        self._backend.check_open()
        found = self.rows >= 0
        examples = np.full(self.rows.shape, -1, np.int64)
        examples[found] = self._backend.places(self.rows[found])[0]
        return ids_of(self._backend, examples)

    def __getitem__(self, row: int) -> list[Neighbor]:
        if not is_int(row):
            raise InvalidInputError(f"neighbors: expected the position of a row, got {row!r}")
        at = int_position(row, len(self), "neighbors: row")
        rows, distances = self.rows[at], self.distances[at]
        found = rows >= 0
        pairs = zip(distances[found].tolist(), rows[found].tolist(), strict=True)
        return [Neighbor(distance, number) for distance, number in pairs]

    def __iter__(self) -> Iterator[list[Neighbor]]:
        return (self[i] for i in range(len(self)))

    def __len__(self) -> int:
        return len(self.rows)

    def __repr__(self) -> str:
        n, k = self.rows.shape
        return f"Neighbors({count(n, 'row')}, k={k})"

    def to_columns(self) -> dict[str, Any]:
        """One row per neighbor, without missing ones: ``row``, ``rank``, ``neighbor``, ``distance``."""
        found = self.rows >= 0
        at, ranks = np.nonzero(found)
        return {
            "row": self.of[at],
            "rank": ranks,
            "neighbor": self.rows[found],
            "distance": self.distances[found],
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return Neighbors, (self.distances, self.rows, self.certificate, self.of, None)


def neighbors(
    self: View,
    k: int = 10,
    *,
    metric: str = "l2",
    on_nan: Literal["raise", "skip"] = "raise",
    threads: int = 0,
    progress: Progress | None = None,
) -> Neighbors:
    """The `k` nearest other rows of each row of this view; exact.

    A row is excluded from its own neighbors by its row id, so an equal row is a neighbor at distance 0.
    Several layers: for l2 (sum_l ||x_l - y_l||^2)^(1/2), for cos sum_l (1 - cos_l).

    Parameters
    ----------
    k : int
        Number of neighbors; when there are fewer other rows, the remaining neighbors are missing.
    metric : {"l2", "cos"}
        The distance, computed in float64 and rounded once to float32. Aliases as in `search`.
    on_nan : {"raise", "skip"}
        Whether rows with NaN raise an error or are skipped: they have no neighbors and are nobody's neighbor.
    threads : int
        0 means all cores.
    progress : callable, optional
        Called with the work done and the total, in rows times layers per block of queries.

    Returns
    -------
    Neighbors
        ``distances`` float32 and ``rows`` int64, ``[n, k]``: distance ascending, then row ascending.

    Raises
    ------
    InvalidInputError
        For a bad argument, rows with NaN, or a view that has a row twice.

    Examples
    --------
    >>> import actstore, numpy as np
    >>> site = actstore.from_array(np.array([[0, 0], [3, 4], [0, 1]], np.float32))
    >>> nn = site.neighbors(k=1)
    >>> nn.rows[:, 0].tolist(), nn.distances[:, 0].tolist()
    ([2, 2, 0], [1.0, 4.242640495300293, 1.0])
    """
    k = check_k(k, "neighbors")
    metric = metric_name(metric, "neighbors", METRICS)
    one_of(on_nan, ON_NAN, "neighbors: on_nan")
    n, n_layers, dim = self.shape
    if not n_layers or not dim:
        raise InvalidInputError(f"neighbors: {self.full_name} has no layers or no dims to compare")
    numbers = self.rows
    if len(np.unique(numbers)) < n:
        raise InvalidInputError(
            "neighbors: the view has a row twice, which leaves open which one to exclude as itself",
            hint="select each row once",
        )
    how = Scoring(metric, skip_nan=on_nan == "skip", distances=True)
    distances = new_array((n, k), np.dtype(np.float32), "neighbors: distances")
    rows = new_array((n, k), np.dtype(np.int64), "neighbors: rows")
    n_rescored = 0
    # Search for the rows of the view themselves, one block of queries at a time.
    step = int(min(_MOST_QUERIES, max(16, _QUERY_BYTES // (4 * n_layers * dim))))
    total = n * n_layers * -(-n // step)
    for start in range(0, n, step):
        stop = min(start + step, n)
        queries = self.take(range(start, stop)).read("float32", threads=threads)
        bad = np.isnan(queries).any(axis=(1, 2))
        queries[bad] = 0  # Either the search raises for these rows, or they get no neighbors below.
        done = shifted(progress, start // step * n * n_layers, total)
        scores, near, _, rescored = best_rows(self, queries, k + 1, how, threads, done)
        n_rescored += rescored
        # Drop the row itself; if more than k equal rows precede it, drop the last instead.
        own = near == numbers[start:stop, None]
        dropped = np.where(own.any(1), own.argmax(1), k)
        kept = np.arange(k + 1) != dropped[:, None]
        scores, near = scores[kept].reshape(-1, k), near[kept].reshape(-1, k)
        scores[bad], near[bad] = -np.inf, -1
        # 0 - x rather than -x: no negative zeros.
        distances[start:stop], rows[start:stop] = 0 - scores, near
    return Neighbors(distances, rows, Certificate(True, n, n_rescored), numbers, self.backend)
