"""Arrays in memory as what a site is a view of: what pooling gives, and what callers hand over."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .arrays import FLOAT_DTYPES, as_numpy, integers, new_array
from .errors import InvalidInputError, NotFoundError, ShapeError
from .layout import EXAMPLES, TOKENS
from .origin import Origin
from .selection import Rows, RowView, compact_rows, rows_array, take
from .view import View

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 20


class Names(Protocol):
    """Ids of examples by their numbers, and back."""

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """The ids of examples."""

    def number(self, name: str) -> int | None:
        """The example of this id; None when there is none, -1 when there are several."""

    def some(self, examples: NDArray[np.int64]) -> "Names":
        """Those of these examples, ascending, at least."""


class Positions:
    """Ids that are positions, of `n` examples."""

    def __init__(self, n: int) -> None:
        self._n = n

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """As text."""
        return [str(i) for i in examples.tolist()]

    def number(self, name: str) -> int | None:
        """If it is text of this kind."""
        number = int(name) if name.isascii() and name.isdecimal() else -1
        return number if 0 <= number < self._n and str(number) == name else None

    def some(self, examples: NDArray[np.int64]) -> Names:
        """All, for they take no room."""
        return self


class Known:
    """Ids of some examples.

    Parameters
    ----------
    numbers : range or array
        The examples' numbers, ``[n]``; one may come twice.
    names : sequence of str
        Their ids, ``[n]``.
    """

    def __init__(self, numbers: Rows, names: Sequence[str]) -> None:
        self.numbers, self.names = numbers, names
        self._by_number: dict[int, str] | None = None
        self._by_name: dict[str, int] | None = None

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """Of examples that are among those known."""
        if isinstance(self.numbers, range):
            first = self.numbers.start
            return [self.names[i - first] for i in examples.tolist()]
        if self._by_number is None:
            self._by_number = dict(zip(self.numbers.tolist(), self.names, strict=True))
        return [self._by_number[i] for i in examples.tolist()]

    def number(self, name: str) -> int | None:
        """If it is among those known."""
        if self._by_name is None:
            by_name: dict[str, int] = {}
            for number, known in zip(rows_array(self.numbers).tolist(), self.names, strict=True):
                if by_name.setdefault(known, number) != number:
                    by_name[known] = -1
            self._by_name = by_name
        return self._by_name.get(name)

    def some(self, examples: NDArray[np.int64]) -> Names:
        """No others."""
        return Known(compact_rows(examples), self.ids(examples))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.numbers, self.names)


class MemoryArray:
    """``[n, L, D]`` in memory, read as a stored array is."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, layers, dim."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """Its name."""
        return str(self.values.dtype.name)

    @property
    def chunk_rows(self) -> int:
        """Rows of a layer that come to about 1 MiB."""
        row_bytes: int = self.values.shape[2] * self.values.itemsize
        return max(1, _CHUNK_BYTES // max(1, row_bytes))

    def read(
        self,
        rows: tuple[int, int] | NDArray[np.int64],
        layers: Sequence[int] | None,
        out: NDArray[Any],
        threads: int = 0,
    ) -> None:
        """Rows of the layer positions into `out`, rounded once to its dtype."""
        picked = slice(None) if layers is None else list(layers)
        n_block = max(1, _BLOCK_BYTES // max(1, out[:1].nbytes))
        for start in range(0, len(out), n_block):
            stop = min(start + n_block, len(out))
            a_run = isinstance(rows, tuple)
            block = self.values[rows[0] + start : rows[0] + stop] if a_run else self.values[rows[start:stop]]
            with np.errstate(over="ignore"):
                out[start:stop] = block[:, picked]


class MemoryOrigin(Origin):
    """Rows in memory.

    Parameters
    ----------
    values : array
        ``[n, L, D]``, C-contiguous, of a float dtype.
    labels : sequence of int
        The layers'.
    names : Names
        The examples' ids.
    numbers : range or array, optional
        What the rows are called, ``[n]``: examples, if `ends` is not given.
    ends : array, optional
        int64 ``[n_examples + 1]``: where each example begins, for rows that are tokens.
    """

    def __init__(
        self,
        values: NDArray[Any],
        labels: Sequence[int],
        names: Names,
        numbers: Rows | None = None,
        ends: NDArray[np.int64] | None = None,
        recipe: dict[str, Any] | None = None,
        called: tuple[str, str, str] = ("array", "the array", "array in memory"),
    ) -> None:
        self.name, self.what, self.title = called
        self.labels = tuple(labels)
        self.axis = EXAMPLES if ends is None else TOKENS
        self._array = MemoryArray(values)
        self._names = names
        self._rows = range(len(values)) if numbers is None else numbers
        self._ends = ends
        self._recipe = recipe
        if isinstance(self._rows, range) and self._rows.start == 0:
            self.numbers = None
        else:
            self.numbers = rows_array(self._rows)

    @property
    def array(self) -> MemoryArray:
        return self._array

    @property
    def native(self) -> NDArray[Any]:
        return self._array.values

    @property
    def recipe(self) -> dict[str, Any] | None:
        return self._recipe

    def check_open(self) -> None:
        """It always is."""

    def pieces(self) -> list[tuple[int, int]]:
        return [(self._array.shape[0], self._array.chunk_rows)]

    def whole(self) -> RowView:
        n = len(self._rows)
        if self._ends is not None:
            return RowView(range(n), range(len(self._ends) - 1), self.offset)
        return RowView(range(n), self._rows, lambda: np.arange(n + 1))

    def offset(self) -> NDArray[np.int64]:
        assert self._ends is not None
        return self._ends

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        return self._names.ids(examples)

    def example_number(self, name: str) -> int:
        number = self._names.number(name)
        if number is None:
            raise NotFoundError(f"{self.what} has no example {name!r}")
        if number < 0:
            raise InvalidInputError(
                f"{self.what} has several examples {name!r}", hint="name it by its position"
            )
        return number

    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        raise NotFoundError(f"{self.what} has no column {name!r}: it lies in memory and has none")

    def example_column(self, name: str) -> NDArray[Any]:
        if self.made_of is not None:  # Examples are called as they are there.
            return self.made_of.origin.example_column(name)
        raise NotFoundError(f"{self.what} has no column {name!r}: it lies in memory and has none")

    def pickled(
        self, view: RowView, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """By value: the view's rows and layers alone."""
        rows = view.rows
        values = np.empty((len(rows), len(layers), self._array.shape[2]), self.dtype)
        if values.size:
            self._array.read((rows.start, rows.stop) if isinstance(rows, range) else rows, layers, values)
        labels = [self.labels[i] for i in layers]
        called = (self.name, self.what, self.title)
        numbers = take(self._rows, rows)
        names = self._names.some(np.union1d(rows_array(numbers), rows_array(view.examples)))
        return MemoryOrigin, (values, labels, names, numbers, self._ends, self._recipe, called), True


def array_origin(array: Any, offset: Any = None) -> MemoryOrigin:
    """A plain array as the origin of a site: each row an example, or as `offset` says.

    Parameters
    ----------
    array : array ``[n, D]`` or ``[n, L, D]``
        numpy, ml_dtypes, torch or a memory map; used in place when it is C-contiguous, else copied.
    offset : sequence of int, optional
        Where each example begins, ``[n_examples + 1]``.

    Raises
    ------
    ShapeError, InvalidInputError
        When it is no array of floats of this shape, or the offsets are none.
    """
    if isinstance(array, View):  # As an array it would be read whole.
        raise InvalidInputError("array: got a site", hint="sites have search, scan and pool themselves")
    values = as_numpy(array, "array")
    if values.ndim not in (2, 3):
        raise ShapeError(f"array: expected [n, D] or [n, L, D], got {list(values.shape)}")
    if values.dtype.name not in FLOAT_DTYPES:
        raise InvalidInputError(f"array: dtype {values.dtype} is none of {', '.join(FLOAT_DTYPES)}")
    if values.ndim == 2:
        values = values[:, None]
    if not (values.flags.c_contiguous and values.flags.aligned):
        packed = new_array(values.shape, values.dtype, "a contiguous copy of the array")
        packed[...] = values
        values = packed
    n, labels = len(values), range(values.shape[1])
    if offset is None:
        return MemoryOrigin(values, labels, Positions(n))
    ends = integers(offset, "offset")
    if not ends.size or ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] != n:
        shown = ends.tolist() if ends.size <= 8 else f"[{ends[0]}, ..., {ends[-1]}]"
        raise InvalidInputError(f"offset: expected to rise from 0 to the {n} rows there are, got {shown}")
    return MemoryOrigin(values, labels, Positions(len(ends) - 1), None, ends)
