"""From what stands in brackets to row numbers and layer positions.

A contiguous run of rows stays a ``range`` all the way down, where it is read as one; anything
else is an int64 array of row numbers.
"""

import operator
from collections.abc import Callable, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from . import _native
from .arrays import as_numpy
from .errors import InvalidInputError, NotFoundError, ShapeError

Rows = range | NDArray[np.int64]
"""Row numbers: a ``range`` of step 1, or an array ``[n]`` in any order."""


def is_int(key: object) -> bool:
    """Whether `key` is one number, of Python or numpy; True and False are not."""
    if isinstance(key, bool | np.bool_):
        return False
    return isinstance(key, int | np.integer) or (
        isinstance(key, np.ndarray) and key.ndim == 0 and key.dtype.kind in "iu"
    )


def take(rows: Rows, positions: Rows) -> Rows:
    """``rows[positions]``, for positions in range."""
    if isinstance(positions, range):
        return rows[positions.start : positions.stop]
    if isinstance(rows, range):
        return compact_rows(positions + rows.start)
    return compact_rows(rows[positions])


def compact_rows(rows: NDArray[np.int64]) -> Rows:
    """A ``range`` if the rows are one, else the rows."""
    n = len(rows)
    if n == 0:
        return range(0)
    first, last = int(rows[0]), int(rows[-1])
    if last - first == n - 1 and (n < 3 or bool((np.diff(rows) == 1).all())):
        return range(first, last + 1)
    return rows


def rows_array(rows: Rows) -> NDArray[np.int64]:
    """The row numbers as int64 ``[n]``."""
    return np.arange(rows.start, rows.stop) if isinstance(rows, range) else rows


def native_rows(rows: Rows) -> tuple[int, int] | NDArray[np.int64]:
    """Rows as the native core takes them: a half-open range if they are one, else a list."""
    if not isinstance(rows, range):
        rows = compact_rows(rows)
    return (rows.start, rows.stop) if isinstance(rows, range) else np.ascontiguousarray(rows)


def index_positions(key: Any, n: int, what: str) -> Rows:
    """The positions among `n` that a slice, mask, list or array means, as numpy has it.

    Raises
    ------
    InvalidInputError, ShapeError
        When it is out of range, a mask of another length, or no index.
    """
    if isinstance(key, slice):
        try:
            start, stop, step = key.indices(n)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{what}: {key} is no slice of rows: {error}") from error
        if step == 1:
            return range(start, max(start, stop))
        return compact_rows(np.arange(start, stop, step))
    if isinstance(key, range) and key.step == 1 and 0 <= key.start <= key.stop <= n:
        return key
    if isinstance(key, bool | np.bool_ | str | bytes) or key is None:
        raise InvalidInputError(f"{what}: {key!r} is no index")
    array = as_numpy(key, what)
    if array.ndim != 1:
        raise ShapeError(f"{what}: expected an index of one axis, got shape {list(array.shape)}")
    if array.dtype == np.bool_:
        if array.shape[0] != n:
            raise ShapeError(f"{what}: expected a mask [{n}], got [{array.shape[0]}]")
        return compact_rows(np.flatnonzero(array))
    if array.size == 0:
        return range(0)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: an index is of integers or booleans, got {array.dtype}")
    if array.dtype == np.uint64:  # What is beyond int64 is out of range.
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    key = array.astype(np.int64, copy=False)
    found = _native.positions(key, n)
    if found is None:
        wrong = array[(key < -n) | (key >= n)][0]
        raise InvalidInputError(f"{what}: {wrong} is out of range, there are {n}")
    return range(*found) if isinstance(found, tuple) else found


def int_position(key: Any, n: int, what: str) -> int:
    """One position among `n`; negative ones count from the end.

    Raises
    ------
    InvalidInputError
        When it is out of range.
    """
    position = operator.index(key)
    if not -n <= position < n:
        raise InvalidInputError(f"{what}: {position} is out of range, there are {n}")
    return position % n


def layer_positions(key: Any, labels: Sequence[int], what: str) -> list[int]:
    """The positions of layers named by an int, a list of ints or a half-open slice of labels.

    A negative int counts from the last label. A slice takes, in stored order, the labels between its
    bounds, and of these every step-th.

    Raises
    ------
    NotFoundError
        Naming a label that is not there, and those that are.
    InvalidInputError
        When it is no such thing.
    """
    if isinstance(key, slice):
        return _layer_slice(key, labels, what)
    if is_int(key):
        return [_layer_position(operator.index(key), labels, what)]
    if isinstance(key, str | bytes) or key is None:
        raise InvalidInputError(f"{what}: layers are ints, got {key!r}")
    array = as_numpy(key, f"{what}: layers")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(
            f"{what}: layers are an int, a list of ints or a slice of labels, got {key!r}"
        )
    return [_layer_position(label, labels, what) for label in array.tolist()]


def _layer_position(label: int, labels: Sequence[int], what: str) -> int:
    if -len(labels) <= label < 0:
        return label % len(labels)
    try:
        return labels.index(label)
    except ValueError:
        shown = ", ".join(map(str, labels[:64])) + (", ..." if len(labels) > 64 else "")
        raise NotFoundError(f"{what} has no layer {label}, it has: {shown or 'none'}") from None


def _layer_slice(key: slice, labels: Sequence[int], what: str) -> list[int]:
    bounds = (key.start, key.stop, 1 if key.step is None else key.step)
    if not all(bound is None or is_int(bound) for bound in bounds) or bounds[2] == 0:
        raise InvalidInputError(f"{what}: {key} is no slice of labels")
    step = operator.index(bounds[2])
    start, stop = (_layer_bound(bound, labels) for bound in bounds[:2])
    if step > 0:
        inside = [(start is None or x >= start) and (stop is None or x < stop) for x in labels]
    else:
        inside = [(start is None or x <= start) and (stop is None or x > stop) for x in labels]
    return [i for i, yes in enumerate(inside) if yes][::step]


def _layer_bound(bound: Any, labels: Sequence[int]) -> int | None:
    if bound is None:
        return None
    label = operator.index(bound)
    if label >= 0 or not labels:
        return label
    return labels[label] if -label <= len(labels) else -1


class RowView:
    """The rows of a view, and the examples they belong to.

    Parameters
    ----------
    rows : range or array
        Row numbers in the whole store.
    examples : range or array
        Example numbers in the whole store, one for each example of the view.
    offset : callable
        Gives int64 ``[n_examples + 1]``: where in the view each example begins; called when needed.
    owner : array, optional
        int64 ``[n_rows]``: the position in `examples` of each row's example, where picked rows
        do not stand example by example and `offset` cannot say.
    """

    __slots__ = ("_offset", "examples", "owner", "rows")

    def __init__(
        self,
        rows: Rows,
        examples: Rows,
        offset: Callable[[], NDArray[np.int64]],
        owner: NDArray[np.int64] | None = None,
    ) -> None:
        self.rows = rows
        self.examples = examples
        self._offset = offset
        self.owner = owner

    def grouped(self) -> tuple[NDArray[np.int64] | None, NDArray[np.int64]]:
        """An order (None: as they are) in which rows stand example by example, and offsets into it."""
        if self.owner is None:
            return None, self._offset()
        order = np.argsort(self.owner, kind="stable")
        return order, np.searchsorted(self.owner[order], np.arange(len(self.examples) + 1))

    def take_examples(self, positions: Rows) -> Self:
        """The view of some of its examples."""
        order, offset = self.grouped()
        examples = take(self.examples, positions)
        if isinstance(positions, range) and order is None:
            start, stop = int(offset[positions.start]), int(offset[positions.stop])
            ends = offset[positions.start : positions.stop + 1] - start
            return type(self)(self.rows[start:stop], examples, lambda: ends)
        at = rows_array(positions)
        lengths = offset[at + 1] - offset[at]
        ends = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        picked = np.arange(ends[-1]) + np.repeat(offset[at] - ends[:-1], lengths)
        if order is not None:
            picked = order[picked]
        return type(self)(take(self.rows, compact_rows(picked)), examples, lambda: ends)

    def take_rows(self, positions: Rows) -> Self:
        """The view of some of its rows; its examples stay, some with fewer rows or none."""
        rows = take(self.rows, positions)
        if self.owner is not None:
            owner = (
                self.owner[positions.start : positions.stop]
                if isinstance(positions, range)
                else self.owner[positions]
            )
        elif isinstance(positions, range):
            parent, start, stop = self._offset, positions.start, positions.stop
            return type(self)(rows, self.examples, lambda: np.clip(parent(), start, stop) - start)
        else:
            owner = np.searchsorted(self._offset(), positions, side="right") - 1
        if (np.diff(owner) >= 0).all():
            ends = np.searchsorted(owner, np.arange(len(self.examples) + 1))
            return type(self)(rows, self.examples, lambda: ends)
        return type(self)(rows, self.examples, self._offset, owner)
