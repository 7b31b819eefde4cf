"""Where the rows of a view are: an array of a store (`rows.stored`) or one in memory (`rows.memory`)."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..base.arrays import FLOAT_DTYPES
from ..base.lazy import lazy
from ..base.selection import Rows, rows_array
from ..disk.layout import EXAMPLES
from .rowset import RowSet


@dataclass(frozen=True, eq=False)
class PoolSource:
    """The rows that were pooled: row i pools ``rows[offsets[i]:offsets[i + 1]]`` of `backend`."""

    backend: "Backend"
    rows: Rows
    offsets: NDArray[np.int64]


class Backend(ABC):
    """An array ``[n, L, D]`` with the labels of its layers and the examples of its rows; immutable.

    Attributes
    ----------
    name : str
        The site's name.
    what : str
        The site in messages: ``site 'resid' of run.act``.
    title : str
        The site in a repr: ``'resid' of 'run.act'``.
    axis : str
        What the rows are: `tokens`, another axis, or `examples`.
    labels : tuple of int
        One per layer of the array.
    numbers : array, optional
        int64 ``[n]``: row ids; None when they equal positions in the array.
    recipe : dict, optional
        For a derived site, how the array was computed.
    about : dict
        Metadata that the writer recorded for the site.
    norms : dict
        A cache: the norms of all rows after whitening, ``[n, L]``, by digest of the whitener.
    pool_source : PoolSource, optional
        For rows pooled in memory, the rows that were pooled.
    """

    name: str
    what: str
    title: str
    axis: str
    labels: tuple[int, ...]
    numbers: NDArray[np.int64] | None = None
    about: Mapping[str, Any] = MappingProxyType({})
    pool_source: PoolSource | None = None

    @lazy
    def norms(self) -> dict[str, NDArray[np.float64]]:
        """The cache, empty at first."""
        return {}

    @property
    @abstractmethod
    def array(self) -> Any:
        """The array, with the `shape`, `dtype`, `chunk_rows` and `read` of ``_native.Array``."""

    @property
    @abstractmethod
    def native(self) -> _native.Array | NDArray[Any]:
        """The array in the form that native functions take."""

    @property
    @abstractmethod
    def recipe(self) -> dict[str, Any] | None: ...

    @abstractmethod
    def check_open(self) -> None:
        """Raise StorageError (kind ``closed``) if the store has been closed."""

    @abstractmethod
    def pieces(self) -> list[tuple[int, int]]:
        """The number of rows and the rows per chunk of each part, in order."""

    @abstractmethod
    def whole(self) -> RowSet:
        """All rows."""

    @abstractmethod
    def offsets(self) -> NDArray[np.int64]:
        """Where each example starts, int64 ``[n_examples + 1]``; only for an axis other than `examples`."""

    @abstractmethod
    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """Ids of examples, given their numbers."""

    @abstractmethod
    def example_number(self, name: str) -> int:
        """The number of the example with this id; NotFoundError when there is none."""

    @abstractmethod
    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        """A column over the rows' axis, at these rows; NotFoundError when there is none."""

    @abstractmethod
    def example_column(self, name: str) -> NDArray[Any]:
        """A column over all examples; NotFoundError when there is none."""

    @abstractmethod
    def pickled(
        self, rowset: RowSet, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """A callable and its arguments to rebuild it, and whether it then has only these rows and layers."""

    def rows_pooled_into(self, row: int) -> tuple["Backend", NDArray[np.int64]] | None:
        """The backend and rows that were pooled into this row; None when they are not available."""
        source = self.pool_source
        if source is None:
            return None
        return source.backend, rows_array(
            source.rows[int(source.offsets[row]) : int(source.offsets[row + 1])]
        )

    @property
    def dtype(self) -> np.dtype[Any]:
        """The stored dtype."""
        return FLOAT_DTYPES[self.array.dtype]

    def numbers_of(self, rows: Rows) -> NDArray[np.int64]:
        """Row ids, int64 ``[n]``, of rows of the array."""
        at = rows_array(rows)
        return at if self.numbers is None else self.numbers[at]

    def places(self, numbers: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """For each row id, the number of its example and its position in that example."""
        if self.axis == EXAMPLES:
            return numbers, np.zeros_like(numbers)
        offsets = self.offsets()
        # side="right": an empty example starts where the next one does.
        examples = np.searchsorted(offsets, numbers, side="right").astype(np.int64) - 1
        return examples, numbers - offsets[examples]
