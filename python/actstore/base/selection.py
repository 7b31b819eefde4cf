"""Conversion of index expressions to row numbers and layer positions.

A contiguous run of rows is kept as a ``range`` down to the native core, which reads it in one piece. Any
other selection is an int64 array of row numbers.
"""

import operator
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import _native
from ..errors import InvalidInputError, NotFoundError, ShapeError
from .arrays import as_numpy

Rows = range | NDArray[np.int64]
"""Row numbers: a ``range`` of step 1, or an array ``[n]`` in any order."""


def is_int(key: object) -> bool:
    """Whether `key` is a single Python or numpy integer; booleans are not."""
    if isinstance(key, bool | np.bool_):
        return False
    return isinstance(key, int | np.integer) or (
        isinstance(key, np.ndarray) and key.ndim == 0 and key.dtype.kind in "iu"
    )


def take(rows: Rows, positions: Rows) -> Rows:
    """``rows[positions]``; all positions must be in range."""
    if isinstance(positions, range):
        return rows[positions.start : positions.stop]
    if isinstance(rows, range):
        return compact_rows(positions + rows.start)
    return compact_rows(rows[positions])


def compact_rows(rows: NDArray[np.int64]) -> Rows:
    """The rows as a ``range`` if they are contiguous and ascending, else unchanged."""
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
    """The rows for the native core: a half-open range ``(start, stop)`` if contiguous, else int64 ``[n]``."""
    if not isinstance(rows, range):
        rows = compact_rows(rows)
    return (rows.start, rows.stop) if isinstance(rows, range) else np.ascontiguousarray(rows)


def index_positions(key: Any, n: int, what: str) -> Rows:
    """The positions in ``0..n-1`` that `key` selects, with numpy's indexing semantics.

    Parameters
    ----------
    key : slice, range, boolean mask ``[n]``, list or array of int
    n : int
        Length of the indexed axis.
    what : str
        What is indexed; error messages start with it.

    Raises
    ------
    ShapeError
        When `key` has more than one axis, or is a mask of the wrong length.
    InvalidInputError
        When a position is out of range, or `key` is not an index.
    """
    if isinstance(key, slice):
        try:
            start, stop, step = key.indices(n)
        except (TypeError, ValueError) as error:
            raise InvalidInputError(f"{what}: {key} is not a valid slice: {error}") from error
        if step == 1:
            return range(start, max(start, stop))
        return compact_rows(np.arange(start, stop, step))
    if isinstance(key, range) and key.step == 1 and 0 <= key.start <= key.stop <= n:
        return key
    if isinstance(key, bool | np.bool_ | str | bytes) or key is None:
        raise InvalidInputError(f"{what}: {key!r} is not an index")
    array = as_numpy(key, what)
    if array.ndim == 0:
        raise InvalidInputError(f"{what}: {key!r} is not an index")
    if array.ndim != 1:
        raise ShapeError(f"{what}: expected a 1-D index, got shape {list(array.shape)}")
    if array.dtype == np.bool_:
        if array.shape[0] != n:
            raise ShapeError(f"{what}: expected a mask of shape [{n}], got [{array.shape[0]}]")
        return compact_rows(np.flatnonzero(array))
    if array.size == 0:
        return range(0)
    if array.dtype.kind not in "iu":
        raise InvalidInputError(f"{what}: expected an index of integers or booleans, got {array.dtype}")
    if array.dtype == np.uint64:  # Clip: a value beyond int64 is out of range anyway.
        array = np.minimum(array, np.uint64(np.iinfo(np.int64).max))
    key = array.astype(np.int64, copy=False)
    positions = _native.positions(key, n)
    if positions is None:
        wrong = array[(key < -n) | (key >= n)][0]
        raise InvalidInputError(f"{what}: {wrong} is out of range, there are {n}")
    return range(*positions) if isinstance(positions, tuple) else positions


def int_position(key: Any, n: int, what: str) -> int:
    """An int index as a position in ``0..n-1``; a negative index counts from the end.

    Raises
    ------
    InvalidInputError
        When the index is out of range.
    """
    position = operator.index(key)
    if not -n <= position < n:
        raise InvalidInputError(f"{what}: {position} is out of range, there are {n}")
    return position % n


def layer_positions(key: Any, labels: Sequence[int], what: str) -> list[int]:
    """The positions of the layers with the given labels.

    Parameters
    ----------
    key : int, list of int or slice
        One label, several labels, or a half-open slice of labels. A negative int counts from the last
        label. A slice selects the labels between its bounds in stored order, then takes every step-th.
    labels : sequence of int
        The labels of all layers.
    what : str
        What has these layers; error messages start with it.

    Raises
    ------
    NotFoundError
        When there is no such label. The message lists the existing ones.
    InvalidInputError
        When `key` is none of these types.
    """
    if isinstance(key, slice):
        return _layer_slice(key, labels, what)
    if is_int(key):
        return [_layer_position(operator.index(key), labels, what)]
    if isinstance(key, str | bytes) or key is None:
        raise InvalidInputError(f"{what}: expected layers as ints, got {key!r}")
    array = as_numpy(key, f"{what}: layers")
    if array.ndim != 1 or (array.size and array.dtype.kind not in "iu"):
        raise InvalidInputError(
            f"{what}: expected layers as an int, a list of ints or a slice of labels, got {key!r}"
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
        raise InvalidInputError(f"{what}: {key} is not a valid slice of labels")
    step = operator.index(bounds[2])
    start, stop = (_layer_bound(bound, labels) for bound in bounds[:2])
    if step > 0:
        inside = [(start is None or x >= start) and (stop is None or x < stop) for x in labels]
    else:
        inside = [(start is None or x <= start) and (stop is None or x > stop) for x in labels]
    return [i for i, is_inside in enumerate(inside) if is_inside][::step]


def _layer_bound(bound: Any, labels: Sequence[int]) -> int | None:
    if bound is None:
        return None
    label = operator.index(bound)
    if label >= 0 or not labels:
        return label
    return labels[label] if -label <= len(labels) else -1
