"""What comes with the rows of an append: lengths, ids, columns; checked and brought to one form."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .arrays import COLUMN_DTYPES, as_numpy, integers
from .errors import InvalidInputError, ShapeError
from .layout import EXAMPLES, check_column


@dataclass
class NumberColumn:
    """Numbers ``[n]`` of a column; from a Python list, whose dtype is a guess, they may be recast."""

    path: str
    values: NDArray[Any]
    guessed: bool

    def settle(self, dtype_name: str) -> NDArray[Any]:
        """The numbers in the column's dtype.

        Raises
        ------
        InvalidInputError
            When they are of another dtype, or a list that this dtype cannot hold exactly.
        """
        if self.values.dtype.name != dtype_name:
            dtype = COLUMN_DTYPES.get(dtype_name)
            if self.guessed and dtype is not None and (self.values.dtype.kind == "b") == (dtype.kind == "b"):
                with np.errstate(all="ignore"):
                    recast = self.values.astype(dtype)
                    if np.array_equal(recast.astype(self.values.dtype), self.values, equal_nan=True):
                        return recast
            raise InvalidInputError(f"column {self.path!r} is {dtype_name}, got {self.values.dtype.name}")
        return self.values


def lengths_by_axis(
    lengths: Any, axes: Sequence[str], n_rows: Mapping[str, int]
) -> tuple[dict[str, NDArray[np.int64]], int]:
    """Each axis' lengths ``[n_examples]``, adding up to the rows given, and the number of examples.

    Raises
    ------
    InvalidInputError, ShapeError
        Naming the axis, what was expected and what was given.
    """
    if not axes:
        if lengths is not None:
            raise InvalidInputError("lengths: every site here has one row per example, leave them out")
        return {}, n_rows[EXAMPLES]
    if lengths is None:
        raise InvalidInputError("lengths: missing", hint="lengths=[n] if all n rows are one example")
    if not isinstance(lengths, Mapping):
        if len(axes) > 1:
            raise InvalidInputError(
                f"lengths: the axes are {list(axes)}", hint=f"lengths={{{axes[0]!r}: ..., {axes[1]!r}: ...}}"
            )
        lengths = {axes[0]: lengths}
    if set(lengths) != set(axes):
        raise InvalidInputError(f"lengths: the axes are {list(axes)}, got {[*map(str, lengths)]}")
    out = {axis: integers(lengths[axis], f"lengths of axis {axis!r}") for axis in axes}
    n = len(out[axes[0]])
    for axis, sizes in out.items():
        if len(sizes) != n:
            raise ShapeError(f"lengths: {n} examples on axis {axes[0]!r}, {len(sizes)} on {axis!r}")
        if (sizes < 0).any():
            raise InvalidInputError(f"lengths of axis {axis!r}: {int(sizes.min())} is negative")
        total = sum(sizes.tolist())  # Python's ints do not overflow.
        if total != n_rows[axis]:
            raise ShapeError(
                f"lengths of axis {axis!r} add up to {total}, its sites have {n_rows[axis]} rows"
            )
    if n_rows.get(EXAMPLES, n) != n:
        raise ShapeError(f"{n} lengths, but the sites on axis 'examples' have {n_rows[EXAMPLES]} rows")
    return out, n


def example_ids(ids: Any, n_new: int, n_before: int) -> list[str]:
    """Ids of new examples; by default their positions in the store.

    Raises
    ------
    InvalidInputError, ShapeError
        When they are not as many strings as there are examples.
    """
    if ids is None:
        return [str(i) for i in range(n_before, n_before + n_new)]
    names = _list_of_str(ids, "ids")
    if names is None:
        raise InvalidInputError("ids: expected strings", hint="[str(i) for i in ids]")
    if len(names) != n_new:
        raise ShapeError(f"ids: expected {n_new}, one per example, got {len(names)}")
    return names


def token_columns(tokens: Any, axes: Sequence[str], n_rows: Mapping[str, int]) -> Iterator[NumberColumn]:
    """Columns of numbers over the rows of each axis.

    Raises
    ------
    InvalidInputError, ShapeError
        For an axis or a column that cannot be, or one of another length.
    """
    if tokens is None:
        return
    if not isinstance(tokens, Mapping):
        tokens = {"id": tokens}
    by_axis = len(axes) > 1 or (bool(tokens) and all(isinstance(value, Mapping) for value in tokens.values()))
    if not axes:
        raise InvalidInputError("tokens: every site here has one row per example", hint="use columns=")
    for axis, columns in (tokens if by_axis else {axes[0]: tokens}).items():
        if axis not in axes:
            raise InvalidInputError(f"tokens: the axes are {list(axes)}, got {axis!r}")
        for name, values in (columns if isinstance(columns, Mapping) else {"id": columns}).items():
            check_column(name, f"axis {axis!r}: column")
            yield _numbers(f"{axis}/{name}", values, n_rows[axis])


def example_columns(columns: Any, n_new: int) -> tuple[list[NumberColumn], dict[str, list[str]]]:
    """Columns over examples: those of numbers, and those of strings by path.

    Raises
    ------
    InvalidInputError, ShapeError
        For a column that cannot be, or one of another length.
    """
    numbers: list[NumberColumn] = []
    strings: dict[str, list[str]] = {}
    if columns is None:
        columns = {}
    if not isinstance(columns, Mapping):
        raise InvalidInputError(
            f"columns: expected a mapping of name to values, got {type(columns).__name__}"
        )
    for name, values in columns.items():
        path = f"{EXAMPLES}/{check_column(name, 'column')}"
        if name == "id":
            raise InvalidInputError("columns: the column 'id' is what ids= gives")
        texts = _list_of_str(values, f"column {path!r}")
        if texts is None:
            numbers.append(_numbers(path, values, n_new))
        elif len(texts) != n_new:
            raise ShapeError(f"column {path!r}: expected {n_new} values, one per example, got {len(texts)}")
        else:
            strings[path] = texts
    return numbers, strings


def pack_strings(texts: Sequence[str]) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Strings as utf-8 bytes one after the other, and where each ends."""
    raw = [text.encode() for text in texts]
    ends = np.cumsum(np.fromiter(map(len, raw), np.int64, len(raw)))
    return np.frombuffer(b"".join(raw), np.uint8), ends


def _numbers(path: str, values: Any, n: int) -> NumberColumn:
    array = as_numpy(values, f"column {path!r}")
    if array.ndim != 1 or array.shape[0] != n:
        raise ShapeError(f"column {path!r}: expected [{n}], got {list(array.shape)}")
    if array.dtype.name not in COLUMN_DTYPES:
        raise InvalidInputError(f"column {path!r}: {array.dtype} is neither numbers nor strings")
    return NumberColumn(path, np.ascontiguousarray(array), isinstance(values, list | tuple))


def _list_of_str(values: Any, what: str) -> list[str] | None:
    """`values` as strings; None when they are something else.

    Raises
    ------
    InvalidInputError
        When some are strings and some are not, or one is no unicode.
    """
    if isinstance(values, str | bytes):
        raise InvalidInputError(f"{what}: expected a list, got {type(values).__name__} {values!r}")
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "OUT":
            return None
        if values.ndim != 1:
            raise ShapeError(f"{what}: expected one axis, got shape {list(values.shape)}")
    elif not isinstance(values, Sequence):
        # A table's column, say; a tensor holds no strings.
        return _list_of_str(np.asarray(values), what) if hasattr(values, "__array_ufunc__") else None
    texts = list(values)
    kinds = {isinstance(text, str) for text in texts}
    if not texts:
        return []
    if kinds != {True}:
        if True in kinds:
            odd = next(text for text in texts if not isinstance(text, str))
            raise InvalidInputError(f"{what}: strings and {odd!r}, a {type(odd).__name__}")
        return None
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InvalidInputError(f"{what}: {text!r} is not valid unicode") from error
    return [str(text) for text in texts]
