"""Arrays in memory as backends: results of pooling and transforms, and arrays given by users."""

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from ..base.arrays import FLOAT_DTYPES, as_numpy, integers, new_array
from ..base.checks import check_threads
from ..base.selection import Rows, compact_rows, rows_array, take
from ..disk.layout import EXAMPLES, TOKENS
from ..errors import InvalidInputError, NotFoundError, ShapeError
from .backend import Backend
from .rowset import RowSet
from .view import View

_CHUNK_BYTES = 1 << 20
_BLOCK_BYTES = 64 << 20


class ExampleIds(Protocol):
    """The ids of examples by number, and the numbers by id."""

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """The ids of examples."""

    def number(self, name: str) -> int | None:
        """The number of the example with this id; None if no example has it, -1 if several have it."""

    def subset(self, examples: NDArray[np.int64]) -> "ExampleIds":
        """The ids of at least these examples, which are in ascending order."""


class PositionIds:
    """The positions of `n` examples as their ids."""

    def __init__(self, n: int) -> None:
        self._n = n

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """Positions as text."""
        return [str(i) for i in examples.tolist()]

    def number(self, name: str) -> int | None:
        """The position, if the text is one."""
        number = int(name) if name.isascii() and name.isdecimal() else -1
        return number if 0 <= number < self._n and str(number) == name else None

    def subset(self, examples: NDArray[np.int64]) -> ExampleIds:
        """Itself, since it takes no memory."""
        return self


class KnownIds:
    """The given ids of some examples.

    Parameters
    ----------
    numbers : range or array
        Numbers of the examples, ``[n]``; one may repeat.
    names : sequence of str
        Their ids, ``[n]``.
    """

    def __init__(self, numbers: Rows, names: Sequence[str]) -> None:
        self.numbers, self.names = numbers, names
        self._by_number: dict[int, str] | None = None
        self._by_name: dict[str, int] | None = None

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        """Ids of known examples."""
        if isinstance(self.numbers, range):
            first = self.numbers.start
            return [self.names[i - first] for i in examples.tolist()]
        if self._by_number is None:
            self._by_number = dict(zip(self.numbers.tolist(), self.names, strict=True))
        return [self._by_number[i] for i in examples.tolist()]

    def number(self, name: str) -> int | None:
        """The number of a known example."""
        if self._by_name is None:
            by_name: dict[str, int] = {}
            for number, known in zip(rows_array(self.numbers).tolist(), self.names, strict=True):
                if by_name.setdefault(known, number) != number:
                    by_name[known] = -1
            self._by_name = by_name
        return self._by_name.get(name)

    def subset(self, examples: NDArray[np.int64]) -> ExampleIds:
        """The ids of these examples only."""
        return KnownIds(compact_rows(examples), self.ids(examples))

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (self.numbers, self.names)


class MemoryArray:
    """``[n, L, D]`` in memory, with the interface of a stored array."""

    def __init__(self, values: NDArray[Any]) -> None:
        self.values = values

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows, layers, dim."""
        return self.values.shape

    @property
    def dtype(self) -> str:
        """The name of the dtype."""
        return str(self.values.dtype.name)

    @property
    def chunk_rows(self) -> int:
        """Rows of one layer in about 1 MiB."""
        row_bytes: int = self.values.shape[2] * self.values.itemsize
        return max(1, _CHUNK_BYTES // max(1, row_bytes))

    def read(
        self,
        rows: tuple[int, int] | NDArray[np.int64],
        layers: Sequence[int] | None,
        out: NDArray[Any],
        threads: int = 0,
    ) -> None:
        """Read rows at these positions of layers into `out`, rounded once to its dtype."""
        check_threads(threads)
        picked = slice(None) if layers is None else list(layers)
        n_block = max(1, _BLOCK_BYTES // max(1, out[:1].nbytes))
        for start in range(0, len(out), n_block):
            stop = min(start + n_block, len(out))
            is_range = isinstance(rows, tuple)
            at = slice(rows[0] + start, rows[0] + stop) if is_range else rows[start:stop]
            block = self.values[at]
            with np.errstate(over="ignore"):
                out[start:stop] = block[:, picked]


class _InMemory(Backend):
    """A backend whose values are in memory, in `_array`."""

    _array: MemoryArray

    @property
    def array(self) -> MemoryArray:
        return self._array

    @property
    def native(self) -> NDArray[Any]:
        return self._array.values

    def check_open(self) -> None:
        """Always open."""

    def pieces(self) -> list[tuple[int, int]]:
        return [(self._array.shape[0], self._array.chunk_rows)]


class MemoryBackend(_InMemory):
    """Rows in memory.

    Parameters
    ----------
    values : array
        ``[n, L, D]``, C-contiguous, of a float dtype.
    labels : sequence of int
        Labels of the layers, ``[L]``.
    names : ExampleIds
        Ids of the examples.
    numbers : range or array, optional
        Row ids ``[n]``; by default positions. Without `ends`, these are the numbers of the examples.
    ends : array, optional
        int64 ``[n_examples + 1]``: where each example starts, if rows are tokens.
    recipe : dict, optional
        How the values were computed.
    titles : tuple of str
        The attributes `name`, `what` and `title`.
    columns : mapping of str to array, optional
        Columns over the rows, ``[n]``.
    example_columns : mapping of str to array, optional
        Columns over the examples, by their numbers.
    """

    def __init__(
        self,
        values: NDArray[Any],
        labels: Sequence[int],
        names: ExampleIds,
        numbers: Rows | None = None,
        ends: NDArray[np.int64] | None = None,
        recipe: dict[str, Any] | None = None,
        titles: tuple[str, str, str] = ("array", "the array", "array in memory"),
        columns: Mapping[str, NDArray[Any]] = MappingProxyType({}),
        example_columns: Mapping[str, NDArray[Any]] = MappingProxyType({}),
    ) -> None:
        self.name, self.what, self.title = titles
        self.labels = tuple(labels)
        self.axis = EXAMPLES if ends is None else TOKENS
        self._array = MemoryArray(values)
        self._names = names
        self._rows = range(len(values)) if numbers is None else numbers
        self._ends = ends
        self._recipe = recipe
        self._columns, self._example_columns = dict(columns), dict(example_columns)
        if isinstance(self._rows, range) and self._rows.start == 0:
            self.numbers = None
        else:
            self.numbers = rows_array(self._rows)

    @property
    def recipe(self) -> dict[str, Any] | None:
        return self._recipe

    def whole(self) -> RowSet:
        n = len(self._rows)
        if self._ends is not None:
            return RowSet(range(n), range(len(self._ends) - 1), self.offsets)
        return RowSet(range(n), self._rows, lambda: np.arange(n + 1))

    def offsets(self) -> NDArray[np.int64]:
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
                f"{self.what} has several examples {name!r}", hint="give its position instead"
            )
        return number

    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        if name not in self._columns:
            raise NotFoundError(
                f"{self.what} has no column {name!r}, it has: {', '.join(self._columns) or 'none'}"
            )
        column = self._columns[name]
        return column[rows.start : rows.stop] if isinstance(rows, range) else column[rows]

    def example_column(self, name: str) -> NDArray[Any]:
        if name in self._example_columns:
            return self._example_columns[name]
        if self.pool_source is not None:  # The source has the same example numbers.
            return self.pool_source.backend.example_column(name)
        raise NotFoundError(
            f"{self.what} has no column {name!r}, it has: {', '.join(self._example_columns) or 'none'}"
        )

    def pickled(
        self, rowset: RowSet, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """By value: only these rows and layers."""
        rows = rowset.rows
        values = read_values(self._array, rows, layers, self.dtype)
        labels = [self.labels[i] for i in layers]
        titles = (self.name, self.what, self.title)
        numbers = take(self._rows, rows)
        examples = rows_array(rowset.examples)
        if self.axis == EXAMPLES:
            examples = np.union1d(examples, rows_array(numbers))
        names = self._names.subset(np.unique(examples))
        columns = {name: self.column(name, rows) for name in self._columns}
        arguments = (values, labels, names, numbers, self._ends, self._recipe, titles)
        return MemoryBackend, (*arguments, columns, self._example_columns), True


class MappedBackend(_InMemory):
    """New values ``[n, L, D']`` for the rows of a view, which keep their ids, examples and columns.

    Parameters
    ----------
    view : View ``[n, L, D]``
        The original rows.
    values : array ``[n, L, D']``
        C-contiguous, of a float dtype.
    how : str
        The name of the transform in messages: ``"whitened"``.
    """

    def __init__(self, view: View, values: NDArray[Any], how: str) -> None:
        parent = view.backend
        self.name, self.axis = view.name, parent.axis
        self.what, self.title = f"{parent.what} ({how})", f"{parent.title}, {how}"
        self.labels = tuple(view.layers)
        self.about = parent.about
        self.numbers = view.rows
        self._view, self._array, self._how = view, MemoryArray(values), how

    @property
    def recipe(self) -> dict[str, Any] | None:
        return None

    def whole(self) -> RowSet:
        rowset = self._view.rowset
        return rowset.renumbered(range(len(rowset.rows)))

    def offsets(self) -> NDArray[np.int64]:
        return self._view.backend.offsets()

    def ids(self, examples: NDArray[np.int64]) -> list[str]:
        return self._view.backend.ids(examples)

    def example_number(self, name: str) -> int:
        return self._view.backend.example_number(name)

    def column(self, name: str, rows: Rows) -> NDArray[Any]:
        return self._view.backend.column(name, take(self._view.rowset.rows, rows))

    def example_column(self, name: str) -> NDArray[Any]:
        return self._view.backend.example_column(name)

    def pickled(
        self, rowset: RowSet, layers: Sequence[int]
    ) -> tuple[Callable[..., Any], tuple[Any, ...], bool]:
        """By value: only these rows and layers."""
        own = [self._view.layer_positions[i] for i in layers]
        view = View(self._view.backend, own, self._view.rowset).take(rowset.rows)
        return (
            MappedBackend,
            (view, read_values(self._array, rowset.rows, layers, self.dtype), self._how),
            True,
        )


def read_values(array: MemoryArray, rows: Rows, layers: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """A copy of some rows and layers."""
    values = np.empty((len(rows), len(layers), array.shape[2]), dtype)
    if values.size:
        array.read((rows.start, rows.stop) if isinstance(rows, range) else rows, layers, values)
    return values


def array_backend(
    array: Any,
    offsets: Any = None,
    *,
    ids: Sequence[str] | None = None,
    labels: Sequence[int] | None = None,
    columns: Mapping[str, Any] | None = None,
    token_columns: Mapping[str, Any] | None = None,
    titles: tuple[str, str, str] = ("array", "the array", "array in memory"),
) -> MemoryBackend:
    """A plain array as a backend; see `actstore.from_array`."""
    if isinstance(array, View):
        raise InvalidInputError(
            "array: got a site, expected an array",
            hint="a site has these operations as methods, and its own offsets",
        )
    if array is None or isinstance(array, str | bytes | Mapping):
        is_store = isinstance(array, Mapping)
        raise InvalidInputError(
            f"array: expected an array, got {type(array).__name__}",
            hint="a store holds its arrays as sites: store['resid']" if is_store else None,
        )
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
    n, n_layers = len(values), values.shape[1]
    ends = None
    if offsets is not None:
        ends = integers(offsets, "offsets")
        if not ends.size or ends[0] != 0 or (np.diff(ends) < 0).any() or ends[-1] != n:
            shown = ends.tolist() if ends.size <= 8 else f"[{ends[0]}, ..., {ends[-1]}]"
            raise InvalidInputError(
                f"offsets: expected ascending ints from 0 to {n}, the number of rows, got {shown}"
            )
    n_examples = n if ends is None else len(ends) - 1
    example_columns = _columns(columns, n_examples, "columns", "example")
    row_columns = _columns(token_columns, n, "token_columns", "row")
    if ends is None:
        example_columns |= row_columns
    return MemoryBackend(
        values,
        _layer_labels(labels, n_layers),
        _example_ids(ids, n_examples),
        None,
        ends,
        None,
        titles,
        row_columns,
        example_columns,
    )


def _layer_labels(labels: Sequence[int] | None, n_layers: int) -> list[int]:
    if labels is None:
        return list(range(n_layers))
    chosen: list[int] = integers(labels, "labels").tolist()
    if len(chosen) != n_layers:
        raise ShapeError(f"labels: expected {n_layers}, one for each layer, got {len(chosen)}")
    if len(set(chosen)) != len(chosen) or min(chosen, default=0) < 0:
        raise InvalidInputError(f"labels: expected distinct ints from 0, got {chosen}")
    return chosen


def _example_ids(ids: Sequence[str] | None, n_examples: int) -> ExampleIds:
    if ids is None:
        return PositionIds(n_examples)
    names = list(ids)
    if len(names) != n_examples:
        raise ShapeError(f"ids: expected {n_examples}, one for each example, got {len(names)}")
    seen: set[str] = set()
    for name in names:
        if not isinstance(name, str):
            raise InvalidInputError(f"ids: expected distinct strings, got {name!r}")
        if name in seen:
            raise InvalidInputError(f"ids: expected distinct strings, {name!r} occurs twice")
        seen.add(name)
    return KnownIds(range(n_examples), [str(name) for name in names])  # np.str_ becomes str.


def _columns(columns: Mapping[str, Any] | None, n: int, what: str, of: str) -> dict[str, NDArray[Any]]:
    arrays: dict[str, NDArray[Any]] = {}
    for name, given in (columns or {}).items():
        column = as_numpy(given, f"{what}[{name!r}]")
        if column.shape != (n,):
            raise ShapeError(f"{what}[{name!r}]: expected [{n}], one for each {of}, got {list(column.shape)}")
        if column.dtype.kind in "SUO":
            column = np.array([str(value) for value in column.tolist()], object)
        arrays[name] = column
    return arrays
